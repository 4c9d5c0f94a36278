-- Whether this role sees the transactions of others.
select pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') as all_stats
