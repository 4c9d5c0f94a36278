-- From now on nobody needs to notify.
select pg_advisory_unlock_shared(pgqueuetopia.lock_key('sleeping', $1::text))
