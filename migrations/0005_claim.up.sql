-- Which jobs a node runs: the third part of step().

-- A step that writes no outcome does not wait for the disk, and so a crash of the server may forget that it has claimed
-- anything. Lest the number of a claim be given out twice, claims begin at a higher one after each crash: who opens a session
-- notices it, for a table that is not logged is empty then. So it is where a standby has taken over.
create sequence pgqueuetopia.crashes;
create unlogged table pgqueuetopia.uncrashed (
  is_so boolean primary key default true,
  noticed_at timestamptz not null default clock_timestamp()
);
insert into pgqueuetopia.uncrashed (noticed_at) values ('epoch');

-- The least number that a claim may have, and after how many seconds it may be made: a crash has ended the sessions of others,
-- who have half a second to stop their jobs, as in wait_for_report. (It runs as its owner, and everybody may call it.)
create function pgqueuetopia.since_crash(out least_claim bigint, out calm_in double precision)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  c_patience constant interval := interval '500 milliseconds';
begin
  insert into pgqueuetopia.uncrashed default values on conflict do nothing;
  if found then
    perform nextval('pgqueuetopia.crashes');
    -- Not to be forgotten itself, where the role commits so.
    perform set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off';
  end if;
  least_claim := coalesce(pg_sequence_last_value('pgqueuetopia.crashes'), 0) << 32;
  -- (No longer, should the clock have gone back.)
  select extract(epoch from greatest(least(u.noticed_at + c_patience - clock_timestamp(), c_patience), interval '0'))
  into calm_in
  from pgqueuetopia.uncrashed u;
end
$$;

-- What a node needs of a job to run it, besides its own name. What has its usual value is null, for the values that go out
-- would cost a third of what a job costs the server: pgqueuetopia/db/rows.py knows the usual ones.
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
  errors jsonb,
  inserted_at timestamptz,
  updated_at timestamptz,
  failure_mode jsonb,
  reply boolean,
  moved_from bigint
);

-- A time that a node can read; null for any other, which somebody has written by hand.
create function pgqueuetopia.readable(t timestamptz) returns timestamptz
language sql immutable
return case when t between '0001-01-02 00:00:00Z' and '9999-12-30 00:00:00Z' then t end;

-- A job as a node gets it that runs it, its attempts and so many more being counted. Params of more than 64 kB (compressed)
-- are left out, to be fetched by whoever runs the job: a hundred large ones at once would not fit into one answer.
create function pgqueuetopia.as_claimed(j pgqueuetopia.jobs, more_attempts integer) returns pgqueuetopia.claimed_job
language sql stable
return row(
  j.id, j.queue, j.action,
  case when pg_column_size(j.params) <= 65536 then j.params end,
  nullif(j.priority, 0),
  nullif(j.timeout, interval '60 seconds'),
  nullif(j.max_backoff, interval '1 day'),
  nullif(j.max_attempts, 20),
  j.scheduled_at, pgqueuetopia.readable(j.next_attempt_at),
  nullif(j.attempts + more_attempts, 1),
  j.claim, j.attempted_at,
  nullif(j.errors, '[]'),
  nullif(j.inserted_at, j.scheduled_at),
  pgqueuetopia.readable(nullif(j.updated_at, j.inserted_at)),
  j.failure_mode,
  nullif(j.reply, false),
  j.moved_from
)::pgqueuetopia.claimed_job;

-- Look at the heads of queues that go on, in a new snapshot: of those whose slice is over (p_over), or of the others. Those that
-- are stopping are let go, whatever is found.
--
-- A queue is looked at from its place, unless something came in ahead of it since it was looked at last: a row of the run
-- queue that nobody has taken, of a transaction that the snapshot of that look did not see. Such rows are removed, for the
-- look from the start that follows sees what they stand for. (One index range and a few points, however many dead rows a
-- long transaction keeps, and whatever it has written itself.) Without a place it is looked at from its start, and so are all where
-- more came in than one step can remove: what is left then has been seen.
create function pgqueuetopia.look(
  p_scope text,
  p_queues text[],
  p_ids bigint[],
  p_places timestamptz[],
  p_snapshots text[],
  p_lengths integer[],
  p_yielding text[],
  p_over boolean,
  p_stopping text[],
  p_suspended boolean,
  p_check_suspension boolean,
  p_now timestamptz
) returns pgqueuetopia.looked
language plpgsql
as $$
declare
  c_most constant integer := 50000;
  v_looked pgqueuetopia.looked;
  v_seen tid[];
