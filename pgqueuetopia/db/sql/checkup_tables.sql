-- The dead rows of the tables that are written at every job, and whether autovacuum may remove them.
select
  s.relname::text as name,
  s.n_live_tup as live,
  s.n_dead_tup as dead,
  s.last_autovacuum as vacuumed_at,
  exists (
    select from unnest(c.reloptions) o (setting)
    where o.setting like 'autovacuum_enabled=%' and not split_part(o.setting, '=', 2)::boolean
  ) as autovacuum_off
from pg_catalog.pg_stat_user_tables s
join pg_catalog.pg_class c on c.oid = s.relid
where s.schemaname = 'pgqueuetopia' and s.relname in ('jobs', 'run_queue')
order by s.relname
