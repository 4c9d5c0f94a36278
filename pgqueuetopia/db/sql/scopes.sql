-- The scopes that have a job or a config, by one probe of the index for each.
with recursive scopes (scope) as (
  select min(j.scope) from pgqueuetopia.jobs j where j.done_at is null
  union all
  select (select min(j.scope) from pgqueuetopia.jobs j where j.done_at is null and j.scope > s.scope)
  from scopes s
  where s.scope is not null
),
ended (scope) as (
  select min(j.scope) from pgqueuetopia.jobs j where j.done_at is not null
  union all
  select (select min(j.scope) from pgqueuetopia.jobs j where j.done_at is not null and j.scope > e.scope)
  from ended e
  where e.scope is not null
)
select s.scope from scopes s where s.scope is not null
union
select e.scope from ended e where e.scope is not null
union
select c.scope from pgqueuetopia.job_configs c where c.scope <> '*'
order by scope
