-- What a node needs that this role lacks, as (object, privilege).
with needed (name, privilege) as (
  values
    ('jobs', 'SELECT'), ('jobs', 'INSERT'), ('jobs', 'UPDATE'), ('jobs', 'DELETE'),
    ('run_queue', 'SELECT'), ('run_queue', 'INSERT'), ('run_queue', 'UPDATE'), ('run_queue', 'DELETE'),
    ('job_configs', 'SELECT'), ('job_states', 'SELECT'), ('executing', 'SELECT'), ('nodes', 'SELECT')
)
select 'schema pgqueuetopia' as object, 'USAGE' as privilege
from pg_catalog.pg_namespace n
where n.nspname = 'pgqueuetopia'
  and not pg_catalog.has_schema_privilege(n.oid, 'USAGE')
union all
select 'pgqueuetopia.' || n.name, n.privilege
from needed n
join pg_catalog.pg_class c on c.relname = n.name
join pg_catalog.pg_namespace s on s.oid = c.relnamespace and s.nspname = 'pgqueuetopia'
where not pg_catalog.has_table_privilege(c.oid, n.privilege)
union all
select p.oid::pg_catalog.regprocedure::text, 'EXECUTE'
from pg_catalog.pg_proc p
join pg_catalog.pg_namespace s on s.oid = p.pronamespace and s.nspname = 'pgqueuetopia'
-- Triggers and what they call run as their owner, and nobody else may call them.
where not p.prosecdef
  and p.prorettype <> 'pg_catalog.trigger'::pg_catalog.regtype
  and not pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
order by object, privilege
