-- What has ended since a time, or in the last while, by queue and action: how many, and how long they waited and ran, in seconds.
select
  j.queue,
  j.action,
  count(*) filter (where j.outcome = 'succeeded') as done,
  count(*) filter (where j.outcome = 'abandoned') as failed,
  count(*) filter (where j.attempts > 1) as retried,
  percentile_cont(array[0.5, 0.99]) within group (
    order by extract(epoch from j.attempted_at - greatest(j.scheduled_at, j.next_attempt_at))::float
  ) as waits,
  percentile_cont(array[0.5, 0.99]) within group (
    order by extract(epoch from j.done_at - j.attempted_at)::float
  ) as runs
from pgqueuetopia.jobs j
where j.scope = $1::text and j.done_at >= coalesce($2::timestamptz, now() - $3::interval) and j.attempted_at is not null
group by j.queue, j.action
order by j.queue, j.action
