-- Topics: queues with more than one slot. A slot is an advisory lock, and a job that runs holds one of its own besides,
-- so that two slots never take the same one. What a node that died ran is found by that lock, too: its job was
-- started, and nobody holds it. A blocking queue has one slot, the lock of the queue.

-- What a config says that must be a number; null where there is none. A scope's own wins over that of every scope.
create function pgqueuetopia.number_of(p_scope text, p_key text) returns integer
language plpgsql stable
as $$
begin
  return (
    select c.value::integer
    from pgqueuetopia.job_configs c
    where c.scope in ('*', p_scope) and c.key = p_key and c.value ~ '^\s*-?[0-9]{1,9}\s*$'
    order by c.scope = '*'
    limit 1
  );
end
$$;

-- Which priorities a topic's jobs have, the highest first. Those that are known already are believed: only what lies
-- between them is looked for, so that nobody passes their dead rows again and again.
create function pgqueuetopia.topic_priorities(p_scope text, p_topic text, p_known integer[]) returns integer[]
language plpgsql stable
as $$
declare
  v_below bigint := 2147483648;
  v_known integer;
  v_found integer;
  v_priorities integer[] := '{}';
begin
  loop
    v_known := (select max(k) from unnest(p_known) k where k < v_below);
    v_found := (
      select j.priority
      from pgqueuetopia.jobs j
      where j.scope = p_scope
        and j.queue = p_topic
        and j.topic
        and j.done_at is null
        and j.priority < v_below
        and j.priority > coalesce(v_known, -2147483649)
      order by j.priority desc
      limit 1
    );
    v_below := coalesce(v_found, v_known);
    exit when v_below is null;
    v_priorities := v_priorities || v_below::integer;
  end loop;
  return v_priorities;
end
$$;

-- Where the next scan of a topic begins, within a priority (see fronts in acquire).
create type pgqueuetopia.topic_front as (topic text, priority integer, due_at timestamptz);

-- Jobs that may be started next, each with its slot; whether other nodes have all the slots of a topic; the fronts.
create type pgqueuetopia.line as (
  ids bigint[],
  claims bigint[],
  topics text[],
  slots integer[],
  priorities integer[],
  dues timestamptz[],
  contended boolean,
  fronts pgqueuetopia.topic_front[]
);

-- In how many of these slots of a topic jobs run: of other nodes, or of this one, which holds some for jobs that have ended.
create function pgqueuetopia.used_slots(
  p_scope text, p_topic text, p_from integer, p_to integer, p_held integer[], p_ended integer[]
) returns integer
language plpgsql
as $$
declare
  v_used integer := 0;
begin
  for k in p_from .. p_to loop
    if k = any (p_held) then
      v_used := v_used + (k <> all (p_ended))::integer;
    elsif pg_try_advisory_lock(pgqueuetopia.lock_key('slot', p_scope, p_topic || chr(31) || k)) then
      perform pg_advisory_unlock(pgqueuetopia.lock_key('slot', p_scope, p_topic || chr(31) || k));
    else
      v_used := v_used + 1;
    end if;
  end loop;
  return v_used;
end
$$;

