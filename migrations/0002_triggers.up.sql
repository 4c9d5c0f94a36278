-- Invariant 1: for every queue with a pending job there is a run_queue row with ready_at no later than
-- its head is due, or the queue is parked because it is suspended. The triggers keep it whoever writes.
-- They run as their owner, so that a role that may only insert jobs needs no right on run_queue.

-- Every advisory lock of pgqueuetopia: ('queue', scope, queue), ('slot', scope, topic and number), ('job', scope, id),
-- ('node', scope), ('sleeping', scope), ('gate', scope), ('starting', scope), ('events', scope) and ('waiting', '').
create function pgqueuetopia.lock_key(purpose text, scope text, name text default '') returns bigint
language sql immutable parallel safe
return hashtextextended(purpose || chr(31) || scope || chr(31) || name, 20);

-- Whether somebody holds this lock of a scope, as who sleeps and who listens to events do, in shared mode. (An expression,
-- which takes the place of the call where it is asked.)
create function pgqueuetopia.is_held(purpose text, scope text) returns boolean
language sql volatile
return case
  when pg_try_advisory_lock(pgqueuetopia.lock_key(purpose, scope))
    then not pg_advisory_unlock(pgqueuetopia.lock_key(purpose, scope))
  -- Somebody else who asks has it, and so nobody holds it.
  when not pg_try_advisory_lock_shared(pgqueuetopia.lock_key(purpose, scope))
    then false
  -- Those who ask may have met.
  else not (
    pg_advisory_unlock_shared(pgqueuetopia.lock_key(purpose, scope))
    and pg_try_advisory_lock(pgqueuetopia.lock_key(purpose, scope))
    and pg_advisory_unlock(pgqueuetopia.lock_key(purpose, scope))
  )
end;

-- 0 while surely nobody in this database waits to be told of anything, else 1 or null: who creates a job asks this, and no
-- more if it is 0. A sequence, for what is set is seen at once, whatever becomes of the transaction, and creators do not share
-- a lock to read it. After a crash it has no value, but on PostgreSQL 14, where all sequences are logged and who begins to
-- wait, or ceases to, waits for the disk as well.
do $$
begin
  if current_setting('server_version_num')::integer >= 150000 then
    create unlogged sequence pgqueuetopia.waiting minvalue 0 maxvalue 1;
  else
    create sequence pgqueuetopia.waiting minvalue 0 maxvalue 1;
  end if;
end
$$;

