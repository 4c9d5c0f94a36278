-- The server, as far as it matters to a node; the clock comes as late as can be.
select
  pg_catalog.pg_backend_pid() as backend,
  pg_catalog.pg_postmaster_start_time() as started_at,
  pg_catalog.current_database()::text as database,
  current_user::text as role,
  pg_catalog.current_setting('server_version') as version,
  pg_catalog.current_setting('server_version_num')::integer as version_number,
  pg_catalog.pg_is_in_recovery() as standby,
  pg_catalog.current_setting('default_transaction_read_only')::boolean as read_only,
  pg_catalog.current_setting('default_transaction_isolation') as isolation,
  pg_catalog.current_setting('autovacuum')::boolean as autovacuum,
  pg_catalog.current_setting('track_counts')::boolean as track_counts,
  pg_catalog.clock_timestamp() as now