begin
  -- failpoint: before look
  with old as materialized (
    select split_part(pgqueuetopia.rounded(pg_current_snapshot())::text, ':', 3) as running
  ),
  asked as materialized (
    select
      q.queue, q.place, q.id, q.length,
      q.queue in (select s.queue from unnest(p_stopping) s (queue)) as stops,
      -- Of who had run for long, and runs still, there is nothing to be seen.
      case
        when q.snapshot like '%:' then q.snapshot
        when split_part(q.snapshot, ':', 3) = (select o.running from old o)
          then format('%1$s:%1$s:', split_part(q.snapshot, ':', 2))
        else q.snapshot
      end::pg_snapshot as seen
    from unnest(p_queues, p_ids, p_places, p_snapshots, p_lengths) q (queue, id, place, snapshot, length)
    -- Not "any (p_yielding)": that would compare each with each.
    where (q.queue in (select y.queue from unnest(p_yielding) y (queue))) = p_over
  ),
  ahead as materialized (
    select a.queue, e.row_at
    from asked a
    cross join lateral pgqueuetopia.rows_since(a.seen, p_scope, a.queue) e
    where a.place is not null and e.place <= a.place and not e.taken
    limit c_most
  ),
  -- Materialized, for a function is not put in the place of its call where its arguments hold a subselect.
  placed as materialized (
    select
      a.*,
      p_check_suspension and pgqueuetopia.some_suspended(p_scope, a.queue || '_suspended') as suspended,
      case
        when a.place is null or exists (select from ahead e where e.queue = a.queue) or (select count(*) from ahead) = c_most
          then timestamptz '-infinity'
      end as start
    from asked a
  ),
  found as (
    select (
      a.queue,
      a.suspended,
      j.id,
      j.priority,
      j.scheduled_at,
      j.next_attempt_at,
      j.due_at,
      not (a.stops or a.suspended or p_suspended) and coalesce(j.due_at <= p_now, false),
      a.length,
      null
    )::pgqueuetopia.head as head
    from placed a
    left join lateral (
      -- The next one of a queue that goes on: dead index entries are passed once.
      (
        select
          n.id, n.priority, n.scheduled_at, n.next_attempt_at, greatest(n.scheduled_at, n.next_attempt_at) as due_at
        from pgqueuetopia.jobs n
        where n.scope = p_scope and n.queue = a.queue and n.done_at is null and not n.topic
          and (n.scheduled_at, n.id) > (a.place, a.id)
          and a.start is null
        order by n.scheduled_at, n.id limit 1
      )
      union all
      select f.* from pgqueuetopia.first_job(p_scope, a.queue, a.start) f
      limit 1
    ) j on true
  )
  select
    coalesce(array_agg(f.head) filter (where (f.head).due), '{}'),
    coalesce(array_agg(f.head) filter (where not (f.head).due), '{}'),
    pg_current_snapshot(),
    (select array_agg(e.row_at) from ahead e)
  into v_looked.due, v_looked.others, v_looked.snapshot, v_seen
  from found f;
  -- failpoint: looked
  if v_seen is not null then
    delete from pgqueuetopia.run_queue q where q.ctid = any (array(
      select s.ctid from pgqueuetopia.run_queue s where s.ctid = any (v_seen) for update skip locked
    ));
  end if;
  return v_looked;
end
$$;

-- Let queues go: what the look at them has seen in the run queue is removed, and a row left where a job remains. A queue
-- that is suspended by its own name is left without one. What committed since the look stays, and so does what is more than one
-- step can remove: whoever meets that finds nothing new.
create function pgqueuetopia.let_go(
  p_scope text, p_heads pgqueuetopia.head[], p_snapshot pg_snapshot, p_now timestamptz
) returns void
language plpgsql
as $$
declare
  c_most constant integer := 50000;
  v_most integer := greatest(c_most / cardinality(p_heads), 100);
  -- Not while a queue of every scope is being resumed (unpark).
  v_parks boolean := exists (select from unnest(p_heads) l where l.suspended)
    and pg_try_advisory_xact_lock(pgqueuetopia.lock_key('parking', ''));
begin
  delete from pgqueuetopia.run_queue q
  where q.ctid = any (array(
    select r.row_at
    from unnest(p_heads) l
    cross join lateral (
      select r.ctid as row_at from pgqueuetopia.run_queue r
      where r.scope = p_scope and r.queue = l.queue
        and (pg_visible_in_snapshot(r.xid, p_snapshot) or r.xid = pg_current_xact_id())
        -- Later than the row by which it was taken, in this index.
        and r.xid >= coalesce((
          select t.xid from (
            select t.xid, t.taken from pgqueuetopia.run_queue t
            where t.scope = p_scope and t.queue = l.queue
            order by t.xid desc limit c_most
          ) t
          where t.taken
          limit 1
        ), '0')
      order by r.xid
      limit v_most
      for update skip locked
    ) r
  ));
  insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at, place)
  select p_scope, l.queue, l.priority,
    -- What is due was locked by somebody.
    case when l.due or l.suspended then p_now + interval '1 second' else greatest(l.due_at, p_now) end,
    -- One that waited may be behind others.
    case when l.next_attempt_at is null then l.scheduled_at else '-infinity' end
  from unnest(p_heads) l
  where l.id is not null and not (l.suspended and v_parks);
end
$$;