-- Line up those jobs of topics that may be started next: due, and with a slot each that is free. Both are locked before
-- the update that starts them reads the job again. In the order in which they compete with the queues: by the
-- topic's priority (a config's, else the job's), then the one due longest; a topic that was served is due from then on, or
-- one with a million jobs would starve all others.
--
-- A job that was started, and whose lock is free, was left by a node that died, or whose session was ended: it waits a
-- little for a report, as in take(), and takes up room as long as this step lasts. The fronts pass what is dead, and what was
-- started: everything, from time to time, to look for that as well.
create function pgqueuetopia.line_up(
  p_scope text,
  -- the topics that this node may run, how many jobs of each in the whole cluster, for how many more here is room, and when
  -- one was last started here
  p_topics text[],
  p_parallelisms integer[],
  p_rooms integer[],
  p_served_at timestamptz[],
  -- the slots that are held here, by which jobs, and whether the job has ended
  p_held_topics text[],
  p_held_slots integer[],
  p_held_ids bigint[],
  p_held_ended boolean[],
  p_room integer,
  p_check_suspension boolean,
  p_careful boolean,
  p_now timestamptz,
  p_fronts pgqueuetopia.topic_front[],
  p_everything boolean
) returns pgqueuetopia.line
language plpgsql
as $$
declare
  r record;
  ids bigint[] := '{}';
  claims bigint[] := '{}';
  topics text[] := '{}';
  slots integer[] := '{}';
  priorities integer[] := '{}';
  dues timestamptz[] := '{}';
  contended boolean := false;
  fronts pgqueuetopia.topic_front[] := '{}';
  c_late constant interval := interval '250 milliseconds';
  c_most constant integer := 20;
  c_highest constant integer := 64;
  v_known integer[];
  v_configured integer;
  v_surplus integer;
  v_base integer;
  v_front timestamptz;
  v_first timestamptz;
  v_topic text;
  v_limit integer;
  v_rank integer;
  v_left integer;
  v_priority integer;
  v_priorities integer[];
  v_held integer[];
  v_free integer[];
  v_next integer;
  v_slot integer;
  v_running bigint[] := array(
    select h.id from unnest(p_held_ids, p_held_ended) h (id, ended) where not h.ended
  );
  v_mine bigint[] := array(select h.id from unnest(p_held_ids, p_held_ended) h (id, ended) where h.ended);
