-- The queues whose head has failed and waits, longest first. A topic's jobs hold up no other.
select
  j.queue,
  j.id as head,
  j.attempts,
  nullif(j.next_attempt_at, 'infinity') as next_attempt_at,
  (j.errors -> 0 ->> 'at')::timestamptz as since,
  j.errors -> -1 ->> 'error' as why
from pgqueuetopia.jobs j
where j.scope = $1::text
  and j.done_at is null
  and not j.topic
  and j.next_attempt_at > statement_timestamp()
  and jsonb_array_length(j.errors) > 0
order by since, j.id
limit $2::bigint
