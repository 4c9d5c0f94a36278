-- The configs that speak to a scope: its own and those of *.
select c.scope, c.key, c.value
from pgqueuetopia.job_configs c
where c.scope in ('*', $1::text)
order by c.key, c.scope