begin
  <<each_topic>>
  for i in 1 .. cardinality(p_topics) loop
    v_topic := p_topics[i];
    v_left := least(p_room, p_rooms[i]);
    continue when v_left <= 0
      or (p_check_suspension and pgqueuetopia.some_suspended(p_scope, v_topic || '_suspended'));
    v_known := array(select f.priority from unnest(p_fronts) f where f.topic = v_topic);
    if p_everything and cardinality(v_known) > c_most then
      v_known := '{}';
    end if;
    v_priorities := pgqueuetopia.topic_priorities(p_scope, v_topic, v_known);
    continue when v_priorities = '{}';
    v_configured := pgqueuetopia.number_of(p_scope, v_topic || '_parallelism');
    v_limit := coalesce(v_configured, p_parallelisms[i]);
    v_rank := pgqueuetopia.number_of(p_scope, v_topic || '_priority');
    v_held := array(
      select h.slot from unnest(p_held_topics, p_held_slots) h (topic, slot) where h.topic = v_topic
    );
    v_free := array(
      select h.slot
      from unnest(p_held_topics, p_held_slots, p_held_ended) h (topic, slot, ended)
      where h.topic = v_topic and h.ended
    );
    v_next := 0;
    -- So many jobs run in slots beyond what a config allows now: as many of the others stay empty until those have ended.
    v_surplus := 0;
    if v_configured is not null then
      v_surplus := pgqueuetopia.used_slots(
        p_scope, v_topic, greatest(v_limit, 0) + 1, greatest(p_parallelisms[i], c_highest), v_held, v_free
      );
    end if;
    v_free := array(select f from unnest(v_free) f where f <= v_limit);
    v_base := cardinality(fronts);
    -- Of all its priorities, for there may be no room to come to the lower ones.
    fronts := fronts || array(
      select (
        v_topic, p.priority, case when p_everything then '-infinity' else coalesce(f.due_at, '-infinity') end
      )::pgqueuetopia.topic_front
      from unnest(v_priorities) with ordinality p (priority, n)
      left join unnest(p_fronts) f on f.topic = v_topic and f.priority = p.priority
      order by p.n
    );
    for k in 1 .. cardinality(v_priorities) loop
      v_priority := v_priorities[k];
      v_front := fronts[v_base + k].due_at;
      v_first := null;
      for r in
        select
          j.id, j.claim, greatest(j.scheduled_at, j.next_attempt_at) as due_at,
          j.claim > 0 and j.attempted_at >= coalesce(j.next_attempt_at, '-infinity') as is_started
        from pgqueuetopia.jobs j
        where j.scope = p_scope
          and j.queue = v_topic
          and j.topic
          and j.done_at is null
          and j.priority = v_priority
          and greatest(j.scheduled_at, j.next_attempt_at) >= v_front
          and greatest(j.scheduled_at, j.next_attempt_at) <= p_now
        order by greatest(j.scheduled_at, j.next_attempt_at), j.id
      loop
        -- failpoint: lined up
        if v_first is null and not r.is_started then
          v_first := r.due_at;
          fronts[v_base + k].due_at := greatest(v_front, v_first - c_late);
        end if;
        continue when r.id = any (v_running)
          or not (r.id = any (v_mine) or pg_try_advisory_lock(pgqueuetopia.lock_key('job', p_scope, r.id::text)));
        if r.is_started and r.id <> all (v_mine) then
          -- Somebody may have locked it: a careful look leaves it to a later one.
          if not p_careful then
            perform pgqueuetopia.wait_for_report(p_scope, array[r.id]);
          end if;
          perform pg_advisory_unlock(pgqueuetopia.lock_key('job', p_scope, r.id::text));
          v_left := v_left - 1;
          continue each_topic when v_left = 0;
          continue;
        end if;
        while v_surplus > 0 and cardinality(v_free) > 0 loop
          v_surplus := v_surplus - 1;
          v_free := v_free[2:];
        end loop;
        v_slot := v_free[1];
        v_free := v_free[2:];
        while v_slot is null and v_next < v_limit loop
          v_next := v_next + 1;
          if v_next <> all (v_held)
            and pg_try_advisory_lock(pgqueuetopia.lock_key('slot', p_scope, v_topic || chr(31) || v_next))
          then
            if v_surplus = 0 then
              v_slot := v_next;
            else
              v_surplus := v_surplus - 1;
              perform pg_advisory_unlock(pgqueuetopia.lock_key('slot', p_scope, v_topic || chr(31) || v_next));
            end if;
          end if;
        end loop;
        if v_slot is null then
          if r.id <> all (v_mine) then
            perform pg_advisory_unlock(pgqueuetopia.lock_key('job', p_scope, r.id::text));
          end if;
          contended := contended or v_limit > 0;
          continue each_topic;
        end if;
        ids := ids || r.id;
        claims := claims || r.claim;
        topics := topics || v_topic;
        slots := slots || v_slot;
        priorities := priorities || coalesce(v_rank, v_priority);
        dues := dues || greatest(r.due_at, p_served_at[i]);
        v_left := v_left - 1;
        continue each_topic when v_left = 0;
      end loop;
      if v_first is null then
        fronts[v_base + k].due_at := greatest(v_front, p_now - c_late);
      end if;
    end loop;
  end loop;
  if cardinality(p_topics) > 1 then
    return (
      select row(
        array_agg(c.id), array_agg(c.claim), array_agg(c.topic), array_agg(c.slot), array_agg(c.priority),
        array_agg(c.due), contended, fronts
      )::pgqueuetopia.line
      from (
        select c.*
        from unnest(ids, claims, topics, slots, priorities, dues)
          with ordinality c (id, claim, topic, slot, priority, due, n)
        order by c.priority desc, c.due, c.n
      ) c
    );
  end if;
  return (ids, claims, topics, slots, priorities, dues, contended, fronts)::pgqueuetopia.line;
end
$$;

