-- Delete a scope's own config; returns how many there were.
with deleted as (
  delete from pgqueuetopia.job_configs c where c.scope = $1::text and c.key = $2::text returning 1
)
select count(*) from deleted
