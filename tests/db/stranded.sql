-- Queues whose head is due earlier than any row of the run queue says, and that nobody holds.
with heads as (
  select distinct on (j.scope, j.queue) j.scope, j.queue, greatest(j.scheduled_at, j.next_attempt_at) as due_at
  from pgqueuetopia.jobs j
  where j.done_at is null and not j.topic
  order by j.scope, j.queue, (j.next_attempt_at is null), j.scheduled_at, j.id
)
select h.scope, h.queue, h.due_at
from heads h
where not exists (
  select from pgqueuetopia.run_queue q
  where q.scope = h.scope and q.queue = h.queue and q.ready_at <= greatest(h.due_at, clock_timestamp())
)
