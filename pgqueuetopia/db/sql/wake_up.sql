-- From now on nobody needs to notify.
select pgqueuetopia.cease_to_wait('sleeping', $1::text)
