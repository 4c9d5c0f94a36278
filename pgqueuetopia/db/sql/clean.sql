-- Remove a batch of jobs that ended longer ago than the retention.
with old as materialized (
  select j.id
  from pgqueuetopia.jobs j
  where j.scope = $1::text and j.done_at < clock_timestamp() - $2::interval
  order by j.done_at
  limit $3::bigint
  for update skip locked
),
removed as (
  delete from pgqueuetopia.jobs j using old o where j.id = o.id returning 1
)
select count(*) from removed