-- What a claim has come to.
create type pgqueuetopia.claims as (
  claimed pgqueuetopia.claimed_job[],
  prefetched pgqueuetopia.claimed_job[],
  -- queues that are still ours, to be looked at again, and those that are to be let go
  again text[],
  let_go text[],
  -- whether heads were passed over because somebody has locked them
  skipped boolean
);

-- Claim the heads that are due, and let go of the queues of the others. A careful claim passes over heads that somebody has
-- locked: their queues are looked at again a second later.
--
-- A queue gets as many jobs at once as its length says, or else the one given here, to be run one after the other (null: none has
-- more than one). Those behind its head are prefetched: nothing is written to them, and the head tells which is the last
-- (prefetched_to). They are locked until that is committed, so that nobody ends one of them who has not seen it.
create function pgqueuetopia.claim(
  p_scope text,
  p_node text,
  p_looked pgqueuetopia.looked,
  p_length integer,
  p_least_claim bigint,
  p_careful boolean
) returns pgqueuetopia.claims
language plpgsql
as $$
declare
  c_long_params constant integer := 2000;
  v_now timestamptz := clock_timestamp();
  v_due pgqueuetopia.head[] := p_looked.due;
  v_others pgqueuetopia.head[] := p_looked.others;
  v_locked pgqueuetopia.head[];
  v_claims pgqueuetopia.claims := ('{}', null, '{}', '{}', false);
begin
  if p_careful then
    with free as materialized (
      select j.id from pgqueuetopia.jobs j
      where j.id = any (array(select l.id from unnest(v_due) l)) and j.outcome is null
      for update skip locked
    )
    select
      coalesce(array_agg(l) filter (where l.id in (select f.id from free f)), '{}'),
      coalesce(array_agg(l) filter (where l.id not in (select f.id from free f)), '{}')
    into v_due, v_locked
    from unnest(v_due) l;
    v_claims.skipped := v_locked <> '{}';
    v_others := v_others || v_locked;
  elsif p_length is not null then
    -- What is due behind a head, and was never started.
    with behind as materialized (
      -- Up to the first that is not.
      select l as head, case when b.stop is null then b.jobs else b.jobs[:b.stop - 1] end as jobs
      from unnest(v_due) l
      left join lateral (
        select
          array_agg(pgqueuetopia.as_claimed(m, 1)) as jobs,
          array_position(
            array_agg(
              m.scheduled_at <= v_now
              and m.attempted_at is null
              and m.next_attempt_at is null
              and pg_column_size(m.params) <= c_long_params
            ),
            false
          ) as stop
        from (
          select * from pgqueuetopia.jobs m
          where m.scope = p_scope and m.queue = l.queue and m.done_at is null and not m.topic
            and (m.scheduled_at, m.id) > (l.scheduled_at, l.id)
          order by m.scheduled_at, m.id
          -- None, where it gets one job alone; what waited for its next attempt may be behind others.
          limit case when l.next_attempt_at is null then greatest(l.length, p_length, 1) - 1 else 0 end
          for no key update
        ) m
      ) b on true
    )
    select
      array_agg((
        (b.head).queue, (b.head).suspended, (b.head).id, (b.head).priority, (b.head).scheduled_at,
        (b.head).next_attempt_at, (b.head).due_at, (b.head).due, (b.head).length, (b.jobs[cardinality(b.jobs)]).id
      )::pgqueuetopia.head),
      (select array_agg(p.job) from (select unnest(b.jobs) as job from behind b) p)
    into v_due, v_claims.prefetched
    from behind b;
  end if;
  if v_due <> '{}' then
    with claiming as (
      update pgqueuetopia.jobs j
      set
        claim = greatest(j.claim + 1, p_least_claim),
        attempts = j.attempts + 1,
        attempted_at = v_now,
        attempted_by = p_node,
        prefetched_to = l.prefetched_to
      from unnest(v_due) l
      where j.id = any (array[l.id])
        and j.outcome is null
        -- Still: somebody may have moved it since the look, by hand.
        and j.scope = p_scope
        and j.queue = l.queue
        and greatest(j.scheduled_at, j.next_attempt_at) <= v_now
      returning pgqueuetopia.as_claimed(j, 0) as job
    )
    select coalesce(array_agg(c.job), '{}') into v_claims.claimed from claiming c;
    if cardinality(v_claims.claimed) < cardinality(v_due) then
      -- Due, but ended or moved by somebody else in this very moment: still ours, to be looked at again.
      v_claims.again := array(
        select l.queue from unnest(v_due) l where l.id not in (select c.id from unnest(v_claims.claimed) c)
      );
      v_claims.prefetched := array(
        select p from unnest(v_claims.prefetched) p where p.queue <> all (v_claims.again)
      );
    end if;
  end if;
  if v_others <> '{}' then
    perform pgqueuetopia.let_go(p_scope, v_others, p_looked.snapshot, v_now);
    v_claims.let_go := array(select l.queue from unnest(v_others) l);
  end if;
  return v_claims;
end
$$;
