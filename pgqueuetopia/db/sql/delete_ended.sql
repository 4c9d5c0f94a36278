-- Remove the jobs of a scope that ended longer ago than this.
with gone as (
  delete from pgqueuetopia.jobs j
  where j.scope = $1::text and j.done_at < now() - $2::interval
  returning j.id
)
select count(*) from gone
