-- What keeps vacuum from removing dead rows in this database, oldest first: transactions, prepared
-- transactions, replication slots. Those of other roles show only to a member of pg_read_all_stats.
select
  'transaction of pid ' || a.pid || coalesce(' (' || nullif(a.application_name, '') || ')', '') as holder,
  extract(epoch from pg_catalog.clock_timestamp() - a.xact_start)::double precision as seconds
from pg_catalog.pg_stat_activity a
where a.datname = pg_catalog.current_database()
  and a.pid <> pg_catalog.pg_backend_pid()
  and a.backend_type <> 'autovacuum worker'
  and a.xact_start is not null
  and (a.backend_xmin is not null or a.backend_xid is not null)
union all
select
  'prepared transaction ' || p.gid,
  extract(epoch from pg_catalog.clock_timestamp() - p.prepared)::double precision
from pg_catalog.pg_prepared_xacts p
where p.database = pg_catalog.current_database()
union all
select 'replication slot ' || s.slot_name, null
from pg_catalog.pg_replication_slots s
where s.xmin is not null and not s.active
order by seconds desc nulls last
