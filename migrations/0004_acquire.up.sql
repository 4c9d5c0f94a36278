-- Which queues a node runs: the second part of step().

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

-- What a look at a queue has found: its first job, when that is due, how many jobs to claim at once, and the last that is
-- prefetched behind it. Without a job, where there is none.
create type pgqueuetopia.head as (
  queue text,
  suspended boolean,
  id bigint,
  priority integer,
  scheduled_at timestamptz,
  next_attempt_at timestamptz,
  due_at timestamptz,
  due boolean,
  length integer,
  prefetched_to bigint
);

-- What a snapshot sees, but for what was running or came up lately: so what it does not see is one range of transactions, and
-- a few that have run for long.
create function pgqueuetopia.rounded(exact pg_snapshot) returns pg_snapshot
language plpgsql immutable
as $$
declare
  c_lately constant bigint := 100;
  v_end bigint := pg_snapshot_xmax(exact)::text::bigint;
  v_xmax bigint;
  v_old bigint[];
begin
  if exact::text like '%:' then
    return exact;
  end if;
  select
    coalesce(min(r.xid) filter (where r.xid > v_end - c_lately), v_end),
    array_agg(r.xid order by r.xid) filter (where r.xid <= v_end - c_lately)
  into v_xmax, v_old
  from (select x::text::bigint as xid from pg_snapshot_xip(exact) x) r;
  return format('%s:%s:%s', coalesce(v_old[1], v_xmax), v_xmax, array_to_string(v_old, ','))::pg_snapshot;
end
$$;

-- The rows of a queue that a snapshot did not see; without a snapshot, all. (It takes the place of its call. In the order of an
-- index, and a range where one is looked for: so the planner takes that index, and no other that would be as good if the
-- statistics were right.)
create function pgqueuetopia.rows_since(p_seen pg_snapshot, p_scope text, p_queue text)
returns table (row_at tid, taken boolean, place timestamptz)
language sql stable
as $$
  (
    select r.ctid, r.taken, r.place from pgqueuetopia.run_queue r
    where r.scope = p_scope and r.queue = p_queue and r.xid >= pg_snapshot_xmax(coalesce(p_seen, '1:1:'))
    order by r.xid
  )
  union all
  (
    select o.*
    from pg_snapshot_xip(p_seen) x (xid)
    cross join lateral (
      select r.ctid, r.taken, r.place from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = p_queue and r.xid between x.xid and x.xid
      order by r.xid
    ) o
  )
$$;

-- What a look at queues that this session has locked has found: the heads that are due, the others, and what it has seen.
create type pgqueuetopia.looked as (due pgqueuetopia.head[], others pgqueuetopia.head[], snapshot pg_snapshot);

-- Queues that this session has taken, and what it has found there; and those that it has only locked, for they had too many rows.
create type pgqueuetopia.taken as (queues text[], looked pgqueuetopia.looked, too_many text[]);

-- What acquire has come to.
create type pgqueuetopia.acquired as (
  taken pgqueuetopia.taken,
  -- whether some were contended, and whether there may be more than there was room for, or than was read
  contended boolean,
  is_full boolean,
  priorities integer[],
  fronts timestamptz[],
  -- whether a scan from the start took long, for dead rows; null: there was none
  drags boolean,
  -- how many of the rivals came first; queues that are to be let go: topics, for their jobs have become a topic's, and those
  -- that had too many rows (see take)
  rivals integer,
  adopted text[]
);

-- The first job of a queue: one that waits for its next attempt, for nothing overtakes it; else the first from a place on.
-- (It takes the place of its call, and an append is run in its order.)
create function pgqueuetopia.first_job(p_scope text, p_queue text, p_start timestamptz)
returns table (id bigint, priority integer, scheduled_at timestamptz, next_attempt_at timestamptz, due_at timestamptz)
language sql stable
as $$
  (
    select
      w.id, w.priority, w.scheduled_at::timestamptz, w.next_attempt_at,
      greatest(w.scheduled_at::timestamptz, w.next_attempt_at)
    from pgqueuetopia.jobs w
    where w.scope = p_scope and w.queue = p_queue
      and w.done_at is null and w.next_attempt_at is not null and not w.topic
    order by w.next_attempt_at, w.id limit 1
  )
  union all
  (
    select
      f.id, f.priority, f.scheduled_at::timestamptz, f.next_attempt_at,
      greatest(f.scheduled_at::timestamptz, f.next_attempt_at)
    from pgqueuetopia.jobs f
    where f.scope = p_scope and f.queue = p_queue and f.done_at is null and not f.topic
      and f.scheduled_at >= p_start
    order by f.scheduled_at, f.id limit 1
  )
  limit 1
