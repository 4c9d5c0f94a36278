-- Claim one job, due or not, of a queue that this session has locked, as claim() does (0005). A wait is over, and a
-- job that waits for an operator begins anew.
update pgqueuetopia.jobs j
set
  claim = greatest(j.claim + 1, c.least_claim),
  attempts = case when j.next_attempt_at = 'infinity' then 1 else j.attempts + 1 end,
  next_attempt_at = case when j.next_attempt_at is not null then least(j.next_attempt_at, statement_timestamp()) end,
  attempted_at = statement_timestamp(),
  attempted_by = $3::text
from pgqueuetopia.since_crash() c
where j.scope = $1::text and j.id = $2::bigint and j.outcome is null
returning pgqueuetopia.as_claimed(j, 0) as job
