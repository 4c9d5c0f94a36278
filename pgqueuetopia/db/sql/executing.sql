-- How many jobs of a scope, or of one queue, run now.
select count(*)
from pgqueuetopia.executing e
where e.scope = $1::text and ($2::text is null or e.queue = $2)
