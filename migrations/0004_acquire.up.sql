-- Which queues a node runs: the second part of step().

-- Which priorities there are in a run queue, the highest first, and where each begins, at the latest where a scan may.
create function pgqueuetopia.priorities(
  p_scope text, p_latest timestamptz, out priorities integer[], out fronts timestamptz[]
)
language plpgsql stable
as $$
declare
  v_below bigint := 2147483648;
  v_priority integer;
  v_front timestamptz;
begin
  priorities := '{}';
  fronts := '{}';
  loop
    select q.priority, q.ready_at into v_priority, v_front
    from pgqueuetopia.run_queue q
    where q.scope = p_scope and q.priority < v_below
    order by q.priority desc, q.ready_at
    limit 1;
    exit when not found;
    priorities := priorities || v_priority;
    fronts := fronts || least(v_front, p_latest);
    v_below := v_priority;
  end loop;
end
$$;

-- Lock queues that are due, highest priority first, then the one due longest. The lock comes before the
-- snapshot that reads the head (in claim), or a job that another node has just finished would run again.
-- A taken row belongs to a node; a rescue looks at those too, and finds the queues of the dead. Tells whether some
-- were contended, and whether there may be more than there was room for.
--
-- The front of each priority is where the scan begins, so that nobody's snapshot has us pass the same dead rows
-- again and again; it stays a little behind, for what commits late. Null: everything, from the start.
--
-- What came in behind a job that runs is removed, for we look again before we let its queue go. Not what is older
-- than the job's claim: it may be ahead of the job, and is kept for that look. Null: kept in any case.
create function pgqueuetopia.acquire(
  p_scope text,
  p_held text[],
  p_claimed_at timestamptz[],
  p_avoid text[],
  p_room integer,
  p_rescue boolean,
  p_careful boolean,
  p_now timestamptz,
  -- the topics that this node knows; the jobs of topics that compete for the room, in their order
  p_topics text[],
  p_rival_priorities integer[],
  p_rival_dues timestamptz[],
  inout priorities integer[],
  inout fronts timestamptz[],
  out queues text[],
  -- where the first job of each is at the earliest (see take), and what was seen of that
  out places timestamptz[],
  out snapshot text,
  out contended boolean,
  out is_full boolean,
  -- how many of the rivals came first; queues that are topics: their jobs have become a topic's, and they are to be let go
  out rivals integer,
  out adopted text[]
)
language plpgsql
as $$
declare
  c_late constant interval := interval '250 milliseconds';
  c_most constant integer := 10000;
  r record;
  v_rows bigint[] := '{}';
  v_surplus bigint[] := '{}';
  v_adopted bigint[] := '{}';
  v_rivals integer := coalesce(cardinality(p_rival_dues), 0);
  v_seen integer;
