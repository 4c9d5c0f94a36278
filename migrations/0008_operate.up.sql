-- What people look at, and what operators do.

-- "Executing" is read from the locks, so it can never be wrong: the lock of the job's queue is held (a topic's job has one
-- of its own), and the job was claimed later than it was last told to wait. "Launched": what it started goes on.
create view pgqueuetopia.job_states as
with held as materialized (
  select (l.classid::bigint << 32) | l.objid::bigint as lock_key
  from pg_catalog.pg_locks l
  where l.locktype = 'advisory'
    and l.objsubid = 1
    and l.granted
    and l.mode = 'ExclusiveLock'
    and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
)
select
  j.*,
  case
    when j.topic and j.outcome = 'abandoned' then 'discarded'
    when j.done_at is not null then j.outcome
    when j.attempted_at >= coalesce(j.next_attempt_at, '-infinity')
      and exists (
        select from held h
        where h.lock_key = case
          when j.topic then pgqueuetopia.lock_key('job', j.scope, j.id::text)
          else pgqueuetopia.lock_key('queue', j.scope, j.queue)
        end
      ) then case when j.launched_at >= j.attempted_at then 'launched' else 'executing' end
    when j.next_attempt_at = 'infinity' then 'blocked'
    when j.next_attempt_at > statement_timestamp() then 'retrying'
    when j.scheduled_at > statement_timestamp() then 'scheduled'
    when not j.topic and exists (
      select from pgqueuetopia.jobs w
      where w.scope = j.scope
        and w.queue = j.queue
        and w.done_at is null
        and w.next_attempt_at > statement_timestamp()
    ) then 'blocked'
    else 'ready'
  end as state
from pgqueuetopia.jobs j;

create view pgqueuetopia.executing as
select s.id, s.scope, s.queue, s.action, s.attempts, s.claim, s.attempted_at, s.attempted_by, s.launched_at
from pgqueuetopia.job_states s
where s.done_at is null and s.attempted_at is not null and s.state in ('executing', 'launched');

-- The nodes that run now: one database session each.
create view pgqueuetopia.nodes as
select
  split_part(a.application_name, ' ', 2) as node,
  l.pid,
  (l.classid::bigint << 32) | l.objid::bigint as lock_key
from pg_catalog.pg_locks l
join pg_catalog.pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory'
  and l.objsubid = 1
  and l.granted
  and l.mode = 'ShareLock'
  and a.application_name like 'pgqueuetopia %'
  and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database());

-- Whether a node that holds the queue of this job may start it without asking (see claim).
create function pgqueuetopia.is_prefetched(p_job pgqueuetopia.jobs) returns boolean
language plpgsql
as $$
declare
  -- A node claims no more at once.
  c_most constant integer := 1000;
begin
  return exists (
    select
    from (
      select * from pgqueuetopia.jobs j
      where j.scope = p_job.scope and j.queue = p_job.queue and j.done_at is null and not j.topic
      order by j.scheduled_at, j.id
      limit c_most
    ) running
    -- Somebody may have removed the last: then it may have been any.
    left join pgqueuetopia.jobs last on last.id = running.prefetched_to
    where running.attempted_at >= coalesce(running.next_attempt_at, '-infinity')
      and (p_job.scheduled_at, p_job.id) > (running.scheduled_at, running.id)
      and running.prefetched_to is not null
      and (last.id is null or (p_job.scheduled_at, p_job.id) <= (last.scheduled_at, last.id))
  );
end
$$;

-- End a pending job that is not running. Either nobody holds the lock of its queue (or its own, if it is a topic's), and nobody can take
-- it while we decide, or a node holds it and the job's own row, which we lock, says whether it is the one
-- that runs.
create function pgqueuetopia.end_job(p_scope text, p_id bigint, p_outcome text) returns text
language plpgsql
as $$
declare
  v_job pgqueuetopia.jobs;
  v_free boolean;
  v_topic boolean;
begin
  select pg_try_advisory_xact_lock(case
    when j.topic then pgqueuetopia.lock_key('job', j.scope, j.id::text)
    else pgqueuetopia.lock_key('queue', j.scope, j.queue)
  end), j.topic
  into v_free, v_topic
  from pgqueuetopia.jobs j
  where j.scope = p_scope and j.id = p_id and j.done_at is null;
  -- failpoint: queue tried
  select * into v_job
  from pgqueuetopia.jobs j
  where j.scope = p_scope and j.id = p_id and j.done_at is null
  for update;
  if v_job.id is null then
    return 'NOT_FOUND';
  end if;
  -- A node may have made it a topic's meanwhile, and it was the wrong lock that we tried.
  v_free := v_free and v_job.topic = v_topic;
  if not v_free
    and (v_job.attempted_at >= coalesce(v_job.next_attempt_at, '-infinity') or pgqueuetopia.is_prefetched(v_job))
  then
    return 'IN_PROGRESS';
  end if;
  update pgqueuetopia.jobs j
  set done_at = clock_timestamp(), outcome = p_outcome, updated_at = clock_timestamp()
  where j.id = p_id;
  if pgqueuetopia.is_listened_to(p_scope) then
    perform pgqueuetopia.tell(p_scope, array[
      json_build_array('discarded', v_job.id, v_job.queue, v_job.attempts, p_outcome)::text
    ]);
  end if;
  if v_free then
    -- A node may have tried the lock while we held it.
    perform pg_notify('pgqueuetopia_jobs', p_scope);
  end if;
  return 'OK';
end
$$;

-- Note that a run has launched something which goes on, and tell that, or that it has ended.
create function pgqueuetopia.tell_launched(p_id bigint, p_claim bigint, p_event text) returns void
language plpgsql
as $$
declare
  v_scope text;
  v_event text;
begin
  update pgqueuetopia.jobs j
  set
    -- It may have been prefetched, and nobody have noted that it has begun.
    attempts = j.attempts + (j.attempted_at is null)::integer,
    attempted_at = coalesce(j.attempted_at, clock_timestamp()),
    launched_at = case p_event when 'launched' then clock_timestamp() else j.launched_at end
  where j.id = p_id and j.claim = p_claim and j.outcome is null
  returning j.scope, json_build_array(p_event, j.id, j.queue, j.attempts, null)::text into v_scope, v_event;
  if v_scope is not null and pgqueuetopia.is_listened_to(v_scope) then
    perform pgqueuetopia.tell(v_scope, array[v_event]);
  end if;
end
$$;

-- Put a job like this one at the end of another queue, and end this one as moved if it has not ended; not while it
-- runs. Returns the new job's id, or why not.
create function pgqueuetopia.move_job(p_scope text, p_id bigint, p_queue text, out id bigint, out why_not text)
language plpgsql
as $$
begin
  if not exists (select from pgqueuetopia.jobs j where j.scope = p_scope and j.id = p_id for update) then
    why_not := 'NOT_FOUND';
    return;
  end if;
  if pgqueuetopia.end_job(p_scope, p_id, 'moved') = 'IN_PROGRESS' then
    why_not := 'IN_PROGRESS';
    return;
  end if;
  id := pgqueuetopia.move(array[p_id], array[p_queue]);
end
$$;
