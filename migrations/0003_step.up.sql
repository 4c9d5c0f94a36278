-- step(): the one hot path. One call a tick, for all queues of a node: it persists the outcomes that
-- came in and claims the next jobs. Read it from the bottom: step() calls persist(), acquire(), claim().
--
-- The plans must not depend on statistics, for these tables grow from nothing to millions of rows between
-- two looks of autovacuum: the node's session leaves the planner index scans and nested loops alone, and
-- "outcome is null" (the same as "done_at is null", by a constraint) keeps it off the partial indexes
-- where a row is found by its id.
--
-- A line "failpoint: name" marks a place between two statements where the tests stop the world.

-- What a node needs of a job to run it. Params of more than 64 kB (compressed) are left out, to be
-- fetched by whoever runs the job: a hundred large ones at once would not fit into one answer.
create type pgqueuetopia.claimed_job as (
  id bigint,
  queue text,
  action text,
  params jsonb,
  priority integer,
  timeout interval,
  max_backoff interval,
  max_attempts integer,
  scheduled_at timestamptz,
  next_attempt_at timestamptz,
  attempts integer,
  claim bigint,
  attempted_at timestamptz,
  attempted_by text,
  errors jsonb,
  inserted_at timestamptz,
  updated_at timestamptz
);

-- In plpgsql, and not in SQL: its plan is kept.
create function pgqueuetopia.some_suspended(p_scope text, p_key text) returns boolean
language plpgsql stable
as $$
begin
  return exists (
    select from pgqueuetopia.job_configs c
    where c.scope in ('*', p_scope) and c.key = p_key and pgqueuetopia.is_suspension(c.key, c.value)
  );
end
$$;

-- The newest twenty errors are kept.
create function pgqueuetopia.append_error(errors jsonb, error jsonb, failed_at timestamptz) returns jsonb
language sql immutable parallel safe
return case when jsonb_array_length(errors) >= 20 then errors - 0 else errors end
  || jsonb_build_array(error || jsonb_build_object('at', failed_at));

-- Write what became of jobs; the fence is claim. An outcome that is null leaves the job pending: after
-- the delay, or blocked until an operator acts where that is null too. An attempt that is not spent is
-- given back. Returns what was saved, and what could not be because somebody has locked the row.
create function pgqueuetopia.persist(
  p_scope text,
  p_ids bigint[],
  p_claims bigint[],
  p_outcomes text[],
  p_delays interval[],
  p_spent boolean[],
  p_errors jsonb[],
  p_results jsonb[],
  p_keep boolean,
  p_careful boolean,
  out saved bigint[],
  out busy bigint[]
)
language plpgsql
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_ids bigint[] := p_ids;
begin
  busy := '{}';
  if p_careful then
    v_ids := array(
      select j.id from pgqueuetopia.jobs j where j.id = any (p_ids) for update skip locked
    );
    busy := array(
      select j.id
      from pgqueuetopia.jobs j
      join unnest(p_ids, p_claims) s (id, claim) on j.id = s.id and j.claim = s.claim
      where j.done_at is null and j.id <> all (v_ids)
    );
  end if;
  with saving as (
    update pgqueuetopia.jobs j
    set
      done_at = case when s.outcome is not null then v_now end,
      outcome = s.outcome,
      next_attempt_at = case
        when s.outcome is not null then j.next_attempt_at
        when s.delay is null then 'infinity'
        else v_now + s.delay
      end,
      attempts = case when s.spent then j.attempts else greatest(j.attempts - 1, 0) end,
      errors = case
        when s.error is null then j.errors else pgqueuetopia.append_error(j.errors, s.error, v_now)
      end,
      result = s.result,
      updated_at = v_now
    from unnest(p_ids, p_claims, p_outcomes, p_delays, p_spent, p_errors, p_results)
      as s (id, claim, outcome, delay, spent, error, result)
    where j.id = s.id
      and j.claim = s.claim
      and j.scope = p_scope
      and j.outcome is null
      and (not p_careful or j.id = any (v_ids))
    returning j.id
  )
  select coalesce(array_agg(s.id), '{}') into saved from saving s;
  if not p_keep then
    delete from pgqueuetopia.jobs j where j.id = any (saved) and j.done_at is not null;
  end if;
end
$$;

