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
-- began as long ago as its run took, in microseconds. The arrays after the claims end where those begin that have
-- succeeded without a result, as most do. These come last, in the order of their ids. Returns what was saved, and what could
-- not be because somebody has locked the row.
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
  p_run_times bigint[],
  p_keep boolean,
  p_careful boolean,
  out saved bigint[],
  out busy bigint[]
)
language plpgsql
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_listened_to boolean := pgqueuetopia.is_listened_to(p_scope);
  v_free bigint[];
  v_first_plain integer := coalesce(cardinality(p_outcomes), 0) + 1;
  v_plain bigint[] := p_ids[v_first_plain:];
  v_telling bigint[];
begin
  busy := '{}';
  if p_careful then
    v_free := array(
      select j.id from pgqueuetopia.jobs j where j.id = any (p_ids) for update skip locked
    );
    busy := array(
      select j.id
      from pgqueuetopia.jobs j
      join unnest(p_ids, p_claims) s (id, claim) on j.id = any (array[s.id]) and j.claim = s.claim
      where j.done_at is null and j.id <> all (v_free)
    );
  end if;
  -- The plain ones by one scan, for to find them one by one takes half as long again; the claim of each by its place among them.
  if cardinality(v_plain) > 0 and (p_keep or v_listened_to) then
    with saving as (
      update pgqueuetopia.jobs j
      set
        done_at = v_now,
        outcome = 'succeeded',
        attempts = j.attempts + (j.attempted_at is null)::integer,
        attempted_at = coalesce(
          j.attempted_at,
          v_now - coalesce(p_run_times[v_first_plain - 1 + width_bucket(j.id, v_plain)], 0) * interval '1 microsecond'
        ),
        attempted_by = coalesce(j.attempted_by, p_node),
        prefetched_to = null,
        result = null,
        updated_at = v_now
      where j.id = any (v_plain)
        and j.claim = p_claims[v_first_plain - 1 + width_bucket(j.id, v_plain)]
        and not j.reply
        and j.scope = p_scope
        and j.outcome is null
        and (not p_careful or j.id = any (v_free))
      returning j.id
    )
    select array_agg(s.id) into saved from saving s;
  elsif cardinality(v_plain) > 0 then
    -- They go at once, but for those that a trigger would tell of.
    with gone as (
      delete from pgqueuetopia.jobs j
      where j.id = any (v_plain)
        and j.claim = p_claims[v_first_plain - 1 + width_bucket(j.id, v_plain)]
        and j.next_attempt_at is null
        and not j.reply
        and j.scope = p_scope
        and j.outcome is null
        and (not p_careful or j.id = any (v_free))
      returning j.id
    )
    select array_agg(g.id) into saved from gone g;
  end if;
  -- failpoint: plain ones written
  if cardinality(saved) = cardinality(p_ids) and not v_listened_to then
    return;
  end if;
  with saving as (
    update pgqueuetopia.jobs j
    set
      done_at = case when s.outcome is not null then v_now end,
      outcome = s.outcome,
      next_attempt_at = case
        when s.outcome is not null then j.next_attempt_at
        when s.delay is not null then v_now + s.delay
        -- Blocked: the attempt of one that died with its node is given back, and it has failed all the same.
        when s.spent or s.error is not null then 'infinity'
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
        u.delay, u.spent, u.error, u.result, u.run_time
      from unnest(p_ids, p_claims, p_outcomes, p_delays, p_spent, p_errors, p_results, p_run_times)
        as u (id, claim, outcome, delay, spent, error, result, run_time)
      where u.id not in (select unnest(saved))
    ) s
    where j.id = any (array[s.id])
      and j.claim = s.claim
      and j.scope = p_scope
      and j.outcome is null
      -- Who has not heard that this was written, and writes it once more, is not heard: the job waits as it says.
      and (
        s.outcome is null
        and j.next_attempt_at > j.attempted_at
        and j.next_attempt_at = coalesce(j.updated_at + s.delay, 'infinity')
      ) is not true
      and (not p_careful or j.id = any (v_free))
    returning j.id, j.reply and (j.outcome is not null or s.error is not null) as tells
  )
  select coalesce(saved || array_agg(s.id), '{}'), array_agg(s.id) filter (where s.tells) into saved, v_telling
  from saving s;
  if v_telling is not null then
    perform pgqueuetopia.reply(v_telling);
  end if;
  if saved <> '{}' and v_listened_to then
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
