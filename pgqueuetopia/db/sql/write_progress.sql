-- What jobs tell of their progress; a run that was lost writes nothing. Rows are locked in the order of their ids.
update pgqueuetopia.jobs j
set progress = s.progress, updated_at = clock_timestamp()
from (
  select u.id, u.progress
  from unnest($1::bigint[], $2::bigint[], $3::jsonb[]) u (id, claim, progress)
  join pgqueuetopia.jobs k on k.id = u.id and k.claim = u.claim
  order by u.id
  for update of k
) s
where j.id = s.id
