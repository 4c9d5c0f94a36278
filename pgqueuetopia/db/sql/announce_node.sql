-- Be seen by the other nodes of the scope, and wake them, for they are not alone any longer.
select
  pg_advisory_lock_shared(pgqueuetopia.lock_key('node', $1::text)),
  pg_notify('pgqueuetopia_jobs', 'joined ' || $1::text)