$$;

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

-- Put rows of the run queue together, of queues that this session has locked: of each queue one is left, with the first of
-- their places, but for those that are taken. Returns whether there were any. (Nobody's look has seen the transaction of the one
-- that is left, so whoever has a queue finds it by that.)
create function pgqueuetopia.put_together(p_rows tid[]) returns boolean
language plpgsql
as $$
begin
  with many as materialized (
    select array_agg(q.ctid) as rows
    from pgqueuetopia.run_queue q
    where q.ctid = any (p_rows) and not q.taken
    group by q.scope, q.queue
    having count(*) > 1
  ),
  gone as (
    delete from pgqueuetopia.run_queue q where q.ctid = any (array(
      select s.ctid from pgqueuetopia.run_queue s
      where s.ctid = any (array(select r.row_at from many m cross join unnest(m.rows) r (row_at)))
      for update skip locked
    ))
    returning q.scope, q.queue, q.priority, q.ready_at, q.place
  )
  insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at, place)
  select g.scope, g.queue, max(g.priority), min(g.ready_at), min(g.place)
  from gone g
  group by g.scope, g.queue;
  return found;
end
$$;

-- Lock queues that are due, highest priority first, then the one due longest. The lock comes before the
-- snapshot that reads the head (in take), or a job that another node has just finished would run again.
-- A taken row belongs to a node; a rescue looks at those too, and finds the queues of the dead.
--
-- The front of each priority is where the scan begins, so that nobody's snapshot has us pass the same dead rows
-- again and again; it stays a little behind, for what commits late. Null: everything, from the start.
--
-- What came in behind a job that runs is removed, for we look again before we let its queue go. Not what is older
-- than the job's claim: it may be ahead of the job, and is kept for that look; where so much is that the scan does not come to its
-- end, it is put together, lest it hide other queues for as long as the job runs. Null: kept in any case.
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
  -- whether nothing may be started, and whether configs suspend single queues
  p_suspended boolean,
  p_check_suspension boolean,
  p_priorities integer[],
  p_fronts timestamptz[],
  -- queues, and snapshots that saw no row of them that is still there (see take)
  p_known text[],
  p_seen text[]
) returns pgqueuetopia.acquired
language plpgsql
as $$
declare
  c_late constant interval := interval '250 milliseconds';
  c_most constant integer := 10000;
  c_long constant interval := interval '5 milliseconds';
  r record;
  v_rows tid[] := '{}';
  v_surplus tid[] := '{}';
  v_ahead tid[] := '{}';
  v_topic_rows tid[] := '{}';
  v_rivals integer := coalesce(cardinality(p_rival_dues), 0);
  v_seen integer;
  v_queues text[] := '{}';
  v_adopted text[] := '{}';
  v_passed integer := 0;
  v_contended boolean := false;
  v_is_full boolean := false;
  v_is_cut boolean := false;
  v_priorities integer[] := p_priorities;
  v_fronts timestamptz[] := p_fronts;
  v_first_fronts timestamptz[];
  v_taken pgqueuetopia.taken;
  v_began timestamptz;
  v_drags boolean;
