-- The head (any job, of a topic) to be performed next, of one queue ($2) or of all but some ($3): those that are due by priority, and then
-- the one due longest; after them those that are due later, if they are not newer than $4. None that waits for an operator.
with heads as (
  select distinct on (j.queue, case when j.topic then j.id end)
    j.id,
    j.queue,
    j.priority,
    greatest(j.scheduled_at, j.next_attempt_at) as due_at
  from pgqueuetopia.jobs j
  where j.scope = $1::text and j.done_at is null and ($2::text is null or j.queue = $2)
  -- A job that was started stays the head until it ends.
  order by j.queue, case when j.topic then j.id end, coalesce(j.next_attempt_at, j.attempted_at) nulls last, j.scheduled_at, j.id
)
select h.id, h.queue
from heads h
where h.queue <> all ($3::text[])
  and h.due_at < 'infinity'
  and (h.due_at <= statement_timestamp() or h.id <= $4::bigint)
  and not pgqueuetopia.some_suspended($1, 'suspended')
  and not pgqueuetopia.some_suspended($1, h.queue || '_suspended')
order by greatest(h.due_at, statement_timestamp()), h.priority desc, h.due_at, h.id
limit 1
