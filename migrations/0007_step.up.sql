-- step(): the one hot path. One call a tick, for all queues of a node: it persists the outcomes that came
-- in and claims the next jobs.

-- False while a transaction that suspends is under way; else it waits until what is claimed now has started. The gate
-- comes first: who holds the other lock already would be given it again and again, before whoever waits for it.
create function pgqueuetopia.may_start(p_scope text) returns boolean
language plpgsql
as $$
begin
  if not (
    pg_try_advisory_xact_lock_shared(pgqueuetopia.lock_key('gate', '*'))
    and pg_try_advisory_xact_lock_shared(pgqueuetopia.lock_key('gate', p_scope))
    and pg_try_advisory_lock_shared(pgqueuetopia.lock_key('starting', '*'))
  ) then
    return false;
  end if;
  if not pg_try_advisory_lock_shared(pgqueuetopia.lock_key('starting', p_scope)) then
    perform pg_advisory_unlock_shared(pgqueuetopia.lock_key('starting', '*'));
    return false;
  end if;
  return true;
end
$$;

-- The jobs that so many steps have claimed have been started: a transaction that suspends need not wait for them any longer.
create function pgqueuetopia.started(p_scope text, p_steps integer) returns void
language plpgsql
as $$
begin
  for i in 1 .. p_steps loop
    perform pg_advisory_unlock_shared(pgqueuetopia.lock_key('starting', '*'));
    perform pg_advisory_unlock_shared(pgqueuetopia.lock_key('starting', p_scope));
  end loop;
end
$$;

-- The lock comes first, the horizon later: a transaction that tested for sleepers before has an id below the
-- horizon, and is waited for by looking; a later one sees the lock and notifies. The horizon is an id of our
-- own: a snapshot's xmax is one past the newest id that has *ended*, and does not cover those that run.
create function pgqueuetopia.fall_asleep(p_scope text, out horizon bigint, out alone boolean)
language plpgsql
as $$
begin
  perform pgqueuetopia.begin_to_wait('sleeping', p_scope);
  -- failpoint: asleep
  horizon := pg_current_xact_id()::text::bigint;
  alone := pg_try_advisory_lock(pgqueuetopia.lock_key('node', p_scope));
  if alone then
    perform pg_advisory_unlock(pgqueuetopia.lock_key('node', p_scope));
  end if;
end
$$;

-- Of queues that are to be looked at those of which the last outcome was saved, and none waits for a row that somebody has locked.
create function pgqueuetopia.settled(
  p_queues text[], p_ids bigint[], p_places timestamptz[], p_snapshots text[], p_lengths integer[],
  p_saved bigint[], p_busy bigint[],
  out queues text[], out ids bigint[], out places timestamptz[], out snapshots text[], out lengths integer[]
)
language plpgsql
as $$
begin
  select array_agg(q.queue), array_agg(q.id), array_agg(q.place), array_agg(q.snapshot), array_agg(q.length)
  into queues, ids, places, snapshots, lengths
  from unnest(p_queues, p_ids, p_places, p_snapshots, p_lengths) q (queue, id, place, snapshot, length)
  where (q.id is null or q.id in (select unnest(p_saved)))
    and q.queue not in (select j.queue from pgqueuetopia.jobs j where j.id = any (p_busy) and not j.topic);
end
$$;

-- Of several that were claimed at once these run now: from now on their attempt counts, whatever happens to their node.
-- Behind each others are prefetched, up to the last that is given here, or null. Returns whether it has noted all.
create function pgqueuetopia.note_begun(p_node text, p_ids bigint[], p_last bigint[], p_careful boolean) returns boolean
language plpgsql
as $$
declare
  v_ids bigint[] := p_ids;
begin
  if p_careful then
    v_ids := array(select j.id from pgqueuetopia.jobs j where j.id = any (p_ids) for update skip locked);
  end if;
  update pgqueuetopia.jobs j
  set
    attempts = j.attempts + (j.attempted_at is null)::integer,
    attempted_at = coalesce(j.attempted_at, clock_timestamp()),
    attempted_by = p_node,
    prefetched_to = b.last
  from unnest(p_ids, p_last) b (id, last)
  where j.id = any (array[b.id]) and j.outcome is null and (not p_careful or j.id = any (v_ids));
  return cardinality(v_ids) = cardinality(p_ids);