begin
  queues := '{}';
  adopted := '{}';
  rivals := 0;
  contended := false;
  is_full := false;
  if fronts is null or fronts = '{}' then
    select p.priorities, p.fronts into priorities, fronts from pgqueuetopia.priorities(p_scope, p_now - c_late) p;
  end if;
  for i in 1 .. cardinality(priorities) loop
    exit when is_full;
    v_seen := 0;
    for r in
      select
        q.id, q.queue, q.ready_at, q.place, q.taken,
        -- Nearly none is held; that it is not is found in a hash table, not by comparing it with each.
        case when q.queue in (select h.queue from unnest(p_held) h (queue)) then array_position(p_held, q.queue) end as held
      from pgqueuetopia.run_queue q
      where q.scope = p_scope
        and q.priority = priorities[i]
        and q.ready_at >= fronts[i]
        and q.ready_at <= p_now
        and (p_rescue or not q.taken)
        and q.queue <> all (p_avoid)
      order by q.ready_at, q.id
      limit c_most
    loop
      -- failpoint: scanned
      v_seen := v_seen + 1;
      if r.held is not null then
        if not r.taken and r.place > p_claimed_at[r.held] then
          v_surplus := v_surplus || r.id;
        end if;
        continue;
      elsif r.queue = any (queues) then
        -- Removed by take.
        continue;
      elsif r.queue = any (p_topics) then
        if r.queue = any (adopted)
          or pg_try_advisory_lock(pgqueuetopia.lock_key('queue', p_scope, r.queue))
        then
          v_adopted := v_adopted || r.id;
          if r.queue <> all (adopted) then
            adopted := adopted || r.queue;
          end if;
        end if;
        continue;
      end if;
      while rivals < v_rivals and (
        p_rival_priorities[rivals + 1] > priorities[i]
        or (p_rival_priorities[rivals + 1] = priorities[i] and p_rival_dues[rivals + 1] <= r.ready_at)
      ) loop
        rivals := rivals + 1;
      end loop;
      is_full := cardinality(v_rows) + rivals >= p_room;
      exit when is_full;
      if pg_try_advisory_lock(pgqueuetopia.lock_key('queue', p_scope, r.queue)) then
        v_rows := v_rows || r.id;
        queues := queues || r.queue;
        is_full := cardinality(v_rows) + rivals >= p_room;
        exit when is_full;
      elsif not r.taken then
        contended := true;
      end if;
    end loop;
    fronts[i] := greatest(
      fronts[i], case when is_full or v_seen = c_most then r.ready_at else p_now end - c_late
    );
  end loop;
  rivals := least(v_rivals, p_room - cardinality(v_rows));
  -- failpoint: locked
  if cardinality(adopted) > 0 then
    perform pgqueuetopia.adopt(p_scope, v_adopted, adopted);
  end if;
  if cardinality(v_surplus) > 0 then
    delete from pgqueuetopia.run_queue q where q.id = any (array(
      select s.id from pgqueuetopia.run_queue s where s.id = any (v_surplus) for update skip locked
    ));
  end if;
  if cardinality(v_rows) > 0 then
    select t.queues, t.places, t.snapshot into queues, places, snapshot
    from pgqueuetopia.take(p_scope, v_rows, queues, p_careful) t;
  end if;
end
$$;

-- Make the jobs of queues that are topics, and were created by somebody who did not know it, jobs of the topic. Their
-- queues are locked. Some thousand at a time, and not those that somebody has locked: then the rows stay, for another look.
create function pgqueuetopia.adopt(p_scope text, p_rows bigint[], p_queues text[]) returns void
language plpgsql
as $$
declare
  c_most constant integer := 5000;
  v_ids bigint[];
begin
  v_ids := array(
    select a.id
    from unnest(p_queues) q (queue)
    cross join lateral (
      select j.id from pgqueuetopia.jobs j
      where j.scope = p_scope and j.queue = q.queue and j.done_at is null and not j.topic
      order by j.scheduled_at, j.id
      limit c_most
      for update skip locked
    ) a
  );
  update pgqueuetopia.jobs j set topic = true where j.id = any (v_ids);
  -- failpoint: adopted
  with left_over as materialized (
    select a.queue
    from unnest(p_queues) a (queue)
    where exists (
      select from pgqueuetopia.jobs j
      where j.scope = p_scope and j.queue = a.queue and j.done_at is null and not j.topic
    )
  ),
  later as (
    update pgqueuetopia.run_queue q set ready_at = clock_timestamp() + interval '1 second'
    where q.id = any (p_rows) and q.queue in (select l.queue from left_over l) and cardinality(v_ids) < c_most
  )
  delete from pgqueuetopia.run_queue q
  where q.id = any (p_rows) and q.queue not in (select l.queue from left_over l);
end
$$;

-- Have what a lost session ran wait before it is run again, for half a second: a node whose session was ended from
-- outside hears of it a little later than we do, stops its jobs, and may still save what has ended.
create function pgqueuetopia.wait_for_report(p_scope text, p_ids bigint[]) returns void
language plpgsql
as $$
declare
  v_waiting text[];
