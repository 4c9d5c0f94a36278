-- Store one job; the triggers tell the nodes.
insert into pgqueuetopia.jobs (
  scope, queue, action, params, priority, timeout, max_backoff, max_attempts, scheduled_at,
  failure_mode, reply, topic
)
values (
  $1::text, $2::text, $3::text, $4::text::jsonb, $5::integer, $6::interval, $7::interval, $8::integer,
  coalesce($9::timestamptz, now() + $10::interval, now()), $11::text::jsonb, $12::boolean, $13::boolean
)
returning id, scheduled_at, inserted_at, updated_at