begin
  if v_fronts is null or v_fronts = '{}' then
    v_began := clock_timestamp();
    -- failpoint: from the start
    select p.priorities, p.fronts into v_priorities, v_fronts from pgqueuetopia.priorities(p_scope, p_now - c_late) p;
    v_drags := clock_timestamp() - v_began > c_long;
  end if;
  v_first_fronts := v_fronts;
  for i in 1 .. cardinality(v_priorities) loop
    exit when v_is_full;
    v_seen := 0;
    for r in
      select
        q.ctid as row_at, q.queue, q.ready_at, q.place, q.taken,
        -- Nearly none is held; that it is not is found in a hash table, not by comparing it with each.
        case when q.queue in (select h.queue from unnest(p_held) h (queue)) then array_position(p_held, q.queue) end as held
      from pgqueuetopia.run_queue q
      where q.scope = p_scope
        and q.priority = v_priorities[i]
        and q.ready_at >= v_fronts[i]
        and q.ready_at <= p_now
        and (p_rescue or not q.taken)
        and q.queue <> all (p_avoid)
      order by q.ready_at
      limit c_most
    loop
      -- failpoint: scanned
      v_seen := v_seen + 1;
      if r.held is not null then
        if not r.taken and r.place > p_claimed_at[r.held] then
          v_surplus := v_surplus || r.row_at;
        elsif not r.taken and p_claimed_at[r.held] is not null then
          v_ahead := v_ahead || r.row_at;
        end if;
        continue;
      elsif r.queue = any (v_queues) then
        -- Removed by take.
        continue;
      elsif r.queue = any (p_topics) then
        if r.queue = any (v_adopted)
          or pg_try_advisory_lock(pgqueuetopia.lock_key('queue', p_scope, r.queue))
        then
          v_topic_rows := v_topic_rows || r.row_at;
          if r.queue <> all (v_adopted) then
            v_adopted := v_adopted || r.queue;
          end if;
        end if;
        continue;
      end if;
      while v_passed < v_rivals and (
        p_rival_priorities[v_passed + 1] > v_priorities[i]
        or (p_rival_priorities[v_passed + 1] = v_priorities[i] and p_rival_dues[v_passed + 1] <= r.ready_at)
      ) loop
        v_passed := v_passed + 1;
      end loop;
      v_is_full := cardinality(v_rows) + v_passed >= p_room;
      exit when v_is_full;
      if pg_try_advisory_lock(pgqueuetopia.lock_key('queue', p_scope, r.queue)) then
        v_rows := v_rows || r.row_at;
        v_queues := v_queues || r.queue;
        v_is_full := cardinality(v_rows) + v_passed >= p_room;
        exit when v_is_full;
      elsif not r.taken then
        v_contended := true;
      end if;
    end loop;
    v_is_cut := v_is_cut or v_seen = c_most;
    v_fronts[i] := greatest(
      v_fronts[i], case when v_is_full or v_seen = c_most then r.ready_at else p_now end - c_late
    );
  end loop;
  v_passed := least(v_rivals, p_room - cardinality(v_rows));
  -- failpoint: locked
  if cardinality(v_adopted) > 0 then
    perform pgqueuetopia.adopt(p_scope, v_topic_rows, v_adopted);
  end if;
  if cardinality(v_surplus) > 0 then
    delete from pgqueuetopia.run_queue q where q.ctid = any (array(
      select s.ctid from pgqueuetopia.run_queue s where s.ctid = any (v_surplus) for update skip locked
    ));
  end if;
  if cardinality(v_rows) > 0 then
    v_taken := pgqueuetopia.take(
      p_scope, v_rows, v_queues, p_known, p_seen, p_careful, p_suspended, p_check_suspension, p_now
    );
    if v_taken.too_many <> '{}' then
      v_adopted := v_adopted || v_taken.too_many;
      if not v_is_cut then
        -- They are the first again.
        v_fronts := v_first_fronts;
      end if;
    end if;
  end if;
  if v_is_cut then
    -- Where there is less now, the next step comes further.
    v_is_full := v_is_full or cardinality(v_surplus) + coalesce(cardinality(v_taken.queues), 0) > 0;
    if pgqueuetopia.put_together(v_ahead) then
      v_is_full := true;
    end if;
  end if;
  return (v_taken, v_contended, v_is_full, v_priorities, v_fronts, v_drags, v_passed, v_adopted);
end
$$;

-- Make the jobs of queues that are topics, and were created by somebody who did not know it, jobs of the topic. Their
-- queues are locked. Some thousand at a time, and not those that somebody has locked: then the rows stay, for another look.
create function pgqueuetopia.adopt(p_scope text, p_rows tid[], p_queues text[]) returns void
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
    where q.ctid = any (p_rows) and q.queue in (select l.queue from left_over l) and cardinality(v_ids) < c_most
  )
  delete from pgqueuetopia.run_queue q
  where q.ctid = any (p_rows) and q.queue not in (select l.queue from left_over l);
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
    -- Somebody may have removed the last: then it may have been any.
    left join pgqueuetopia.jobs last on last.id = any (array[first.prefetched_to])
    cross join lateral (
      select b.id from pgqueuetopia.jobs b
      where b.scope = first.scope and b.queue = first.queue and b.done_at is null and not b.topic
        and (b.scheduled_at, b.id) > (first.scheduled_at, first.id)
        and (last.id is null or (b.scheduled_at, b.id) <= (last.scheduled_at, last.id))
        and b.next_attempt_at is null
      order by b.scheduled_at, b.id
      -- A node claims no more at once.
      limit 1000
    ) b
    where first.prefetched_to is not null
  ))
$$;

-- Have what dead nodes ran in these queues wait, and look at them then; returns what was found before, and this.
create function pgqueuetopia.left_by_the_dead(
  p_scope text,
  p_queues text[],
  p_looked pgqueuetopia.looked,
  p_suspended boolean,
  p_check_suspension boolean,
  p_now timestamptz
) returns pgqueuetopia.looked
language plpgsql
as $$
declare
  v_ids bigint[];
  v_looked pgqueuetopia.looked;
