-- The next reply of each of these jobs, after the one that was read last. By a term, and not by the column id:
-- whatever the statistics say, the rows of the job are read, and not all rows in the order of their ids.
select w.job, w.after, r.id, r.kind, r.value
from unnest($1::bigint[], $2::bigint[]) as w (job, after)
cross join lateral (
  select r.id, r.kind, r.value
  from pgqueuetopia.replies r
  where r.job = w.job and r.id + 0 > w.after
  order by r.id + 0
  limit 1
) r
