-- The next reply of each of these jobs, after the one that was read last.
select w.job, w.after, r.id, r.kind, r.value
from unnest($1::bigint[], $2::bigint[]) as w (job, after)
cross join lateral (
  select r.id, r.kind, r.value
  from pgqueuetopia.replies r
  where r.job = w.job and r.id > w.after
  order by r.id
  limit 1
) r