-- Lock queues that are due, highest priority first, then the one due longest. The lock comes before the
-- snapshot that reads the head (in claim), or a job that another node has just finished would run again.
-- A taken row belongs to a node; a rescue looks at those too, and finds the queues of the dead.
create function pgqueuetopia.acquire(
  p_scope text,
  p_held text[],
  p_avoid text[],
  p_room integer,
  p_rescue boolean,
  p_careful boolean,
  p_now timestamptz,
  out queues text[],
  out contended boolean
)
language plpgsql
as $$
declare
  r record;
  v_rows bigint[] := '{}';
  v_surplus bigint[] := '{}';
  v_priority integer;
begin
  queues := '{}';
  contended := false;
  select max(q.priority) into v_priority from pgqueuetopia.run_queue q where q.scope = p_scope;
  while v_priority is not null and cardinality(v_rows) < p_room loop
    for r in
      select q.id, q.queue, q.taken, q.queue = any (p_held) as held
      from pgqueuetopia.run_queue q
      where q.scope = p_scope
        and q.priority = v_priority
        and q.ready_at <= p_now
        and (p_rescue or not q.taken)
        and q.queue <> all (p_avoid)
      order by q.ready_at, q.id
      limit 10000
    loop
      -- failpoint: scanned
      if r.held or r.queue = any (queues) then
        -- One row is enough for a queue that is ours: we look again before we let it go.
        if not r.taken then
          v_surplus := v_surplus || r.id;
        end if;
      elsif pg_try_advisory_lock(pgqueuetopia.lock_key('queue', p_scope, r.queue)) then
        v_rows := v_rows || r.id;
        queues := queues || r.queue;
        exit when cardinality(v_rows) >= p_room;
      elsif not r.taken then
        contended := true;
      end if;
    end loop;
    select max(q.priority) into v_priority
    from pgqueuetopia.run_queue q
    where q.scope = p_scope and q.priority < v_priority;
  end loop;
  -- failpoint: locked
  if not p_careful and cardinality(v_surplus) > 0 then
    delete from pgqueuetopia.run_queue q where q.id = any (v_surplus);
  end if;
  if cardinality(v_rows) > 0 then
    queues := pgqueuetopia.take(p_scope, v_rows, queues, p_careful);
  end if;
end
$$;

-- Mark the rows by which queues were locked, and return the queues that may be run. A row that is gone
-- was removed by the former holder as it let go: it left another one if jobs remain, so that queue is
-- left for the next look. A queue with a row that is taken already was left by a node that died: its job
-- that was running becomes one that waits for its next attempt, now, so that nothing overtakes it. To
-- find it the whole queue is read, which nobody else ever has to.
create function pgqueuetopia.take(
  p_scope text,
  p_rows bigint[],
  p_queues text[],
  p_careful boolean
) returns text[]
language plpgsql
as $$
declare
  v_rows bigint[] := p_rows;
  v_queues text[];
  v_orphans text[];
begin
  if p_careful then
    v_rows := array(
      select q.id from pgqueuetopia.run_queue q
      where q.id = any (p_rows) and not q.taken
      for update skip locked
    );
  end if;
  with marked as (
    update pgqueuetopia.run_queue q set taken = true
    where q.id = any (v_rows)
    returning q.queue, exists (
      select from pgqueuetopia.run_queue t
      where t.scope = p_scope and t.queue = q.queue and t.taken
    ) as orphaned
  )
  select coalesce(array_agg(m.queue), '{}'), array_agg(m.queue) filter (where m.orphaned)
  into v_queues, v_orphans
  from marked m;
  if v_orphans is not null then
    update pgqueuetopia.jobs j set next_attempt_at = clock_timestamp()
    where j.id = any (array(
      select o.id
      from unnest(v_orphans) q (queue)
      cross join lateral (
        select o.id from pgqueuetopia.jobs o
        where o.scope = p_scope
          and o.queue = q.queue
          and o.done_at is null
          and o.claim > 0
          and o.next_attempt_at is null
        offset 0
      ) o
    ))
    -- Once more, for the row may have changed while we waited for it: its node writes late, by the pool.
    and j.outcome is null
    and j.next_attempt_at is null;
  end if;
  perform pg_advisory_unlock(pgqueuetopia.lock_key('queue', p_scope, q.queue))
  from unnest(p_queues) q (queue)
  where q.queue <> all (v_queues);
  return v_queues;
end
$$;

