-- Be seen by the other nodes of the scope, and wake them, for they are not alone any longer; and learn from which number on claims
-- may be made, and when.
select
  c.least_claim,
  c.calm_in,
  pg_advisory_lock_shared(pgqueuetopia.lock_key('node', $1::text)),
  pg_notify('pgqueuetopia_jobs', 'joined ' || $1::text)
from pgqueuetopia.since_crash() c
