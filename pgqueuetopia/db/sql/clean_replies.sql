-- Remove a batch of replies that are older than the retention.
with old as materialized (
  select r.id
  from pgqueuetopia.replies r
  where r.scope = $1::text and r.at < clock_timestamp() - $2::interval
  order by r.at
  limit $3::bigint
  for update skip locked
),
removed as (
  delete from pgqueuetopia.replies r using old o where r.id = o.id returning 1
)
select count(*) from removed