-- Look at the heads of queues that this session has locked, in a new snapshot, and claim those that are
-- due. Rows of a queue without a due head go in the same statement, so that a job which commits now is
-- not seen and its row not removed. Looks at the queues that go on and whose slice is over or not, as
-- asked, and at those just acquired. A queue whose slice is over goes on only where there is room to spare;
-- one whose job could not be saved is not looked at.
create function pgqueuetopia.claim(
  p_scope text,
  p_node text,
  p_ids bigint[],
  p_queues text[],
  p_after_at timestamptz[],
  p_after_id bigint[],
  p_slice_over boolean[],
  p_over boolean,
  p_avoid text[],
  p_acquired text[],
  p_busy bigint[],
  p_spare integer,
  p_suspended boolean,
  p_check_suspension boolean,
  p_careful boolean,
  out claimed pgqueuetopia.claimed_job[],
  out again text[],
  out let_go text[]
)
language plpgsql
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  -- failpoint: before look
  with asked as materialized (
    select
      q.queue, q.after_at, q.after_id,
      q.queue = any (p_avoid)
      or (p_over and row_number() over (order by q.n) > p_spare) as yields
    from unnest(p_ids, p_queues, p_after_at, p_after_id, p_slice_over)
      with ordinality as q (id, queue, after_at, after_id, slice_over, n)
    where q.slice_over = p_over and (q.id is null or q.id <> all (p_busy))
    union all
    select q.queue, null, null, false from unnest(p_acquired) q (queue)
  ),
  look as materialized (
    select
      a.queue,
      a.suspended,
      j.id,
      j.priority,
      greatest(j.scheduled_at, j.next_attempt_at) as due_at,
      not (a.yields or a.suspended or p_suspended)
      and coalesce(greatest(j.scheduled_at, j.next_attempt_at) <= v_now, false) as due
    from (
      select
        q.*,
        p_check_suspension
        and pgqueuetopia.some_suspended(p_scope, q.queue || '_suspended') as suspended
      from asked q
    ) a
    left join pgqueuetopia.jobs j on j.id = coalesce(
      -- The next one of a queue that goes on: dead index entries are passed once.
      (
        select n.id from pgqueuetopia.jobs n
        where n.scope = p_scope and n.queue = a.queue and n.done_at is null
          and (n.scheduled_at, n.id) > (a.after_at, a.after_id)
        order by n.scheduled_at, n.id limit 1
      ),
      -- A head that waits for its next attempt: nothing overtakes it.
      (
        select w.id from pgqueuetopia.jobs w
        where w.scope = p_scope and w.queue = a.queue
          and w.done_at is null and w.next_attempt_at is not null
        order by w.next_attempt_at, w.id limit 1
      ),
      (
        select f.id from pgqueuetopia.jobs f
        where f.scope = p_scope and f.queue = a.queue and f.done_at is null
        order by f.scheduled_at, f.id limit 1
      )
    )
  ),
  free as (
    select j.id from pgqueuetopia.jobs j
    where p_careful and j.id = any (array(select l.id from look l where l.due)) and j.outcome is null
    for update skip locked
  ),
  claiming as (
    update pgqueuetopia.jobs j
    set
      claim = j.claim + 1,
      attempts = j.attempts + 1,
      attempted_at = v_now,
      attempted_by = p_node
    from look l
    where l.due
      and j.id = l.id
      and j.outcome is null
      and (not p_careful or j.id in (select f.id from free f))
    returning j.queue, row(
      j.id, j.queue, j.action,
      case when pg_column_size(j.params) <= 65536 then j.params end,
      j.priority, j.timeout, j.max_backoff, j.max_attempts, j.scheduled_at, j.next_attempt_at,
      j.attempts, j.claim, j.attempted_at, j.attempted_by, j.errors, j.inserted_at, j.updated_at
    )::pgqueuetopia.claimed_job as job
  ),
  gone as (
    delete from pgqueuetopia.run_queue q
    where q.id = any (array(
      select r.id
      from look l
      -- "offset 0" keeps the planner from reading the rows of every queue.
      cross join lateral (
        select r.id from pgqueuetopia.run_queue r
        where r.scope = p_scope and r.queue = l.queue
        offset 0
      ) r
      where not l.due and not p_careful
    ))
  ),
  left_behind as (
    insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at)
    select p_scope, l.queue, l.priority,
      case when l.due then v_now + interval '1 second' else greatest(l.due_at, v_now) end
    from look l
    where l.id is not null
      and not l.suspended
      and (not l.due or (p_careful and l.id not in (select f.id from free f)))
  )
  select
    (select coalesce(array_agg(c.job), '{}') from claiming c),
    -- Due, but ended by somebody else in this very moment: still ours, to be looked at again.
    coalesce(array_agg(l.queue) filter (where l.due and not p_careful), '{}'),
    coalesce(array_agg(l.queue) filter (where not l.due or p_careful), '{}')
  into claimed, again, let_go
  from look l
  where l.queue not in (select c.queue from claiming c);
