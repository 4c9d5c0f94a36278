-- What becomes of a job, written. The first of the three parts of step() (0007): persist, acquire, claim.
--
-- The plans must not depend on statistics, for these tables grow from nothing to millions of rows between
-- two looks of autovacuum: the node's session leaves the planner index scans and nested loops alone, and
-- "outcome is null" (the same as "done_at is null", by a constraint) keeps it off the partial indexes
-- where a row is found by its id. That is asked for as "id = any (array[...])": of an "=" between two tables one that is small as
-- the plan is made would be read from end to end. What one index alone must find is asked for in the order of that index, even where
-- no order is needed ("order by r.xid"): under some statistics others look as good.
--
-- A line "failpoint: name" marks a place between two statements where the tests stop the world.

-- The newest twenty errors are kept.
create function pgqueuetopia.append_error(errors jsonb, error jsonb, failed_at timestamptz) returns jsonb
language sql immutable parallel safe
return case when jsonb_array_length(errors) >= 20 then errors - 0 else errors end
  || jsonb_build_array(error || jsonb_build_object('at', failed_at));

-- Tell those who wait for jobs what has just become of them. An outcome that says nothing (interrupted, snoozed)
-- has no reply; of a job that is moved, move tells.
create function pgqueuetopia.reply(p_ids bigint[]) returns void
language plpgsql
as $$
begin
  insert into pgqueuetopia.replies (scope, job, kind, value)
  select
    j.scope,
    coalesce(j.moved_from, j.id),
    case j.outcome when 'succeeded' then 'ok' when 'abandoned' then 'error' else 'retrying' end,
    case j.outcome when 'succeeded' then j.result else j.errors -> -1 -> 'error' end
  from pgqueuetopia.jobs j
  where j.id = any (p_ids) and j.reply and j.outcome is distinct from 'moved';
end
$$;

-- Tell those who listen what has just been written about these jobs: what an attempt has come to, and what follows.
create function pgqueuetopia.tell_ends(p_scope text, p_ids bigint[], p_failed bigint[]) returns void
language plpgsql
as $$
declare
  v_failed text[] := '{}';
begin
  if p_failed <> '{}' then
    v_failed := array(
      select json_build_array('failed', j.id, j.queue, j.attempts, left(j.errors -> -1 ->> 'error', 200))::text
      from unnest(p_failed) i (id)
      join pgqueuetopia.jobs j on j.id = any (array[i.id])
      where j.id = any (p_ids)
    );
  end if;
  perform pgqueuetopia.tell(p_scope, v_failed || array(
    select json_build_array(
      case when j.outcome is null then 'retry_scheduled' when j.outcome = 'succeeded' then 'completed' else 'discarded' end,
      j.id, j.queue, j.attempts,
      case
        when j.outcome is null then extract(epoch from nullif(j.next_attempt_at, 'infinity'))::text
        when j.outcome <> 'succeeded' then j.outcome
      end
    )::text
    from unnest(p_ids) i (id)
    join pgqueuetopia.jobs j on j.id = any (array[i.id])
  ));
end
$$;

-- Put a job like each of these at the end of the queue that it is moved to.
create function pgqueuetopia.move(p_ids bigint[], p_queues text[]) returns setof bigint
language sql
as $$
  insert into pgqueuetopia.replies (scope, job, kind, value)
  select j.scope, coalesce(j.moved_from, j.id), 'moved', to_jsonb(m.queue)
  from unnest(p_ids, p_queues) m (id, queue)
  join pgqueuetopia.jobs j on j.id = any (array[m.id])
  where j.reply;
  insert into pgqueuetopia.jobs (
    scope, queue, action, params, priority, timeout, max_backoff, max_attempts, failure_mode, reply, moved_from
  )
  select
    j.scope, m.queue, j.action, j.params, j.priority, j.timeout, j.max_backoff, j.max_attempts,
    j.failure_mode, j.reply, coalesce(j.moved_from, j.id)
  from unnest(p_ids, p_queues) with ordinality m (id, queue, position)
  join pgqueuetopia.jobs j on j.id = any (array[m.id])
  order by m.position
  returning id
$$;

-- Write what became of jobs; the fence is claim. An outcome that is null leaves the job pending: after
-- the delay, or blocked until an operator acts where that is null too. An attempt that is not spent is
-- given back. A job that was prefetched (see claim) may have begun without our knowing: it counts its attempt now, and
-- began as long ago as its run took, in microseconds. The arrays after the claims
-- may be shorter: the jobs beyond their end have succeeded, without a result, as most do. Returns what was saved; and of
-- the last that has ended of each queue, as p_lasts says (beyond its end all are), its queue, its id, the place at which
-- the queue was if it has ended, and the snapshot and length that were given with it (see claim); and what could not be
-- saved because somebody has locked the row.
create function pgqueuetopia.persist(
  p_scope text,
  p_node text,
  p_ids bigint[],
  p_claims bigint[],
  p_outcomes text[],
  p_delays interval[],
  p_spent boolean[],
  p_errors jsonb[],
  p_results jsonb[],
  p_moves text[],
  p_queues text[],
  p_lasts boolean[],
  p_snapshots text[],
  p_lengths integer[],
  p_run_times bigint[],
  p_keep boolean,
  p_careful boolean,
  out saved bigint[],
  out queues text[],
  out ids bigint[],
  out places timestamptz[],
  out snapshots text[],
  out lengths integer[],
  out busy bigint[]
)
language plpgsql
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_ids bigint[] := p_ids;
  v_told bigint[];
