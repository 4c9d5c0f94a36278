-- How many locks the server can hold, how many are held, and by how many nodes.
select
  pg_catalog.current_setting('max_locks_per_transaction')::bigint as per_transaction,
  pg_catalog.current_setting('max_locks_per_transaction')::bigint
  * (
    pg_catalog.current_setting('max_connections')::bigint
    + pg_catalog.current_setting('max_prepared_transactions')::bigint
  ) as capacity,
  (select count(*) from pg_catalog.pg_locks l where not l.fastpath) as held,
  (
    select count(distinct l.pid)
    from pg_catalog.pg_locks l
    join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'advisory' and a.application_name like 'pgqueuetopia %'
  ) as nodes
