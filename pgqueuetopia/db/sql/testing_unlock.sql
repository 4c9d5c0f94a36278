-- Let a queue go that this session has locked.
select pg_advisory_unlock(pgqueuetopia.lock_key('queue', $1::text, $2::text))
