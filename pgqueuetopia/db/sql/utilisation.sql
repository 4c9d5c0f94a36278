-- Who runs how many jobs of a queue, and how many of those have launched something; and what a config says of its parallelism.
select
  pgqueuetopia.number_of($1::text, $2::text || '_parallelism') as parallelism,
  array(
    select row(e.attempted_by, count(*), count(*) filter (where e.launched_at >= e.attempted_at))
    from pgqueuetopia.executing e
    where e.scope = $1 and e.queue = $2
    group by e.attempted_by
    order by e.attempted_by
  ) as nodes
