-- Make jobs that wait for their next attempt due now; or bring one that has ended back to its place in line, as if it
-- had never been started.
with retried as (
  update pgqueuetopia.jobs j
  set
    done_at = null, outcome = null, result = null, attempts = 0,
    -- Its earlier run may still tell what it has told already: that does not count.
    claim = j.claim + (j.done_at is not null)::integer,
    next_attempt_at = case when j.done_at is null then clock_timestamp() end,
    attempted_at = case when j.done_at is null then j.attempted_at end,
    attempted_by = case when j.done_at is null then j.attempted_by end,
    updated_at = clock_timestamp()
  where j.scope = $1::text
    and ($2::bigint is null or j.id = $2)
    and ($3::text is null or j.queue = $3)
    and (
      (j.done_at is null and j.next_attempt_at > coalesce(j.attempted_at, '-infinity'))
      or ($2 is not null and j.done_at is not null)
    )
  returning j.id
)
select count(*) from retried