end
$$;

-- When the next queue of a scope that is not due yet will be, in seconds from now; null if none.
create function pgqueuetopia.next_ready(p_scope text, p_now timestamptz) returns double precision
language plpgsql
as $$
declare
  v_priority integer;
  v_ready_at timestamptz;
  v_next timestamptz;
begin
  select max(q.priority) into v_priority from pgqueuetopia.run_queue q where q.scope = p_scope;
  while v_priority is not null loop
    select q.ready_at into v_ready_at
    from pgqueuetopia.run_queue q
    where q.scope = p_scope
      and q.priority = v_priority
      and q.ready_at > p_now
      and q.ready_at < 'infinity'
    order by q.ready_at
    limit 1;
    v_next := least(v_next, v_ready_at);
    select max(q.priority) into v_priority
    from pgqueuetopia.run_queue q
    where q.scope = p_scope and q.priority < v_priority;
  end loop;
  return extract(epoch from v_next - p_now);
end
$$;

-- The jobs that were claimed have been started: a transaction that suspends need not wait any longer.
create function pgqueuetopia.started(p_scope text) returns void
language plpgsql
as $$
begin
  perform pg_advisory_unlock_shared(pgqueuetopia.lock_key('starting', '*'));
  perform pg_advisory_unlock_shared(pgqueuetopia.lock_key('starting', p_scope));
end
$$;

-- False while a transaction that suspends is under way.
create function pgqueuetopia.may_start(p_scope text) returns boolean
language plpgsql
as $$
begin
  if not pg_try_advisory_lock_shared(pgqueuetopia.lock_key('starting', '*')) then
    return false;
  end if;
  if not pg_try_advisory_lock_shared(pgqueuetopia.lock_key('starting', p_scope)) then
    perform pg_advisory_unlock_shared(pgqueuetopia.lock_key('starting', '*'));
    return false;
  end if;
  return true;
end
$$;

-- The locks come first, the horizon in a later snapshot: a transaction that tested for sleepers before
-- has an id below the horizon, and is waited for by looking; a later one sees the lock and notifies.
create function pgqueuetopia.fall_asleep(p_scope text, out horizon bigint, out alone boolean)
language plpgsql
as $$
begin
  perform pg_advisory_lock_shared(pgqueuetopia.lock_key('sleeping', p_scope));
  -- failpoint: asleep
  horizon := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;
  alone := pg_try_advisory_lock(pgqueuetopia.lock_key('node', p_scope));
  if alone then
    perform pg_advisory_unlock(pgqueuetopia.lock_key('node', p_scope));
  end if;
end
$$;

-- Remove the rows that came in behind jobs that run on: one row is enough for a queue that is ours.
create function pgqueuetopia.tidy(p_scope text, p_running text[]) returns void
language sql
as $$
  delete from pgqueuetopia.run_queue q
  where q.id = any (array(
    select r.id
    from unnest(p_running) o (queue)
    cross join lateral (
      select r.id from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = o.queue and not r.taken
      offset 0
    ) r
  ))
$$;

-- Unlock every queue but these: after an error, for an advisory lock survives a rollback.
create function pgqueuetopia.keep_only(p_scope text, p_queues text[]) returns void
language sql
as $$
  select pg_advisory_unlock(l.key)
  from (
    select (l.classid::bigint << 32) | l.objid::bigint as key
    from pg_locks l
    where l.pid = pg_backend_pid()
      and l.locktype = 'advisory'
      and l.objsubid = 1
      and l.mode = 'ExclusiveLock'
  ) l
  where l.key not in (
    select pgqueuetopia.lock_key('queue', p_scope, q.queue) from unnest(p_queues) q (queue)
  )
$$;

