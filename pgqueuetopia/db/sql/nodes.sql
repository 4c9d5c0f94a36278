-- The nodes of a scope that run now, and how many workers each has, if it has Workers.
select distinct n.node, nullif(split_part(a.application_name, ' ', 4), '')::integer as workers
from pgqueuetopia.nodes n
join pg_stat_activity a on a.pid = n.pid
where n.lock_key = pgqueuetopia.lock_key('node', $1::text)
order by n.node
