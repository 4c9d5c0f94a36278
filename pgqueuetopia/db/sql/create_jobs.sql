-- Store many jobs, all or nothing, in the order given.
insert into pgqueuetopia.jobs (
  scope, queue, action, params, priority, timeout, max_backoff, max_attempts, scheduled_at,
  failure_mode, reply, topic
)
select
  $1::text, n.queue, n.action, n.params::jsonb, n.priority, n.timeout, n.max_backoff, n.max_attempts,
  coalesce(n.scheduled_at, now() + n.delay, now()), n.failure_mode::jsonb, n.reply, n.topic
from unnest(
  $2::text[], $3::text[], $4::text[], $5::integer[], $6::interval[], $7::interval[], $8::integer[],
  $9::timestamptz[], $10::interval[], $11::text[], $12::boolean[], $13::boolean[]
) with ordinality as n (
  queue, action, params, priority, timeout, max_backoff, max_attempts, scheduled_at, delay,
  failure_mode, reply, topic, position
)
order by n.position
returning id, scheduled_at, inserted_at, updated_at