begin
  with waiting as (
    update pgqueuetopia.jobs j set next_attempt_at = clock_timestamp() + interval '500 milliseconds'
    where j.id = any (p_ids)
      -- Once more, for the row may have changed while we waited for it: its node writes late, by the pool.
      and j.outcome is null
      and (j.attempted_at is null or j.attempted_at >= coalesce(j.next_attempt_at, '-infinity'))
    returning json_build_array('crashed', j.id, j.queue, j.attempts, j.attempted_by)::text as event
  )
  select array_agg(w.event) into v_waiting from waiting w;
  if v_waiting is not null and pgqueuetopia.is_listened_to(p_scope) then
    perform pgqueuetopia.tell(p_scope, v_waiting);
  end if;
end
$$;

-- Behind these jobs, which a lost session ran, nothing is prefetched any longer, and nothing else runs in their queues.
create function pgqueuetopia.leave_prefetched(p_ids bigint[]) returns void
language sql
as $$
  update pgqueuetopia.jobs j
  set claim = j.claim + 1, attempted_at = null, attempted_by = null
  where j.outcome is null and j.id = any (array(
    select b.id
    from unnest(p_ids) r (id)
    join pgqueuetopia.jobs first on first.id = any (array[r.id])
    join pgqueuetopia.jobs last on last.id = any (array[first.prefetched_to])
    cross join lateral (
      select b.id from pgqueuetopia.jobs b
      where b.scope = first.scope and b.queue = first.queue and b.done_at is null and not b.topic
        and (b.scheduled_at, b.id) > (first.scheduled_at, first.id)
        and (b.scheduled_at, b.id) <= (last.scheduled_at, last.id)
        and b.next_attempt_at is null
      order by b.scheduled_at, b.id
    ) b
  ))
$$;

-- Mark the rows by which queues were locked, and return the queues that may be run. A row that is gone
-- was removed by the former holder as it let go: it left another one if jobs remain, so that queue is
-- left for the next look. A queue with a row that is taken already was left by a node that died: its job
-- that was running becomes one that waits for its next attempt, so that nothing overtakes it. What was prefetched behind it is
-- as before, but for its claim: what the dead node may still tell of it does not count. To find them the whole queue is
-- read, which nobody else ever has to. The other rows go: the look that follows sees what they stand for, and begins at the
-- first of their places.
create function pgqueuetopia.take(
  p_scope text,
  p_rows bigint[],
  p_queues text[],
  p_careful boolean,
  out queues text[],
  out places timestamptz[],
  out snapshot text
)
language plpgsql
as $$
declare
  v_rows bigint[] := p_rows;
  v_orphans text[];
  v_ids bigint[];
begin
  if p_careful then
    v_rows := array(
      select q.id from pgqueuetopia.run_queue q
      where q.id = any (p_rows) and not q.taken
        -- What a node that died has left may be locked as well.
        and not exists (
          select from pgqueuetopia.run_queue t where t.scope = p_scope and t.queue = q.queue and t.taken
        )
      for update skip locked
    );
  end if;
  with marked as materialized (
    update pgqueuetopia.run_queue q set taken = true
    where q.id = any (v_rows)
    returning q.id, q.queue
  ),
  mine as materialized (
    select r.id, r.queue, r.taken, r.place, r.id = m.id as is_marked
    from marked m
    cross join lateral (
      select r.* from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = m.queue
      order by r.xid
    ) r
  ),
  surplus as (
    delete from pgqueuetopia.run_queue q
    where q.id = any (array(
      select s.id from pgqueuetopia.run_queue s
      where s.id = any (array(select r.id from mine r where not r.is_marked))
      for update skip locked
    ))
  )
  select
    coalesce(array_agg(m.queue order by m.n), '{}'), array_agg(m.queue) filter (where m.orphaned),
    array_agg(case when not m.orphaned then m.place end order by m.n), pg_current_snapshot()::text
  into queues, v_orphans, places, snapshot
  from (
    -- As they were before this statement.
    select
      r.queue, bool_or(r.taken) as orphaned, min(r.place) as place,
      array_position(p_rows, min(r.id) filter (where r.is_marked)) as n
    from mine r
    group by r.queue
  ) m;
  if v_orphans is not null then
    select array_agg(o.id) into v_ids
    from unnest(v_orphans) q (queue)
    cross join lateral (
      select o.id
      from pgqueuetopia.jobs o
      where o.scope = p_scope
        and o.queue = q.queue
        and o.done_at is null
        and not o.topic
        and o.attempted_at >= coalesce(o.next_attempt_at, '-infinity')
      order by o.scheduled_at, o.id
      limit 1
    ) o;
    perform pgqueuetopia.leave_prefetched(v_ids);
    perform pgqueuetopia.wait_for_report(p_scope, v_ids);
  end if;
  if cardinality(queues) < cardinality(p_queues) then
    perform pg_advisory_unlock(pgqueuetopia.lock_key('queue', p_scope, q.queue))
    from unnest(p_queues) q (queue)
    where q.queue not in (select m.queue from unnest(take.queues) m (queue));
  end if;
