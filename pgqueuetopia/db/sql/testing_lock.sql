-- Lock the queue of a job that has not ended, for this session.
select
  j.queue,
  j.outcome,
  case
    when j.outcome is null then pg_try_advisory_lock(pgqueuetopia.lock_key('queue', j.scope, j.queue))
  end as locked
from pgqueuetopia.jobs j
where j.scope = $1::text and j.id = $2::bigint
