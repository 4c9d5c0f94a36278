-- Remove a batch of jobs that ended longer ago than the retention; none while another node of the scope does.
with turn as materialized (
  select pg_try_advisory_xact_lock(pgqueuetopia.lock_key('cleaning', $1::text)) as is_ours
),
old as materialized (
  select j.id
  from pgqueuetopia.jobs j
  where (select t.is_ours from turn t)
    and j.scope = $1::text
    and j.done_at < clock_timestamp() - $2::interval
  order by j.done_at
  limit $3::bigint
  for update skip locked
),
removed as (
  delete from pgqueuetopia.jobs j using old o where j.id = o.id returning 1
)
select count(*) from removed
