-- From now on have the events of a scope told, as long as this session lasts.
select pgqueuetopia.begin_to_wait('events', $1::text)