end
$$;

-- What a node asks of a step. (A type, and not arguments of their own: those of a call are planned anew each time.) Arrays that
-- may be long are text, for a node's driver takes three times as long to write others. What is empty may be null.
create type pgqueuetopia.question as (
  -- what became of jobs (see persist for their order)
  ids text,
  claims text,
  outcomes text[],
  delays interval[],
  spent boolean[],
  errors jsonb[],
  results jsonb[],
  moves text[],
  run_times text,
  -- the held queues of which nothing runs any longer; the last job of each (null where it is only to be looked at again), the
  -- place at which the queue is if that has ended, the snapshot of the step that claimed it, and how many jobs the queue gets
  -- at once (see claim); which of them have used up their slice
  queues text,
  lasts text,
  places text,
  snapshots text,
  lengths text,
  yielding text,
  -- how many jobs a queue gets at once that is acquired
  length integer,
  -- which of the jobs that were prefetched run by now, and what is prefetched behind them (see note_begun)
  begun text,
  prefetched_to text,
  -- queues whose job runs on, and since when; queues that this node must not run; how many jobs may be claimed; whether to
  -- look for the queues of the dead
  running text,
  claimed_at text,
  avoid text[],
  room integer,
  rescue boolean,
  -- whether this session sleeps; whether finished jobs are kept; whether configs suspend single queues; of how many of the
  -- steps before the jobs have been started since; the least number of a claim; whether to pass over what somebody has locked
  asleep boolean,
  keep boolean,
  queues_suspended boolean,
  started integer,
  least_claim bigint,
  careful boolean,
  -- where the scan of the run queue begins; null: from the start (see acquire); and those of topics
  priorities integer[],
  fronts timestamptz[],
  topic_fronts text,
  -- queues that this node had, and what it had seen when it took them (see take)
  known text,
  seen text,
  -- topics (see line_up): what this node may run of them, and which slots it holds
  topics text[],
  parallelisms integer[],
  rooms integer[],
  served_at timestamptz[],
  held_topics text[],
  held_slots integer[],
  held_ids bigint[],
  held_ended boolean[]
);

-- Jobs as they go out: an array of each column that has no usual value, and whole those that have anything else to say, or all
-- where there are few. (For each value in a composite that it sends the server keeps a kilobyte until the whole answer has gone; for those
-- in an array, none.)
create type pgqueuetopia.job_columns as (
  ids bigint[],
  queues text[],
  actions text[],
  params jsonb[],
  scheduled_at timestamptz[],
  claims bigint[],
  attempted_at timestamptz[],
  unusual pgqueuetopia.claimed_job[]
);

-- (In plpgsql, and not in SQL: its plan is kept.)
create function pgqueuetopia.in_columns(p_jobs pgqueuetopia.claimed_job[]) returns pgqueuetopia.job_columns
language plpgsql
as $$
declare
  c_few constant integer := 10;
  v_columns pgqueuetopia.job_columns;
begin
  if cardinality(p_jobs) < c_few then
    v_columns.unusual := p_jobs;
  else
    select
      array_agg(j.id), array_agg(j.queue), array_agg(j.action), array_agg(j.params), array_agg(j.scheduled_at),
      array_agg(j.claim), array_agg(j.attempted_at),
      array_agg(j) filter (where num_nonnulls(
        j.priority, j.timeout, j.max_backoff, j.max_attempts, j.next_attempt_at, j.attempts, j.errors, j.inserted_at,
        j.updated_at, j.failure_mode, j.reply, j.moved_from
      ) > 0)
    into v_columns
    from unnest(p_jobs) j;
  end if;
  return v_columns;
end
$$;

-- What a step did.
create type pgqueuetopia.answer as (
  claimed pgqueuetopia.job_columns,
  -- what is to be run behind them (see claim)
  prefetched pgqueuetopia.job_columns,
  -- the slots of the jobs of topics, which come last in claimed
  slots integer[],
  saved bigint[],
  busy bigint[],
  again text[],
  suspended boolean,
  held_up boolean,
  -- whether somebody's transaction holds rows that we want: the next steps had better be careful, too
  careful boolean,
  -- whether the server's lock table had no room for another queue
  crowded boolean,
  -- whether there may be more to claim than there was room for
  more boolean,
  -- where the next step's scans begin
  priorities integer[],
  fronts timestamptz[],
  topic_fronts text,
  -- whether it pays to tell what is known (see acquire); null: as before
  drags boolean,
  next_ready_in double precision,
  horizon bigint,
  -- what the looks of this step have seen, at least
  snapshot text
);

