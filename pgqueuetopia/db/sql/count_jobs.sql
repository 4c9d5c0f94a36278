-- How many jobs list_jobs would find in all.
select count(*)
from pgqueuetopia.job_states s
where s.scope = $1::text
  and ($2::text is null or s.queue = $2)
  and ($3::text is null or s.action = $3)
  and ($4::text is null or s.state = $4 or ($4 = 'pending' and s.done_at is null))
  and (
    $5::text is null
    or strpos(s.queue, $5) > 0
    or strpos(s.action, $5) > 0
    or strpos(s.params::text, $5) > 0
  )