begin
  select array_agg(o.id) into v_ids
  from unnest(p_queues) q (queue)
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
  v_looked := pgqueuetopia.look(
    p_scope, p_queues, null, null, null, null, '{}', false, '{}', p_suspended, p_check_suspension, p_now
  );
  -- What committed since the first look stays, as after that.
  return (p_looked.due || v_looked.due, p_looked.others || v_looked.others, p_looked.snapshot);
end
$$;

-- Mark the rows by which queues were locked, and look at the queues that may be run, each from the first of the places that its
-- rows name. A row that is gone was removed by the former holder as it let go: it left another one if jobs remain, so that
-- queue is left for the next look. The other rows of a queue go: the look sees what they stand for, for it has the same
-- snapshot. A queue with a row that is taken already was left by a node that died: its job
-- that was running becomes one that waits for its next attempt, so that nothing overtakes it. What was prefetched behind it is
-- as before, but for its claim: what the dead node may still tell of it does not count. To find them the whole queue is
-- read, which nobody else ever has to, and it is looked at after that.
--
-- All rows of a queue are read, dead ones too, unless this session knows of a snapshot that saw none that is still there
-- (p_known, p_seen): since it had the queue itself then, and whoever has a queue removes what it sees. Not more in one step than
-- that can be done with: of a queue that has too many, as after a long suspension, some are removed, the row by which it was locked
-- names the first of their places, and it is to be let go when that is committed. It is run when all of its rows can be read,
-- for one of them may be a dead node's.
create function pgqueuetopia.take(
  p_scope text,
  p_rows tid[],
  p_queues text[],
  p_known text[],
  p_seen text[],
  p_careful boolean,
  p_suspended boolean,
  p_check_suspension boolean,
  p_now timestamptz
) returns pgqueuetopia.taken
language plpgsql
as $$
declare
  c_most constant integer := 50000;
  v_most integer := greatest(c_most / cardinality(p_queues), 100);
  v_rows tid[] := p_rows;
  v_taken pgqueuetopia.taken;
  v_looked pgqueuetopia.looked;
  v_surplus tid[];
  v_orphans text[];
  v_marked tid[];
  v_places timestamptz[];
begin
  if p_careful then
    v_rows := array(
      select q.ctid from pgqueuetopia.run_queue q
      where q.ctid = any (p_rows) and not q.taken
        -- What a node that died has left may be locked as well.
        and not exists (
          select from (
            select t.taken from pgqueuetopia.run_queue t
            where t.scope = p_scope and t.queue = q.queue
            order by t.xid limit v_most + 1
          ) t
          where t.taken
        )
      for update skip locked
    );
  end if;
  with marked as materialized (
    -- A row that came from another server by a dump may tell of a transaction that is still to come here.
    update pgqueuetopia.run_queue q set taken = true, xid = least(q.xid, pg_current_xact_id())
    where q.ctid = any (v_rows)
    returning
      q.queue, q.ctid as row_at, array_position(p_queues, q.queue) as n,
      p_seen[array_position(p_known, q.queue)]::pg_snapshot as seen
  ),
  mine as materialized (
    select
      m.queue, m.row_at, m.n, r.orphaned, r.place, r.surplus, coalesce(cardinality(r.surplus) >= v_most, false) as too_many,
      p_check_suspension and pgqueuetopia.some_suspended(p_scope, m.queue || '_suspended') as suspended
    from marked m
    cross join lateral (
      -- As they were before this statement.
      select
        -- Null where a row that was seen is still there, for somebody had locked it: then all is read.
        coalesce(bool_or(r.taken), true) as orphaned, min(r.place) as place,
        array_agg(r.row_at) filter (where r.row_at <> p_rows[m.n]) as surplus
      from (select * from pgqueuetopia.rows_since(m.seen, p_scope, m.queue) limit v_most + 1) r
    ) r
  ),
  heads as (
    select
      (
        m.queue, m.suspended, j.id, j.priority, j.scheduled_at, j.next_attempt_at, j.due_at,
        not (m.suspended or p_suspended) and coalesce(j.due_at <= p_now, false), null, null
      )::pgqueuetopia.head as head,
      m.n, m.orphaned, m.too_many, m.row_at, m.place
    from mine m
    left join lateral pgqueuetopia.first_job(p_scope, m.queue, m.place) j on not (m.orphaned or m.too_many)
  )
  select
    coalesce(array_agg((h.head).queue order by h.n), '{}'), array_agg((h.head).queue) filter (where h.orphaned and not h.too_many),
    (select array_agg(s.row_at) from mine m cross join unnest(m.surplus) s (row_at)),
    coalesce(array_agg(h.head order by h.n) filter (where (h.head).due), '{}'),
    coalesce(array_agg(h.head) filter (where not ((h.head).due or h.orphaned or h.too_many)), '{}'),
    pg_current_snapshot(),
    coalesce(array_agg((h.head).queue) filter (where h.too_many), '{}'),
    array_agg(h.row_at) filter (where h.too_many), array_agg(h.place) filter (where h.too_many)
  into
    v_taken.queues, v_orphans, v_surplus, v_looked.due, v_looked.others, v_looked.snapshot, v_taken.too_many, v_marked, v_places
  from heads h;
  -- failpoint: taken
  if v_surplus is not null then
    delete from pgqueuetopia.run_queue q where q.ctid = any (array(
      select s.ctid from pgqueuetopia.run_queue s
      where s.ctid = any (v_surplus)
        -- A dead node's row tells of it until all are read.
        and (not s.taken or s.queue <> all (v_taken.too_many))
      for update skip locked
    ));
  end if;
  if v_marked is not null then
    update pgqueuetopia.run_queue q
    set taken = false, place = least(q.place, v_places[array_position(v_marked, q.ctid)])
    where q.ctid = any (v_marked);
    v_taken.queues := array(select q from unnest(v_taken.queues) q where q <> all (v_taken.too_many));
  end if;
  if v_orphans is not null then
    v_looked := pgqueuetopia.left_by_the_dead(p_scope, v_orphans, v_looked, p_suspended, p_check_suspension, p_now);
  end if;
  v_taken.looked := v_looked;
  if cardinality(v_taken.queues) < cardinality(p_queues) then
    perform pg_advisory_unlock(pgqueuetopia.lock_key('queue', p_scope, q.queue))
    from unnest(p_queues) q (queue)
    where q.queue not in (select m.queue from unnest(v_taken.queues || v_taken.too_many) m (queue));
  end if;
  return v_taken;