create procedure pgqueuetopia.step(
  p_scope text, p_node text, ask pgqueuetopia.question, inout answer pgqueuetopia.answer
)
language plpgsql
as $$
declare
  v_now timestamptz;
  v_ended bigint[] := ask.ids::bigint[];
  v_running text[] := ask.running::text[];
  v_claimed_at timestamptz[] := ask.claimed_at::timestamptz[];
  v_yielding text[] := ask.yielding::text[];
  v_careful boolean := ask.careful;
  v_noted boolean;
  v_skipped boolean;
  v_may_start boolean;
  v_some_queue_suspended boolean;
  v_queues text[];
  v_ids bigint[];
  v_places timestamptz[];
  v_snapshots text[];
  v_lengths integer[];
  -- how many jobs a queue gets at once that goes on without a length of its own, and one that is acquired; null: one each
  v_length integer;
  v_length_acquired integer;
  v_acquired pgqueuetopia.acquired;
  v_looked pgqueuetopia.looked;
  v_claims pgqueuetopia.claims;
  v_room integer;
  v_let_go text[];
  v_held_ended boolean[];
  v_known text[] := v_running || ask.queues::text[];
  v_taken text[];
  v_claimed pgqueuetopia.claimed_job[];
  v_prefetched pgqueuetopia.claimed_job[];
  v_started pgqueuetopia.claimed_job[];
  v_line pgqueuetopia.line;