-- From now on somebody waits, as a sleeper of a scope or for its events ('sleeping', 'events'). The lock comes first, the value
-- later: nobody who holds the lock finds it set back. (These three run as their owner, and everybody may call them: they say
-- no more than what is so.)
create function pgqueuetopia.begin_to_wait(purpose text, scope text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_lock_shared(pgqueuetopia.lock_key(purpose, scope));
  perform pg_advisory_lock_shared(pgqueuetopia.lock_key('waiting', ''));
  if pg_sequence_last_value('pgqueuetopia.waiting') is distinct from 1 then
    perform setval('pgqueuetopia.waiting', 1);
  end if;
end
$$;

-- Set the value back if nobody waits but this session. (A step that rescues and does not sleep does so, too: who waited
-- may have died.)
create function pgqueuetopia.note_whether_nobody_waits() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  c_waiting constant bigint := pgqueuetopia.lock_key('waiting', '');
begin
  if pg_sequence_last_value('pgqueuetopia.waiting') is distinct from 0 and pg_try_advisory_lock(c_waiting) then
    -- failpoint: nobody waits
    perform setval('pgqueuetopia.waiting', 0);
    perform pg_advisory_unlock(c_waiting);
  end if;
end
$$;

create function pgqueuetopia.cease_to_wait(purpose text, scope text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_advisory_unlock_shared(pgqueuetopia.lock_key('waiting', ''));
  perform pg_advisory_unlock_shared(pgqueuetopia.lock_key(purpose, scope));
  perform pgqueuetopia.note_whether_nobody_waits();
end
$$;

-- Wakes the sleeping nodes of a scope. A transaction that notifies takes a lock on the whole database
-- at commit, so nobody is notified while nobody sleeps.
create function pgqueuetopia.ring(scope text) returns void
language plpgsql
as $$
begin
  if pgqueuetopia.is_held('sleeping', scope) then
    perform pg_notify('pgqueuetopia_jobs', scope);
  end if;
end
$$;

-- Whether somebody wants to be told of events.
create function pgqueuetopia.is_listened_to(scope text) returns boolean
language sql volatile
return pgqueuetopia.is_held('events', scope);

-- Tell events, each a JSON array of at most 3,000 bytes; as many in one notification as it surely can hold (8,000 bytes).
create function pgqueuetopia.tell(scope text, events text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  v_head text := '[' || to_json(scope) || ',' || extract(epoch from clock_timestamp()) || ',';
  v_all text := array_to_string(events, ',');
begin
  -- What fits into one need not be measured event by event.
  if octet_length(v_all) < 6000 then
    perform pg_notify('pgqueuetopia_events', v_head || v_all || ']') where v_all <> '';
    return;
  end if;
  perform pg_notify('pgqueuetopia_events', v_head || string_agg(p.event, ',' order by p.n) || ']')
  from (
    select e.event, e.n, sum(octet_length(e.event) + 1) over (order by e.n) / 3000 as page
    from unnest(events) with ordinality e (event, n)
  ) p
  group by p.page
  order by p.page;
end
$$;

-- All that a creator pays for. So it has no search_path of its own, which would cost more than to call an empty trigger, but
-- every function, operator and type in it is spelled out: whatever the search_path of who calls, it runs what is written here.
create function pgqueuetopia.jobs_inserted() returns trigger
language plpgsql security definer
as $$
declare
  v_scope pg_catalog.text;
begin
  -- One job, nearly always: then there is nothing to be put together. Whether it is one is told by the server's own counts of what
  -- this session has inserted, for to ask the rows themselves costs more. Whatever they tell, no job is left without a row.
  if pg_catalog.pg_stat_get_xact_tuples_inserted('pgqueuetopia.jobs'::pg_catalog.regclass) operator(pg_catalog.-)
    pg_catalog.pg_stat_get_xact_tuples_inserted('pgqueuetopia.run_queue'::pg_catalog.regclass) operator(pg_catalog.=) 1
  then
    insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at, place)
    select i.scope, i.queue, i.priority, greatest(i.scheduled_at, i.next_attempt_at), i.scheduled_at
    from inserted i
    where i.done_at is null and not i.topic;
  else
    insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at, place)
    select
      i.scope, i.queue, pg_catalog.max(i.priority),
      pg_catalog.min(greatest(i.scheduled_at, i.next_attempt_at)), pg_catalog.min(i.scheduled_at)
    from inserted i
    where i.done_at is null and not i.topic
    group by i.scope, i.queue;
  end if;
  if pg_catalog.pg_sequence_last_value('pgqueuetopia.waiting') operator(pg_catalog.=) 0 then
    return null;
  end if;
  foreach v_scope in array array(select distinct i.scope from inserted i where i.done_at is null) loop
    if pgqueuetopia.is_held('sleeping', v_scope) then
      perform pg_catalog.pg_notify('pgqueuetopia_jobs', v_scope);
    end if;
    if pgqueuetopia.is_listened_to(v_scope) then
      perform pgqueuetopia.tell(v_scope, array(
        select pg_catalog.json_build_array('inserted', i.id, i.queue, 0, null)::pg_catalog.text
        from inserted i
        where i.scope operator(pg_catalog.=) v_scope and i.done_at is null
        order by i.id
      ));
    end if;
  end loop;
  return null;
end
$$;

create trigger jobs_inserted
after insert on pgqueuetopia.jobs
referencing new table as inserted
for each statement execute function pgqueuetopia.jobs_inserted();

-- Have a queue looked at, for what has changed at a place in it: a node that runs the queue and is
-- past that place looks at the whole queue again (claim).
create function pgqueuetopia.look_at(
  scope text, queue text, ready_at timestamptz, place timestamptz, priority integer default 0
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at, place)
  values (scope, queue, priority, ready_at, place);
  perform pgqueuetopia.ring(scope);
end
$$;
revoke execute on function pgqueuetopia.look_at(text, text, timestamptz, timestamptz, integer) from public;

-- Of a job of a topic that is moved to another queue only the nodes know whether that is one, and they adopt it then, like one that
-- was inserted without the flag (0004). It is taken away here, and not by a trigger before the update: with such a one every
-- update would lock its row first, those of step() too.
create function pgqueuetopia.jobs_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  v_place timestamptz := coalesce(new.scheduled_at, old.scheduled_at);
begin
  perform pgqueuetopia.look_at(old.scope, old.queue, least(v_place, now()), v_place, old.priority);
  if tg_op = 'UPDATE' and (new.scope, new.queue) is distinct from (old.scope, old.queue) then
    perform pgqueuetopia.look_at(new.scope, new.queue, least(v_place, now()), v_place, new.priority);
    update pgqueuetopia.jobs j set topic = false where j.id = new.id and j.topic;
  end if;
  return null;
end
$$;

-- Per row, with a condition: these fire for what people change by hand, and never for the hot path (a
-- statement-level trigger with transition tables would copy every row that step() updates).
create trigger jobs_moved
after update of scope, queue, scheduled_at, topic on pgqueuetopia.jobs
for each row when (
  (
    new.done_at is null
    and (
      (new.scope, new.queue, new.scheduled_at) is distinct from (old.scope, old.queue, old.scheduled_at)
      or (old.topic and not new.topic)
    )
  )
  -- One that has ended, too: it may be brought back.
  or (new.topic and (new.scope, new.queue) is distinct from (old.scope, old.queue))
)
execute function pgqueuetopia.jobs_changed();

-- A wait cut short, a waiting head ended by hand, a finished job brought back.
create trigger jobs_released
after update of done_at, next_attempt_at on pgqueuetopia.jobs
for each row when (
  (old.done_at is not null and new.done_at is null)
  or (
    old.done_at is null
    and old.next_attempt_at is not null
    and (
      new.done_at is not null
      or new.next_attempt_at is null
      or new.next_attempt_at < old.next_attempt_at
    )
  )
)
execute function pgqueuetopia.jobs_changed();

-- Only a head that waits for its next attempt makes its queue's row later than the jobs behind it are due.
create trigger jobs_deleted
after delete on pgqueuetopia.jobs
for each row when (old.done_at is null and old.next_attempt_at is not null)
execute function pgqueuetopia.jobs_changed();

-- The priority of the first job that is pending in a queue; null if there is none.
create function pgqueuetopia.first_priority(p_scope text, p_queue text) returns integer
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select j.priority from pgqueuetopia.jobs j
  where j.scope = p_scope and j.queue = p_queue and j.done_at is null
  order by j.scheduled_at, j.id
  limit 1
$$;

-- A queue that was parked while suspended is looked at again, in every scope that the config speaks to.
-- A job that is being created now cannot be seen here, and a step that sees it may park its queue before this has committed. So a
-- scope's own config leaves a row whatever is there; and who cannot know all scopes keeps everybody from parking (let_go).
create function pgqueuetopia.unpark(config_scope text, parked_queue text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  if config_scope <> '*' then
    perform pgqueuetopia.look_at(
      config_scope, parked_queue, now(), '-infinity',
      coalesce(pgqueuetopia.first_priority(config_scope, parked_queue), 0)
    );
    return;
  end if;
  perform pg_advisory_xact_lock_shared(pgqueuetopia.lock_key('parking', ''));
  with recursive scopes (scope) as (
    select min(scope) from pgqueuetopia.jobs where done_at is null
    union all
    select (
      select min(j.scope) from pgqueuetopia.jobs j where j.done_at is null and j.scope > s.scope
    )
    from scopes s
    where s.scope is not null
  )
  insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at, place)
  select s.scope, parked_queue, p.priority, now(), '-infinity'
  from scopes s
  cross join lateral (select pgqueuetopia.first_priority(s.scope, parked_queue) as priority) p
  where s.scope is not null and p.priority is not null;
end
$$;
revoke execute on function pgqueuetopia.unpark(text, text) from public;

-- A transaction that suspends closes the gate, and so holds up every claim until it ends; then it waits for the jobs
-- that are being started: no job starts after it has committed. A node that does not answer in two seconds is
-- not waited for.
create function pgqueuetopia.wait_for_starts(config_scope text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
begin
  -- In blocks of their own: whoever does not answer, the gate stays closed for the others.
  begin
    perform pg_advisory_xact_lock(pgqueuetopia.lock_key('gate', config_scope));
    begin
      perform pg_advisory_xact_lock(pgqueuetopia.lock_key('starting', config_scope));
      return;
    exception when lock_not_available then
      null;
    end;
  exception when lock_not_available then
    null;
  end;
  raise warning 'pgqueuetopia: a node of scope % did not answer in 2 s; it may start jobs it has claimed already', config_scope
  using hint = 'Run "pgqueuetopia status" to see the nodes.';
end
$$;
revoke execute on function pgqueuetopia.wait_for_starts(text) from public;

create function pgqueuetopia.job_configs_changed() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  was boolean := tg_op <> 'INSERT' and pgqueuetopia.is_suspension(old.key, old.value);
  is_now boolean := tg_op <> 'DELETE' and pgqueuetopia.is_suspension(new.key, new.value);
begin
  if is_now then
    perform pgqueuetopia.wait_for_starts(new.scope);
  end if;
  if was and old.key <> 'suspended' then
    perform pgqueuetopia.unpark(old.scope, left(old.key, -length('_suspended')));
  end if;
  if was <> is_now then
    perform pgqueuetopia.tell(
      coalesce(new.scope, old.scope), array[json_build_array(
        case when is_now then 'suspended' else 'resumed' end, null,
        nullif(regexp_replace(coalesce(new.key, old.key), '_?suspended$', ''), ''), 0, null
      )::text]
    );
  end if;
  if tg_op <> 'INSERT' then
    perform pg_notify('pgqueuetopia_configs', json_build_array(old.scope, old.key)::text);
  end if;
  if tg_op <> 'DELETE' then
    perform pg_notify('pgqueuetopia_configs', json_build_array(new.scope, new.key)::text);
  end if;
  return null;
end
$$;

create trigger job_configs_changed
after insert or update or delete on pgqueuetopia.job_configs
for each row execute function pgqueuetopia.job_configs_changed();

-- All of them at once: before, for they are to be told of.
create function pgqueuetopia.job_configs_truncated() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  delete from pgqueuetopia.job_configs;
  return null;
end
$$;

create trigger job_configs_truncated
before truncate on pgqueuetopia.job_configs
for each statement execute function pgqueuetopia.job_configs_truncated();

-- Whoever waits for a job's replies reads them; the notification says of which job they are.
create function pgqueuetopia.replies_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg_notify('pgqueuetopia_replies', job::text) from (select distinct job from inserted) as jobs;
  return null;
end
$$;

create trigger replies_inserted
after insert on pgqueuetopia.replies
referencing new table as inserted
for each statement execute function pgqueuetopia.replies_inserted();

-- On a table of one's own, with types and casts of one's own, they would run that as their owner.
revoke execute on function
  pgqueuetopia.jobs_inserted(), pgqueuetopia.jobs_changed(), pgqueuetopia.job_configs_changed(),
  pgqueuetopia.replies_inserted(), pgqueuetopia.job_configs_truncated()
from public;
