-- The nodes of a scope that run now.
select distinct n.node
from pgqueuetopia.nodes n
where n.lock_key = pgqueuetopia.lock_key('node', $1::text)
order by n.node