begin
  answer.crowded := false;
  if ask.ids is null and ask.lengths is null and coalesce(ask.length, 1) = 1 then
    -- What it claims may be forgotten by a crash, and so may that it was started: see since_crash. Not what is prefetched, for
    -- its claim is the one that it had.
    perform set_config('synchronous_commit', 'off', true);
  end if;
  if ask.started > 0 then
    perform pgqueuetopia.started(p_scope, ask.started);
  end if;
  v_may_start := ask.room > 0 and pgqueuetopia.may_start(p_scope);
  answer.held_up := ask.room > 0 and not v_may_start;
  loop
    begin
      if ask.queues is not null then
        v_queues := ask.queues::text[];
        v_ids := ask.lasts::bigint[];
        v_places := ask.places::timestamptz[];
        v_snapshots := ask.snapshots::text[];
        v_lengths := ask.lengths::integer[];
      end if;
      if cardinality(v_ended) > 0 then
        select p.saved, p.busy into answer.saved, answer.busy
        from pgqueuetopia.persist(
          p_scope, p_node, v_ended, ask.claims::bigint[], ask.outcomes, ask.delays, ask.spent, ask.errors, ask.results,
          ask.moves, ask.run_times::bigint[], ask.keep, v_careful
        ) p;
        if cardinality(answer.saved) < cardinality(v_ended) then
          select s.queues, s.ids, s.places, s.snapshots, s.lengths into v_queues, v_ids, v_places, v_snapshots, v_lengths
          from pgqueuetopia.settled(
            v_queues, v_ids, v_places, v_snapshots, v_lengths, answer.saved, answer.busy
          ) s;
        end if;
      end if;
      if ask.begun is not null then
        v_noted := pgqueuetopia.note_begun(p_node, ask.begun::bigint[], ask.prefetched_to::bigint[], v_careful);
      end if;
      -- Who listens is told of each start before the next.
      if (ask.lengths is not null or ask.length > 1) and not pgqueuetopia.is_listened_to(p_scope) then
        v_length := case when ask.lengths is not null then 1 end;
        v_length_acquired := nullif(ask.length, 1);
      end if;
      if cardinality(ask.held_ids) > 0 then
        v_held_ended := array(
          select h.ended and (h.id = any (answer.busy)) is not true from unnest(ask.held_ids, ask.held_ended) h (id, ended)
        );
      end if;
      -- failpoint: persisted
      select
        exists (
          select from pgqueuetopia.job_configs c
          where c.scope in ('*', p_scope) and c.key = 'suspended' and pgqueuetopia.is_suspension(c.key, c.value)
        ),
        ask.queues_suspended and exists (
          select from pgqueuetopia.job_configs c
          where c.scope in ('*', p_scope) and c.key <> 'suspended' and pgqueuetopia.is_suspension(c.key, c.value)
        )
      into answer.suspended, v_some_queue_suspended;
      answer.snapshot := pg_current_snapshot()::text;
      answer.horizon := pg_snapshot_xmin(answer.snapshot::pg_snapshot)::text::bigint;
      v_now := clock_timestamp();
      -- Those that go on come first; what they leave of the room is for others; a queue whose slice is over
      -- goes on only where that is not needed.
      v_claimed := '{}';
      answer.again := '{}';
      if cardinality(v_queues) > 0 or ask.room = 0 then
        -- Without room when a session opens, too: that makes the plan.
        v_looked := pgqueuetopia.look(
          p_scope, v_queues, v_ids, v_places, v_snapshots, v_lengths, v_yielding, false, ask.avoid,
          answer.suspended or not v_may_start, v_some_queue_suspended, v_now
        );
        v_claims := pgqueuetopia.claim(p_scope, p_node, v_looked, v_length, ask.least_claim, v_careful);
        v_claimed := v_claims.claimed;
        v_prefetched := v_claims.prefetched;
        answer.again := v_claims.again;
        v_let_go := v_claims.let_go;
        v_skipped := v_claims.skipped;
      end if;
      v_room := ask.room - cardinality(v_claimed) - cardinality(answer.again);
      answer.more := ask.room > 0 and v_room <= 0;
      -- failpoint: before acquire
      if v_room > 0 and not answer.suspended and v_may_start and not answer.crowded then
        if cardinality(ask.topics) > 0 then
          v_line := pgqueuetopia.line_up(
            p_scope, ask.topics, ask.parallelisms, ask.rooms, ask.served_at, ask.held_topics, ask.held_slots, ask.held_ids,
            v_held_ended, v_room, v_some_queue_suspended, v_careful, v_now, ask.topic_fronts::pgqueuetopia.topic_front[],
            ask.fronts is null
          );
        end if;
        v_acquired := pgqueuetopia.acquire(
          p_scope, v_known, v_claimed_at, ask.avoid, v_room, ask.rescue, v_careful, v_now, ask.topics,
          v_line.priorities, v_line.dues, answer.suspended or not v_may_start, v_some_queue_suspended, ask.priorities, ask.fronts,
          ask.known::text[], ask.seen::text[]
        );
        v_taken := (v_acquired.taken).queues;
        answer.more := v_acquired.is_full or v_acquired.rivals < coalesce(cardinality(v_line.ids), 0)
          or v_acquired.adopted <> '{}';
        v_room := v_room - v_acquired.rivals;
        if v_acquired.rivals > 0 then
          select s.claimed, s.slots into v_started, answer.slots from pgqueuetopia.start_candidates(
            p_node, v_line.ids, v_line.claims, v_line.slots, v_acquired.rivals, ask.least_claim, v_careful
          ) s;
        end if;
      end if;
      if v_taken <> '{}' then
        v_claims := pgqueuetopia.claim(p_scope, p_node, (v_acquired.taken).looked, v_length_acquired, ask.least_claim, v_careful);
        v_claimed := v_claimed || v_claims.claimed;
        v_prefetched := v_prefetched || v_claims.prefetched;
        answer.again := answer.again || v_claims.again;
        v_let_go := v_let_go || v_claims.let_go;
        v_skipped := v_skipped or v_claims.skipped;
      end if;
      if cardinality(v_yielding) > 0 then
        v_looked := pgqueuetopia.look(
          p_scope, v_queues, v_ids, v_places, v_snapshots, v_lengths, v_yielding, true,
          -- They go on where there is room to spare.
          ask.avoid || v_yielding[greatest(v_room - coalesce(cardinality(v_taken), 0), 0) + 1:],
          answer.suspended or not v_may_start, v_some_queue_suspended, v_now
        );
        v_claims := pgqueuetopia.claim(p_scope, p_node, v_looked, v_length, ask.least_claim, v_careful);
        v_claimed := v_claimed || v_claims.claimed;
        v_prefetched := v_prefetched || v_claims.prefetched;
        answer.again := answer.again || v_claims.again;
        v_let_go := v_let_go || v_claims.let_go;
        v_skipped := v_skipped or v_claims.skipped;
      end if;
      if ask.rescue then
        if not ask.asleep then
          perform pgqueuetopia.note_whether_nobody_waits();
        end if;
        perform pgqueuetopia.tidy(
          p_scope, v_running, v_claimed_at, array(select c.queue from unnest(v_claimed) c), answer.snapshot
        );
      end if;
      if answer.snapshot not like '%:' then
        answer.snapshot := pgqueuetopia.rounded(answer.snapshot::pg_snapshot)::text;
      end if;
      answer.drags := v_acquired.drags;
      v_claimed := v_claimed || v_started;
      if cardinality(v_claimed) > 0 and pgqueuetopia.is_listened_to(p_scope) then
        perform pgqueuetopia.tell(p_scope, array(
          select json_build_array('started', c.id, c.queue, coalesce(c.attempts, 1), null)::text
          from unnest(v_claimed) c
        ));
      end if;
      answer.careful := cardinality(answer.busy) > 0 or v_skipped or not v_noted
        or (v_careful and coalesce(cardinality(v_started), 0) < coalesce(v_acquired.rivals, 0));
      answer.priorities := coalesce(v_acquired.priorities, ask.priorities);
      answer.fronts := coalesce(v_acquired.fronts, ask.fronts);
      answer.topic_fronts := coalesce(v_line.fronts::text, ask.topic_fronts);
      exit;
    exception
      when lock_not_available then
        -- Somebody's transaction holds a row that we want: do it again, around what is locked.
        if v_careful then
          raise;
        end if;
        v_careful := true;
        perform pgqueuetopia.keep_only(p_scope, v_known, ask.held_topics, ask.held_slots, ask.held_ids);
      when out_of_memory then
        -- The server's lock table is full: do it again, with the queues that are ours alone.
        if answer.crowded then
          raise;
        end if;
        answer.crowded := true;
        perform pgqueuetopia.keep_only(p_scope, v_known, ask.held_topics, ask.held_slots, ask.held_ids);
    end;
    -- As at first.
    answer.saved := null;
    answer.busy := null;
    answer.slots := null;
    v_prefetched := null;
    v_acquired := null;
    v_taken := null;
    v_started := null;
    v_line := null;
    v_let_go := null;
    v_skipped := null;
  end loop;
  if cardinality(v_claimed) = 0 and not answer.suspended then
    answer.next_ready_in := pgqueuetopia.next_ready(
      p_scope, coalesce(answer.priorities, (pgqueuetopia.priorities(p_scope, v_now)).priorities), v_now
    );
    if cardinality(ask.topics) > 0 then
      answer.next_ready_in := least(answer.next_ready_in, pgqueuetopia.next_topic_due(
        p_scope, ask.topics, v_now, answer.topic_fronts::pgqueuetopia.topic_front[]
      ));
    end if;
    if v_line.contended then
      -- Other nodes have all the slots of a topic, and go on by themselves; but one of them may leave.
      answer.next_ready_in := least(answer.next_ready_in, 0.25);
    end if;
    if v_acquired.contended then
      -- A due queue is locked by somebody who has not marked it yet, or is about to let it go.
      answer.next_ready_in := least(answer.next_ready_in, 0.05);
    end if;
  end if;
  if v_claimed <> '{}' then
    answer.claimed := pgqueuetopia.in_columns(v_claimed);
  end if;
  if v_prefetched <> '{}' then
    answer.prefetched := pgqueuetopia.in_columns(v_prefetched);
  end if;
  -- failpoint: before commit
  commit;
  -- failpoint: committed
  -- Only now: whoever locks a queue that was let go must see what became of its jobs.
  v_let_go := v_let_go || v_acquired.adopted;
  if v_let_go <> '{}' then
    perform pg_advisory_unlock(pgqueuetopia.lock_key('queue', p_scope, q.queue))
    from unnest(v_let_go) q (queue);
  end if;
  if cardinality(ask.held_ids) > 0 or cardinality(v_line.ids) > 0 then
    perform pgqueuetopia.let_go_of_slots(
      p_scope, ask.held_topics, ask.held_slots, ask.held_ids, v_held_ended, v_line, v_started, answer.slots
    );
  end if;
  if cardinality(v_claimed) = 0 and v_may_start then
    perform pgqueuetopia.started(p_scope, 1);
  end if;
end
$$;
