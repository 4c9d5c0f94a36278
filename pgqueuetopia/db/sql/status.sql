-- The pending jobs of a scope, or of one queue, counted by state.
select case s.state when 'launched' then 'executing' else s.state end as state, count(*) as jobs
from pgqueuetopia.job_states s
where s.scope = $1::text and ($2::text is null or s.queue = $2) and s.done_at is null
group by 1