end
$$;

-- Remove the rows that came in behind jobs that run on, as acquire does, and those of the queues from which this step
-- has claimed: what its snapshot sees was seen by the look, too. What came in since a queue was taken is later in its
-- index than the row by which it was. Of each queue so many that all can be done with; what came in ahead of a job is put
-- together where there is more than a little, lest it be all that is read, or hide other queues from other nodes (acquire). (In
-- plpgsql, and not in SQL: its plan is kept.)
create function pgqueuetopia.tidy(
  p_scope text, p_running text[], p_claimed_at timestamptz[], p_claimed text[], p_snapshot text
) returns void
language plpgsql
as $$
declare
  c_most constant integer := 50000;
  c_few constant integer := 100;
  v_queues integer := coalesce(cardinality(p_running), 0) + cardinality(p_claimed);
  v_most integer := greatest(c_most / greatest(v_queues, 1), c_few);
  v_surplus tid[];
  v_ahead tid[];
begin
  select array_agg(s.row_at) filter (where s.is_behind), array_agg(s.row_at) filter (where not s.is_behind)
  into v_surplus, v_ahead
  from (
    select r.row_at, r.place > o.claimed_at as is_behind
    from unnest(p_running, p_claimed_at) o (queue, claimed_at)
    cross join lateral (
      select r.ctid as row_at, r.place from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = o.queue and not r.taken
        and r.xid >= coalesce((
          select t.xid from (
            select t.xid, t.taken from pgqueuetopia.run_queue t
            where t.scope = p_scope and t.queue = o.queue
            order by t.xid desc limit c_most
          ) t
          where t.taken
          limit 1
        ), '0')
      order by r.xid
      limit v_most
    ) r
    union all
    select r.row_at, true
    from unnest(p_claimed) c (queue)
    cross join lateral (
      select r.ctid as row_at from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = c.queue and not r.taken
        and pg_visible_in_snapshot(r.xid, p_snapshot::pg_snapshot)
        and r.xid >= coalesce((
          select t.xid from (
            select t.xid, t.taken from pgqueuetopia.run_queue t
            where t.scope = p_scope and t.queue = c.queue
            order by t.xid desc limit c_most
          ) t
          where t.taken
          limit 1
        ), '0')
      order by r.xid
      limit v_most
    ) r
  ) s;
  if v_surplus is not null then
    delete from pgqueuetopia.run_queue q where q.ctid = any (array(
      select s.ctid from pgqueuetopia.run_queue s where s.ctid = any (v_surplus) for update skip locked
    ));
  end if;
  if cardinality(v_ahead) >= c_few then
    perform pgqueuetopia.put_together(v_ahead);
  end if;
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