begin
  busy := '{}';
  if p_careful then
    v_ids := array(
      select j.id from pgqueuetopia.jobs j where j.id = any (p_ids) for update skip locked
    );
    busy := array(
      select j.id
      from pgqueuetopia.jobs j
      join unnest(p_ids, p_claims) s (id, claim) on j.id = any (array[s.id]) and j.claim = s.claim
      where j.done_at is null and j.id <> all (v_ids)
    );
  end if;
  if not (p_keep or pgqueuetopia.is_listened_to(p_scope)) then
    -- Most go at once. Those that nothing comes after: no reply, and no retry that a trigger would tell of.
    with gone as (
      delete from pgqueuetopia.jobs j
      using unnest(p_ids, p_claims, p_spent, p_queues, p_lasts, p_snapshots, p_lengths)
        as s (id, claim, spent, queue, last, snapshot, length)
      where j.id = any (array[s.id])
        and j.claim = s.claim
        and j.scope = p_scope
        and s.spent is null
        and j.outcome is null
        and j.next_attempt_at is null
        and not j.reply
        and (not p_careful or j.id = any (v_ids))
      returning
        j.id, case when s.last is distinct from false then s.queue end as queue, s.snapshot, s.length,
        case when j.queue = s.queue then j.scheduled_at end as place
    )
    select
      array_agg(g.id), array_agg(g.queue) filter (where g.queue is not null),
      array_agg(g.id) filter (where g.queue is not null), array_agg(g.place) filter (where g.queue is not null),
      array_agg(g.snapshot) filter (where g.queue is not null), array_agg(g.length) filter (where g.queue is not null)
    into saved, queues, ids, places, snapshots, lengths
    from gone g;
    if cardinality(saved) = cardinality(p_ids) then
      return;
    end if;
  end if;
  with saving as (
    update pgqueuetopia.jobs j
    set
      done_at = case when s.outcome is not null then v_now end,
      outcome = s.outcome,
      next_attempt_at = case
        when s.outcome is not null then j.next_attempt_at
        when s.delay is not null then v_now + s.delay
        when s.spent then 'infinity'
      end,
      attempts = greatest(
        j.attempts + (j.attempted_at is null)::integer - (s.spent is not distinct from false)::integer, 0
      ),
      attempted_at = coalesce(j.attempted_at, v_now - coalesce(s.run_time, 0) * interval '1 microsecond'),
      attempted_by = coalesce(j.attempted_by, p_node),
      prefetched_to = null,
      errors = case
        when s.error is null then j.errors else pgqueuetopia.append_error(j.errors, s.error, v_now)
      end,
      result = s.result,
      updated_at = v_now
    from (
      select
        u.id, u.claim, case when u.spent is null then 'succeeded' else u.outcome end as outcome,
        u.delay, u.spent, u.error, u.result, u.queue, u.last, u.snapshot, u.length, u.run_time
      from unnest(
        p_ids, p_claims, p_outcomes, p_delays, p_spent, p_errors, p_results, p_queues, p_lasts, p_snapshots, p_lengths,
        p_run_times
      ) as u (id, claim, outcome, delay, spent, error, result, queue, last, snapshot, length, run_time)
    ) s
    where j.id = any (array[s.id])
      and j.claim = s.claim
      and j.scope = p_scope
      and j.outcome is null
      and (not p_careful or j.id = any (v_ids))
    -- The queue by which it was claimed: somebody may have moved it to another one since.
    returning
      j.id, case when s.last is distinct from false then s.queue end as queue, s.snapshot, s.length,
      case when j.done_at is not null and j.queue = s.queue then j.scheduled_at end as place,
      j.reply and (j.outcome is not null or s.error is not null) as tells
  )
  select
    coalesce(saved || array_agg(s.id), '{}'), queues || array_agg(s.queue) filter (where s.queue is not null),
    ids || array_agg(s.id) filter (where s.queue is not null),
    places || array_agg(s.place) filter (where s.queue is not null),
    snapshots || array_agg(s.snapshot) filter (where s.queue is not null),
    lengths || array_agg(s.length) filter (where s.queue is not null),
    array_agg(s.id) filter (where s.tells)
  into saved, queues, ids, places, snapshots, lengths, v_told
  from saving s;
  if v_told is not null then
    perform pgqueuetopia.reply(v_told);
  end if;
  if saved <> '{}' and pgqueuetopia.is_listened_to(p_scope) then
    perform pgqueuetopia.tell_ends(p_scope, saved, array(
      select s.id from unnest(p_ids, p_errors) s (id, error) where s.error is not null
    ));
  end if;
  -- failpoint: replied
  if array_length(p_moves, 1) > 0 and array_remove(p_moves, null) <> '{}' then
    perform pgqueuetopia.move(array_agg(m.id), array_agg(m.queue))
    from unnest(p_ids, p_moves) m (id, queue)
    where m.queue is not null and m.id = any (saved);
  end if;
  -- failpoint: moved
  if not p_keep then
    delete from pgqueuetopia.jobs j where j.id = any (saved) and j.done_at is not null;
  end if;
end
$$;