-- Start the first of those that are lined up; one that somebody has ended, changed or locked since is left out.
create function pgqueuetopia.start_candidates(
  p_node text,
  p_ids bigint[],
  p_claims bigint[],
  p_slots integer[],
  p_first integer,
  p_least_claim bigint,
  p_careful boolean,
  out claimed pgqueuetopia.claimed_job[],
  out slots integer[]
)
language plpgsql
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  -- failpoint: before start
  with chosen as materialized (
    select c.id, c.claim, c.slot, c.n
    from unnest(p_ids[:p_first], p_claims[:p_first], p_slots[:p_first]) with ordinality c (id, claim, slot, n)
  ),
  free as (
    select j.id from pgqueuetopia.jobs j
    where p_careful and j.id = any (p_ids[:p_first]) and j.outcome is null
    for update skip locked
  ),
  starting as (
    update pgqueuetopia.jobs j
    set
      claim = greatest(j.claim + 1, p_least_claim),
      attempts = j.attempts + 1,
      attempted_at = v_now,
      attempted_by = p_node
    from chosen c
    where j.id = any (array[c.id])
      and j.claim = c.claim
      and j.outcome is null
      and coalesce(j.next_attempt_at, '-infinity') <= v_now
      and (not p_careful or j.id in (select f.id from free f))
    returning c.n, c.slot, pgqueuetopia.as_claimed(j, 0) as job
  )
  select coalesce(array_agg(s.job order by s.n), '{}'), coalesce(array_agg(s.slot order by s.n), '{}')
  into claimed, slots
  from starting s;
end
$$;

-- Unlock what ended or was lined up, but for what has been started since.
create function pgqueuetopia.let_go_of_slots(
  p_scope text,
  p_held_topics text[],
  p_held_slots integer[],
  p_held_ids bigint[],
  p_held_ended boolean[],
  p_line pgqueuetopia.line,
  p_started pgqueuetopia.claimed_job[],
  p_started_slots integer[]
) returns void
language plpgsql
as $$
begin
  perform pg_advisory_unlock(f.key)
  from (
    with held (topic, slot, id) as materialized (
      select h.topic, h.slot, h.id
      from unnest(p_held_topics, p_held_slots, p_held_ids, p_held_ended) h (topic, slot, id, ended)
      where h.ended
      union
      select c.topic, c.slot, c.id from unnest((p_line).topics, (p_line).slots, (p_line).ids) c (topic, slot, id)
    ),
    started (topic, slot, id) as materialized (
      select s.queue, p_started_slots[s.ordinality], s.id from unnest(p_started) with ordinality s
    )
    select pgqueuetopia.lock_key('job', p_scope, f.id::text) as key
    from (select h.id from held h except select s.id from started s) f
    union all
    select pgqueuetopia.lock_key('slot', p_scope, f.topic || chr(31) || f.slot)
    from (select h.topic, h.slot from held h except select s.topic, s.slot from started s) f
  ) f;
end
$$;

-- When the next job of these topics that is not due yet will be, in seconds from now; null if none.
create function pgqueuetopia.next_topic_due(
  p_scope text, p_topics text[], p_now timestamptz, p_fronts pgqueuetopia.topic_front[]
) returns double precision
language plpgsql stable
as $$
declare
  v_topic text;
  v_priority integer;
  v_due_at timestamptz;
  v_next timestamptz;
  v_known integer[];
begin
  foreach v_topic in array p_topics loop
    v_known := array(select f.priority from unnest(p_fronts) f where f.topic = v_topic);
    foreach v_priority in array pgqueuetopia.topic_priorities(p_scope, v_topic, v_known) loop
      select greatest(j.scheduled_at, j.next_attempt_at) into v_due_at
      from pgqueuetopia.jobs j
      where j.scope = p_scope
        and j.queue = v_topic
        and j.topic
        and j.done_at is null
        and j.priority = v_priority
        and greatest(j.scheduled_at, j.next_attempt_at) > p_now
        and greatest(j.scheduled_at, j.next_attempt_at) < 'infinity'
      order by greatest(j.scheduled_at, j.next_attempt_at)
      limit 1;
      v_next := least(v_next, v_due_at);
    end loop;
  end loop;
  return extract(epoch from v_next - p_now);
end
$$;