create procedure pgqueuetopia.step(
  p_scope text,
  p_node text,
  -- what became of jobs (an id is null where a held queue is only to be looked at again), where their
  -- queues were if they ended, and whether the queue's slice is over
  p_ids bigint[],
  p_claims bigint[],
  p_outcomes text[],
  p_delays interval[],
  p_spent boolean[],
  p_errors jsonb[],
  p_results jsonb[],
  p_queues text[],
  p_after_at timestamptz[],
  p_after_id bigint[],
  p_slice_over boolean[],
  -- queues whose job runs on; queues that this node must not run; how many jobs may be claimed; whether to
  -- look for the queues of the dead
  p_running text[],
  p_avoid text[],
  p_room integer,
  p_rescue boolean,
  -- whether finished jobs are kept; whether the jobs of the step before have been started since
  p_keep boolean,
  p_started boolean,
  inout claimed pgqueuetopia.claimed_job[],
  inout saved bigint[],
  inout busy bigint[],
  inout again text[],
  inout suspended boolean,
  inout held_up boolean,
  inout next_ready_in double precision,
  inout horizon bigint
)
language plpgsql
as $$
declare
  v_now timestamptz;
  v_careful boolean := false;
  v_some_queue_suspended boolean;
  v_acquired text[];
  v_contended boolean := false;
  v_room integer;
  v_let_go text[];
begin
  if p_started then
    perform pgqueuetopia.started(p_scope);
  end if;
  held_up := not pgqueuetopia.may_start(p_scope);
  loop
    begin
      saved := '{}';
      busy := '{}';
      v_acquired := '{}';
      if cardinality(p_ids) > 0 then
        select p.saved, p.busy into saved, busy from pgqueuetopia.persist(
          p_scope, p_ids, p_claims, p_outcomes, p_delays, p_spent, p_errors, p_results, p_keep, v_careful
        ) p;
      end if;
      -- failpoint: persisted
      select
        pgqueuetopia.some_suspended(p_scope, 'suspended'),
        exists (
          select from pgqueuetopia.job_configs c
          where c.scope in ('*', p_scope)
            and c.key <> 'suspended'
            and pgqueuetopia.is_suspension(c.key, c.value)
        )
      into suspended, v_some_queue_suspended;
      horizon := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
      v_now := clock_timestamp();
      -- Those that go on come first; what they leave of the room is for others; a queue whose slice is over
      -- goes on only where that is not needed.
      select c.* into claimed, again, v_let_go from pgqueuetopia.claim(
        p_scope, p_node, p_ids, p_queues, p_after_at, p_after_id, p_slice_over, false, p_avoid, '{}',
        busy, 0, suspended or held_up, v_some_queue_suspended, v_careful
      ) c;
      v_room := p_room - cardinality(claimed) - cardinality(again);
      -- failpoint: before acquire
      if v_room > 0 and not suspended and not held_up then
        select a.queues, a.contended into v_acquired, v_contended from pgqueuetopia.acquire(
          p_scope, p_running || p_queues, p_avoid || v_let_go, v_room, p_rescue, v_careful, v_now
        ) a;
      end if;
      if cardinality(v_acquired) > 0 or true = any (p_slice_over) then
        select step.claimed || c.claimed, step.again || c.again, v_let_go || c.let_go
        into claimed, again, v_let_go
        from pgqueuetopia.claim(
          p_scope, p_node, p_ids, p_queues, p_after_at, p_after_id, p_slice_over, true, p_avoid, v_acquired,
          busy, v_room - cardinality(v_acquired), suspended or held_up, v_some_queue_suspended, v_careful
        ) c;
      end if;
      if p_rescue and not v_careful then
        perform pgqueuetopia.tidy(p_scope, p_running);
      end if;
      exit;
    exception when lock_not_available then
      -- Somebody's transaction holds a row that we want: do it again, around what is locked.
      if v_careful then
        raise;
      end if;
      v_careful := true;
      perform pgqueuetopia.keep_only(p_scope, p_running || p_queues);
    end;
  end loop;
  if cardinality(claimed) = 0 and not suspended then
    next_ready_in := pgqueuetopia.next_ready(p_scope, v_now);
    if v_contended then
      -- A due queue is locked by somebody who has not marked it yet, or is about to let it go.
      next_ready_in := least(next_ready_in, 0.05);
    end if;
  end if;
  -- failpoint: before commit
  commit;
  -- failpoint: committed
  -- Only now: whoever locks a queue that was let go must see what became of its jobs.
  perform pg_advisory_unlock(pgqueuetopia.lock_key('queue', p_scope, q.queue))
  from unnest(v_let_go) q (queue);
  if cardinality(claimed) = 0 and not held_up then
    perform pgqueuetopia.started(p_scope);
  end if;
end
$$;