end
$$;

-- Remove the rows that came in behind jobs that run on, as acquire does, and those of the queues from which this step
-- has claimed: what its snapshot sees was seen by the look, too. What came in since a queue was taken is later in its
-- index than the row by which it was. (In plpgsql, and not in SQL: its plan is kept.)
create function pgqueuetopia.tidy(
  p_scope text, p_running text[], p_claimed_at timestamptz[], p_claimed text[], p_snapshot text
) returns void
language plpgsql
as $$
begin
  delete from pgqueuetopia.run_queue q
  where q.id = any (array(
    select r.id
    from unnest(p_running, p_claimed_at) o (queue, claimed_at)
    cross join lateral (
      select r.id from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = o.queue and not r.taken and r.place > o.claimed_at
        and r.xid >= coalesce((
          select t.xid from pgqueuetopia.run_queue t
          where t.scope = p_scope and t.queue = o.queue and t.taken
          order by t.xid desc limit 1
        ), '0')
      order by r.xid
      for update skip locked
    ) r
    union all
    select r.id
    from unnest(p_claimed) c (queue)
    cross join lateral (
      select r.id from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = c.queue and not r.taken
        and pg_visible_in_snapshot(r.xid, p_snapshot::pg_snapshot)
        and r.xid >= coalesce((
          select t.xid from pgqueuetopia.run_queue t
          where t.scope = p_scope and t.queue = c.queue and t.taken
          order by t.xid desc limit 1
        ), '0')
      order by r.xid
      for update skip locked
    ) r
  ));
end
$$;

-- Unlock everything but these queues, slots and jobs: after an error, for an advisory lock survives a rollback.
create function pgqueuetopia.keep_only(
  p_scope text, p_queues text[], p_topics text[], p_slots integer[], p_ids bigint[]
) returns void
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
    select pgqueuetopia.lock_key('queue', p_scope, q.queue) from unnest(p_queues) q (queue) where q.queue is not null
    union all
    select pgqueuetopia.lock_key('slot', p_scope, h.topic || chr(31) || h.slot) from unnest(p_topics, p_slots) h (topic, slot)
    union all
    select pgqueuetopia.lock_key('job', p_scope, j.id::text) from unnest(p_ids) j (id)
  )
$$;

-- When the next queue of these priorities that is not due yet will be, in seconds from now; null if none.
create function pgqueuetopia.next_ready(
  p_scope text, p_priorities integer[], p_now timestamptz
) returns double precision
language plpgsql stable
as $$
declare
  v_priority integer;
  v_ready_at timestamptz;
  v_next timestamptz;
begin
  foreach v_priority in array p_priorities loop
    select q.ready_at into v_ready_at
    from pgqueuetopia.run_queue q
    where q.scope = p_scope
      and q.priority = v_priority
      and q.ready_at > p_now
      and q.ready_at < 'infinity'
    order by q.ready_at
    limit 1;
    v_next := least(v_next, v_ready_at);
  end loop;
  return extract(epoch from v_next - p_now);
end
$$;
