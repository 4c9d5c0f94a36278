-- The jobs of a scope that run now, those that began first, first. Finished jobs, of which there may be millions, are not read.
select s.*
from pgqueuetopia.job_states s
where s.scope = $1::text and s.done_at is null and s.attempted_at is not null and s.state in ('executing', 'launched')
order by s.attempted_at, s.id
limit $2::bigint
