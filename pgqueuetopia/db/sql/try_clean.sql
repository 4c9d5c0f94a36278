-- One node cleans at a time: true if nobody else of the scope does, until this transaction ends.
select pg_try_advisory_xact_lock(pgqueuetopia.lock_key('cleaning', $1::text))
