-- From now on have the events of a scope told, as long as this session lasts.
select pg_advisory_lock_shared(pgqueuetopia.lock_key('events', $1::text))
