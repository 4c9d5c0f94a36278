-- Invariant 1: the queues that nobody will ever look at, for no row of run_queue tells of their head in
-- time. A queue suspended by its own name is parked without a row. The tables are read in one snapshot.
with heads as (
  select distinct on (j.scope, j.queue)
    j.scope,
    j.queue,
    greatest(j.scheduled_at, j.next_attempt_at, statement_timestamp()) as due_at
  from pgqueuetopia.jobs j
  where j.done_at is null and not j.topic
  order by
    j.scope,
    j.queue,
    j.next_attempt_at nulls last,
    case when j.next_attempt_at is null then j.scheduled_at end,
    j.id
)
select h.scope, h.queue, count(*) over () as queues
from heads h
where not exists (
    select from pgqueuetopia.run_queue r
    where r.scope = h.scope
      and r.queue = h.queue
      -- A queue whose head is locked by somebody is put off for a second.
      and r.ready_at <= h.due_at + interval '2 seconds'
  )
  and not pgqueuetopia.some_suspended(h.scope, h.queue || '_suspended')
order by h.scope, h.queue
limit 5
