"""Takes out, one at a time, the lines that a promise hangs on, and sees a test fail: make mutants.

Each runs in a copy of the project. Exit 1 if a line can go and its test still passes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__")
LIMIT = 300

TRIGGERS = "migrations/0002_triggers.up.sql"
PERSIST = "migrations/0003_persist.up.sql"
ACQUIRE = "migrations/0004_acquire.up.sql"
CLAIM = "migrations/0005_claim.up.sql"
TOPICS = "migrations/0006_topics.up.sql"
STEP = "migrations/0007_step.up.sql"
OPERATE = "migrations/0008_operate.up.sql"
ROWS = "pgqueuetopia/db/rows.py"
QUEUETOPIA = "pgqueuetopia/queuetopia.py"
NODE = "pgqueuetopia/node/node.py"
SCHEDULER = "pgqueuetopia/node/scheduler.py"
EXECUTION = "pgqueuetopia/node/execution.py"
HELD = "pgqueuetopia/node/held.py"
SLEEP = "pgqueuetopia/node/sleep.py"

RACES = "tests/db/test_races.py"
FRONT = "tests/db/test_front.py"
KNOWN = "tests/db/test_known.py"
PRIORITIES = "tests/db/test_priorities.py"
MANY = "tests/db/test_many_rows.py"
TRIGGERED = "tests/db/test_triggers.py"
SLOTS = "tests/db/test_slots.py"
CRASH = "tests/db/test_crash.py"
PREFETCH = "tests/db/test_prefetch.py"
PREFETCHING = "tests/node/test_prefetch.py"
LOSS = "tests/node/test_session_loss.py"
SCHEDULING = "tests/node/test_scheduler.py"
SHORTAGES = "tests/node/test_shortages.py"
POISON = "tests/node/test_poison.py"
SUSPENDING = "tests/test_suspending.py"
MODES = "tests/test_modes.py"
RUNNING = "tests/test_running.py"
SIGNALS = "tests/acceptance/test_signals.py"

# How the plain outcomes are fenced: once where they are kept, and once where they are not.
FENCE = "        and j.claim = p_claims[v_first_plain - 1 + width_bucket(j.id, v_plain)]\n"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault put into a file, and the test that finds it."""

    fault: str
    file: str
    line: str
    instead: str
    test: str


MUTANTS = [
    Mutant(
        "the number of a claim that a crash has forgotten is given out again",
        CLAIM,
        "claim = greatest(j.claim + 1, p_least_claim),",
        "claim = j.claim + 1,",
        f"{CRASH}::test_the_number_of_a_claim_that_a_crash_forgets_is_not_given_out_again",
    ),
    Mutant(
        "that of a job of a topic is given out again",
        TOPICS,
        "claim = greatest(j.claim + 1, p_least_claim),",
        "claim = j.claim + 1,",
        f"{CRASH}::test_nor_is_that_of_a_job_of_a_topic",
    ),
    Mutant(
        "nobody notices a crash",
        CLAIM,
        "    perform nextval('pgqueuetopia.crashes');\n",
        "",
        f"{CRASH}::test_the_number_of_a_claim_that_a_crash_forgets_is_not_given_out_again",
    ),
    Mutant(
        "each session counts as a crash",
        CLAIM,
        "  if found then\n    perform nextval",
        "  if true then\n    perform nextval",
        f"{CRASH}::test_two_that_notice_a_crash_at_once_notice_one",
    ),
    Mutant(
        "that there was a crash is forgotten by the next",
        CLAIM,
        "    perform set_config('synchronous_commit', 'on', true)"
        " where current_setting('synchronous_commit') = 'off';\n",
        "",
        f"{CRASH}::test_nor_after_another_crash_where_nothing_waits_for_the_disk",
    ),
    Mutant(
        "a node claims at once after a crash",
        "pgqueuetopia/db/session.py",
        '        await anyio.sleep(row["calm_in"])\n',
        "",
        f"{CRASH}::test_who_opens_a_session_after_a_crash_gives_others_half_a_second_to_stop",
    ),
    Mutant(
        "an outcome does not wait for the disk",
        STEP,
        "if ask.ids is null and ask.lengths is null and",
        "if ask.lengths is null and",
        f"{CRASH}::test_an_outcome_and_what_was_claimed_before_it_survive_a_crash",
    ),
    Mutant(
        "what is prefetched does not wait for the disk",
        STEP,
        "and ask.lengths is null and coalesce(ask.length, 1) = 1 then",
        "then",
        f"{CRASH}::test_what_is_prefetched_survives_a_crash",
    ),
    Mutant(
        "of many jobs that look like one only one gets a row",
        TRIGGERS,
        "    where i.done_at is null and not i.topic;\n",
        "    where i.done_at is null and not i.topic limit 1;\n",
        f"{TRIGGERED}::test_two_jobs_that_the_server_counts_as_one",
    ),
    Mutant(
        "a job finds what the one before it did to their task",
        EXECUTION,
        "if following is None or not run.leaves_no_trace:",
        "if following is None:",
        f"{PREFETCHING}::test_what_a_job_does_to_its_task_is_not_there_for_the_next",
    ),
    Mutant(
        "a scan begins where the first row is due, be it tomorrow",
        ACQUIRE,
        "fronts := fronts || least(v_front, p_latest);",
        "fronts := fronts || v_front;",
        f"{FRONT}::test_what_is_due_later_does_not_hide_what_comes_in_now",
    ),
    Mutant(
        "a node that is called out of its sleep, and finds nothing new, sleeps on",
        SCHEDULER,
        "        elif called:\n",
        "        elif False:\n",
        f"{SCHEDULING}::test_a_job_that_is_due_since_long_calls_a_node_out_of_its_sleep",
    ),
    Mutant(
        "a job that was moved by hand since the look is run where it was",
        CLAIM,
        "        and j.queue = l.queue\n",
        "",
        f"{RACES}::test_a_job_that_is_moved_by_hand_between_look_and_claim_is_not_run_where_it_was",
    ),
    Mutant(
        "a session that sleeps is passed over as it asks whether nobody waits",
        STEP,
        "        if not ask.asleep then\n",
        "        if true then\n",
        f"{RACES}::test_creators_ask_who_sleeps_as_long_as_one_does",
    ),
    Mutant(
        "who begins to wait notes it before the lock is held",
        TRIGGERS,
        "  perform pg_advisory_lock_shared(pgqueuetopia.lock_key('waiting', ''));\n"
        "  if pg_sequence_last_value('pgqueuetopia.waiting') is distinct from 1 then\n"
        "    perform setval('pgqueuetopia.waiting', 1);\n"
        "  end if;\n",
        "  if pg_sequence_last_value('pgqueuetopia.waiting') is distinct from 1 then\n"
        "    perform setval('pgqueuetopia.waiting', 1);\n"
        "  end if;\n"
        "  perform pg_advisory_lock_shared(pgqueuetopia.lock_key('waiting', ''));\n",
        f"{RACES}::test_who_falls_asleep_as_the_last_one_wakes_up_is_notified",
    ),
    Mutant(
        "what a crash has left without a value counts as nobody who waits",
        TRIGGERS,
        "('pgqueuetopia.waiting') operator(pg_catalog.=) 0 then",
        "('pgqueuetopia.waiting') operator(pg_catalog.=) 1 is not true then",
        f"{RACES}::test_creators_ask_after_a_crash_too",
    ),
    Mutant(
        "who asks for sleepers is taken for one",
        TRIGGERS,
        "  when not pg_try_advisory_lock_shared(pgqueuetopia.lock_key(purpose, scope))\n    then false\n",
        "  when false then false\n",
        f"{RACES}::test_who_asks_for_sleepers_is_not_taken_for_one",
    ),
    Mutant(
        "who is called does not look for the queues of the dead any longer",
        SCHEDULER,
        "            self.rescue.wanted = is_due\n",
        "            self.rescue.wanted = False\n",
        f"{SCHEDULING}::test_a_node_that_is_called_as_it_falls_asleep_looks_for_the_queues_of_the_dead_all_the_same",
    ),
    Mutant(
        "what is behind a head that is claimed alone is locked",
        CLAIM,
        "limit case when l.next_attempt_at is null then greatest(l.length, p_length, 1) - 1 else 0 end",
        "limit l.length - 1",
        f"{PREFETCH}::test_what_is_behind_a_head_that_is_claimed_alone_is_left_alone",
    ),
    Mutant(
        "what committed since the look at a queue is removed as it is let go",
        CLAIM,
        "and (pg_visible_in_snapshot(r.xid, p_snapshot) or r.xid = pg_current_xact_id())",
        "",
        f"{RACES}::test_a_job_that_commits_after_the_look_at_a_queue_is_not_stranded",
    ),
    Mutant(
        "a queue is begun at the place of the row by which it was locked, whatever its other rows say",
        ACQUIRE,
        "min(r.place) as place",
        "min(r.place) filter (where r.is_marked) as place",
        f"{RACES}::test_a_queue_that_is_acquired_by_a_late_row_begins_with_what_was_left_of_it",
    ),
    Mutant(
        "the row of a queue whose head waits names the place of that",
        CLAIM,
        "case when l.next_attempt_at is null then l.scheduled_at else '-infinity' end",
        "l.scheduled_at",
        f"{RACES}::test_a_job_ahead_of_one_that_waits_is_run_when_that_is_cancelled",
    ),
    Mutant(
        "what comes in ahead of a queue just locked is not seen",
        ACQUIRE,
        "min(r.place) as place",
        "max(r.place) as place",
        f"{RACES}::test_a_job_that_commits_between_lock_and_look_ahead_of_all_others_is_the_first",
    ),
    Mutant(
        "a queue that has run dry is read from its start",
        CLAIM,
        "then timestamptz '-infinity'\n",
        "then timestamptz '-infinity' else '-infinity'\n",
        f"{FRONT}::test_a_queue_that_is_acquired_and_runs_dry_does_not_pass_its_dead_jobs",
    ),
    Mutant(
        "a queue that is acquired is read from its start",
        ACQUIRE,
        "pgqueuetopia.first_job(p_scope, m.queue, m.place)",
        "pgqueuetopia.first_job(p_scope, m.queue, '-infinity')",
        f"{FRONT}::test_a_queue_that_is_acquired_and_runs_dry_does_not_pass_its_dead_jobs",
    ),
    Mutant(
        "a queue is unlocked before the commit",
        STEP,
        "  -- failpoint: before commit\n",
        "  perform pg_advisory_unlock(pgqueuetopia.lock_key('queue', p_scope, q.queue))"
        " from unnest(v_let_go) q (queue);\n  -- failpoint: before commit\n",
        f"{RACES}::test_nobody_claims_before_the_outcome_has_committed",
    ),
    Mutant(
        "a lock is kept though the row was gone: the stale head",
        ACQUIRE,
        "    coalesce(array_agg((h.head).queue order by h.n), '{}'), array_agg",
        "    p_queues, array_agg",
        f"{RACES}::test_a_job_that_another_node_has_just_finished_is_not_run_again",
    ),
    Mutant(
        "the rows of a queue just found empty are taken for surplus ones",
        ACQUIRE,
        "        if not r.taken and r.place > p_claimed_at[r.held] then\n",
        "        if not r.taken then\n",
        f"{RACES}::test_a_job_that_commits_after_the_look_at_a_queue_that_goes_on_is_not_stranded",
    ),
    Mutant(
        "rows are removed in a later snapshot than the look",
        STEP,
        "  if cardinality(v_claimed) = 0 and not answer.suspended then\n",
        "  delete from pgqueuetopia.run_queue q where q.queue = any (v_let_go);\n"
        "  if cardinality(v_claimed) = 0 and not answer.suspended then\n",
        f"{RACES}::test_a_job_that_commits_after_the_look_at_a_queue_that_goes_on_is_not_stranded",
    ),
    Mutant(
        "what a dead node ran is not found",
        ACQUIRE,
        "if v_orphans is not null then",
        "if false then",
        f"{RACES}::test_nothing_overtakes_a_job_whose_node_died",
    ),
    Mutant(
        "only a job that never waited is found",
        ACQUIRE,
        "o.attempted_at >= coalesce(o.next_attempt_at, '-infinity')",
        "o.next_attempt_at is null and o.attempted_at is not null",
        f"{RACES}::test_what_a_dead_node_ran_waits_a_little_however_often_it_was_run_before",
    ),
    Mutant(
        "a wait that is cut short goes on",
        TRIGGERS,
        "      or new.next_attempt_at < old.next_attempt_at\n",
        "",
        f"{RACES}::test_the_report_of_a_node_that_lost_its_session_ends_the_wait_for_it",
    ),
    Mutant(
        "what comes in ahead of a queue that goes on is not seen",
        CLAIM,
        "and e.place <= a.place and not e.taken",
        "and false",
        f"{RACES}::test_a_job_that_comes_in_ahead_of_a_queue_that_goes_on_is_the_next",
    ),
    Mutant(
        "what came in ahead of a job that runs is removed by a scan",
        ACQUIRE,
        "if not r.taken and r.place > p_claimed_at[r.held] then",
        "if not r.taken then",
        f"{RACES}::test_a_job_that_comes_in_ahead_while_steps_pass_is_the_next",
    ),
    Mutant(
        "what came in ahead of a job that runs is tidied away",
        ACQUIRE,
        "r.place > o.claimed_at as is_behind",
        "true as is_behind",
        f"{RACES}::test_a_job_that_comes_in_ahead_while_steps_pass_is_the_next",
    ),
    Mutant(
        "the rows of a queue that goes on and on pile up",
        STEP,
        "array(select c.queue from unnest(v_claimed) c), answer.snapshot",
        "'{}', answer.snapshot",
        f"{RACES}::test_the_rows_of_a_queue_that_goes_on_and_on_do_not_pile_up",
    ),
    Mutant(
        "all that came in for a queue is removed in one step",
        ACQUIRE,
        "pgqueuetopia.rows_since(m.seen, p_scope, m.queue) limit v_most + 1) r",
        "pgqueuetopia.rows_since(m.seen, p_scope, m.queue)) r",
        f"{MANY}::test_a_queue_is_run_when_steps_have_removed_what_it_has_too_much_of",
    ),
    Mutant(
        "a scan goes on behind a queue of which only some rows were removed",
        ACQUIRE,
        "        v_fronts := v_first_fronts;\n",
        "        null;\n",
        f"{MANY}::test_a_queue_is_run_when_steps_have_removed_what_it_has_too_much_of",
    ),
    Mutant(
        "a dead node's row is removed before all are read",
        ACQUIRE,
        "        and (not s.taken or s.queue <> all (v_taken.too_many))\n",
        "",
        f"{MANY}::test_nothing_overtakes_a_job_whose_node_died",
    ),
    Mutant(
        "the places of rows that were too many are forgotten",
        ACQUIRE,
        "set taken = false, place = least(q.place, v_places[array_position(v_marked, q.ctid)])",
        "set taken = false",
        f"{MANY}::test_the_first_of_the_places_that_were_removed_is_where_it_begins",
    ),
    Mutant(
        "what came in ahead of a job that runs hides other queues",
        ACQUIRE,
        "if pgqueuetopia.put_together(v_ahead) then",
        "if false then",
        f"{MANY}::test_what_came_in_for_a_queue_that_runs_hides_no_other",
    ),
    Mutant(
        "who has not come to the end of a scan rests",
        ACQUIRE,
        "or cardinality(v_surplus) + coalesce(cardinality(v_taken.queues), 0) > 0;",
        ";",
        f"{MANY}::test_what_came_in_for_a_queue_that_runs_hides_no_other",
    ),
    Mutant(
        "what came in ahead of a job that runs hides queues from other nodes",
        ACQUIRE,
        "if cardinality(v_ahead) >= c_few then",
        "if false then",
        f"{MANY}::test_what_came_in_ahead_of_a_job_of_a_full_node_hides_no_queue_from_others",
    ),
    Mutant(
        "where very much came in ahead of one queue, what came in ahead of another is not seen",
        CLAIM,
        " or (select count(*) from ahead) = c_most",
        "",
        f"{MANY}::test_what_comes_in_ahead_is_the_next_wherever_very_much_does",
    ),
    Mutant(
        "all that came in is removed as a queue is let go",
        CLAIM,
        "      limit v_most\n      for update skip locked\n",
        "      for update skip locked\n",
        f"{MANY}::test_a_queue_that_is_let_go_leaves_them_to_who_meets_them",
    ),
    Mutant(
        "a head that waits for its next attempt is not the first",
        ACQUIRE,
        "and w.done_at is null and w.next_attempt_at is not null",
        "and false",
        f"{RACES}::test_nothing_overtakes_a_job_whose_node_died",
    ),
    Mutant(
        "an outcome is not fenced by the claim",
        PERSIST,
        "      and j.claim = s.claim\n      and j.scope",
        "      and j.scope",
        f"{RACES}::test_a_late_outcome_is_fenced_by_the_claim",
    ),
    Mutant(
        "a row that somebody has locked stalls the node",
        STEP,
        "        if v_careful then\n          raise;",
        "        if true then\n          raise;",
        f"{RACES}::test_a_head_row_that_somebody_has_locked_holds_up_its_queue_alone",
    ),
    Mutant(
        "a job that could not be saved is looked at",
        STEP,
        "      -- failpoint: persisted\n",
        "      v_queues := v_queues || array(select q.queue from unnest(p_ids, p_queues) q (id, queue)"
        " where q.id = any (busy));\n      -- failpoint: persisted\n",
        f"{RACES}::test_an_outcome_whose_row_somebody_has_locked_is_saved_later",
    ),
    Mutant(
        "what was written and not heard of is written once more",
        PERSIST,
        "        and j.next_attempt_at = coalesce(j.updated_at + s.delay, 'infinity')\n",
        "        and false\n",
        f"{RACES}::test_an_outcome_of_which_the_node_has_not_heard_that_it_was_written_is_written_once",
    ),
    Mutant(
        "an operator's retry is taken back by an earlier run",
        "pgqueuetopia/db/sql/retry_jobs.sql",
        "    claim = j.claim + (j.done_at is not null)::integer,\n",
        "",
        f"{RACES}::test_an_outcome_of_which_the_node_has_not_heard_does_not_end_a_job_that_was_brought_back",
    ),
    Mutant(
        "which of several runs is not told again where somebody had its row locked",
        SCHEDULER,
        "hold.noted = hold.job is job and not stepped.careful\n",
        "hold.noted = hold.job is job\n",
        f"{PREFETCHING}::test_a_slow_job_whose_row_somebody_has_locked_is_seen_to_run_later",
    ),
    Mutant(
        "rows behind a running job stay",
        STEP,
        "      if ask.rescue then\n",
        "      if false then\n",
        f"{RACES}::test_rows_behind_a_running_job_are_tidied_even_by_a_node_that_is_full",
    ),
    Mutant(
        "what failed once is followed by what was behind it",
        CLAIM,
        "limit case when l.next_attempt_at is null then greatest(l.length, p_length, 1) - 1 else 0 end",
        "limit greatest(l.length, p_length, 1) - 1",
        f"{PREFETCH}::test_one_that_waited_runs_alone",
    ),
    Mutant(
        "a queue is looked at while another of its prefetched jobs runs",
        "pgqueuetopia/db/step.py",
        "for one in ended if one.queue not in running and not one.slot}",
        "for one in ended if not one.slot}",
        f"{PREFETCH}::test_their_queue_is_looked_at_when_the_last_has_ended",
    ),
    Mutant(
        "a queue is looked at while one of its prefetched jobs cannot be written",
        STEP,
        "where j.id = any (p_busy) and not j.topic",
        "where false",
        f"{PREFETCH}::test_a_queue_is_not_looked_at_while_one_of_several_cannot_be_written",
    ),
    Mutant(
        "a node takes another value for the usual one",
        CLAIM,
        "nullif(j.max_backoff, interval '1 day')",
        "nullif(j.max_backoff, interval '2 days')",
        "tests/db/test_claimed.py::test_one_of_a_topic",
    ),
    Mutant(
        "two runs of a job that was prefetched have the same claim",
        ACQUIRE,
        "set claim = j.claim + 1, attempted_at = null",
        "set attempted_at = null",
        f"{PREFETCH}::test_each_run_of_a_job_has_a_larger_claim_though_nothing_is_written_to_what_is_prefetched",
    ),
    Mutant(
        "all that a dead node has started and not told the end of waits for its report",
        ACQUIRE,
        "    order by o.scheduled_at, o.id\n    limit 1\n",
        "",
        f"{PREFETCH}::test_of_two_that_a_dead_node_has_started_the_first_waits_for_its_report",
    ),
    Mutant(
        "a prefetched job can be cancelled, and starts all the same",
        OPERATE,
        " or pgqueuetopia.is_prefetched(v_job))",
        ")",
        f"{PREFETCH}::test_only_the_first_has_started",
    ),
    Mutant(
        "a prefetched job can be cancelled once the one ahead of it is done",
        STEP,
        "    prefetched_to = b.last\n",
        "    prefetched_to = null\n",
        f"{PREFETCH}::test_their_queue_is_looked_at_when_the_last_has_ended",
    ),
    Mutant(
        "a job is prefetched while somebody cancels it",
        CLAIM,
        "          for no key update\n",
        "",
        f"{PREFETCH}::test_one_that_is_being_cancelled_is_not_prefetched",
    ),
    Mutant(
        "a prefetched job's start is told before the one ahead has ended",
        STEP,
        "(ask.lengths is not null or ask.length > 1) and not pgqueuetopia.is_listened_to(p_scope)",
        "ask.lengths is not null or ask.length > 1",
        f"{PREFETCH}::test_who_listens_is_told_of_each_start_before_the_next",
    ),
    Mutant(
        "a job that is prefetched overtakes one that has failed",
        HELD,
        "goes_on = hold.prefetched and succeeded and",
        "goes_on = hold.prefetched and",
        f"{PREFETCHING}::test_a_job_that_fails_is_run_again_before_what_was_prefetched_behind_it",
    ),
    Mutant(
        "what was prefetched behind a slow job waits for it",
        "pgqueuetopia/node/hold.py",
        "return now - self.began > LONG",
        "return False",
        f"{PREFETCHING}::test_a_slow_job_among_quick_ones_is_seen_to_run_and_what_is_behind_it_is_free",
    ),
    Mutant(
        "nobody sees that a prefetched job runs",
        STEP,
        "      if ask.begun is not null then\n",
        "      if false then\n",
        f"{PREFETCHING}::test_a_slow_job_among_quick_ones_is_seen_to_run_and_what_is_behind_it_is_free",
    ),
    Mutant(
        "what was prefetched starts while the node is paused",
        SCHEDULER,
        "return not (self.leaving or self.plan.pause.holds(queue))",
        "return not self.leaving",
        f"{PREFETCHING}::test_a_local_pause_stops_a_queue_after_the_job_that_runs",
    ),
    Mutant(
        "a session that claims all the time keeps a suspension waiting",
        STEP,
        "    pg_try_advisory_xact_lock_shared(pgqueuetopia.lock_key('gate', '*'))\n"
        "    and pg_try_advisory_xact_lock_shared(pgqueuetopia.lock_key('gate', p_scope))\n"
        "    and ",
        "    ",
        f"{RACES}::test_a_suspension_is_not_kept_waiting_by_what_would_be_claimed_meanwhile",
    ),
    Mutant(
        "one step's start counts for all",
        "pgqueuetopia/db/session.py",
        "self._unstarted - question.starting,",
        "self._unstarted,",
        f"{RACES}::test_a_suspension_waits_for_each_of_the_steps_whose_jobs_are_being_started",
    ),
    Mutant(
        "a suspension does not wait for what is being started",
        TRIGGERS,
        "    perform pgqueuetopia.wait_for_starts(new.scope);",
        "    null;",
        f"{RACES}::test_a_suspension_waits_for_the_jobs_that_are_being_started",
    ),
    Mutant(
        "a node sleeps before its horizon has passed",
        SLEEP,
        "if horizon >= self._horizon:",
        "if True:",
        f"{RACES}::test_a_job_that_was_inserted_before_the_node_slept_is_found_when_it_commits",
    ),
    Mutant(
        "the horizon is noted before the lock is held",
        STEP,
        "  perform pgqueuetopia.begin_to_wait('sleeping', p_scope);\n"
        "  -- failpoint: asleep\n"
        "  horizon := pg_current_xact_id()::text::bigint;\n",
        "  horizon := pg_current_xact_id()::text::bigint;\n"
        "  -- failpoint: asleep\n"
        "  perform pgqueuetopia.begin_to_wait('sleeping', p_scope);\n",
        f"{RACES}::test_who_commits_after_the_horizon_was_noted_has_seen_the_sleeper",
    ),
    Mutant(
        "the horizon is a snapshot's xmax",
        STEP,
        "horizon := pg_current_xact_id()::text::bigint;",
        "horizon := pg_snapshot_xmax(pg_current_snapshot())::text::bigint;",
        f"{RACES}::test_the_horizon_covers_the_newest_transaction_that_runs",
    ),
    Mutant(
        "a job is cancelled without its queue's lock",
        OPERATE,
        "    else pgqueuetopia.lock_key('queue', j.scope, j.queue)\n  end), j.topic\n",
        "    else j.id\n  end), j.topic\n",
        f"{RACES}::test_a_job_that_is_being_claimed_is_not_cancelled",
    ),
    Mutant(
        "a topic's slots are not locked",
        TOPICS,
        "            and pg_try_advisory_lock("
        "pgqueuetopia.lock_key('slot', p_scope, v_topic || chr(31) || v_next))\n",
        "",
        f"{SLOTS}::test_two_nodes_together_run_no_more_than_the_parallelism",
    ),
    Mutant(
        "a topic's job is not locked before it is read again",
        TOPICS,
        "          or not (r.id = any (v_mine) or pg_try_advisory_lock("
        "pgqueuetopia.lock_key('job', p_scope, r.id::text)));",
        ";",
        f"{SLOTS}::test_two_nodes_together_run_no_more_than_the_parallelism",
    ),
    Mutant(
        "a topic's job is started by what was read before it was locked",
        TOPICS,
        "      and j.claim = c.claim\n",
        "",
        f"{SLOTS}::test_a_job_whose_node_dies_while_another_looks_waits_for_its_report",
    ),
    Mutant(
        "a topic's job that has ended is started",
        TOPICS,
        "      and j.claim = c.claim\n      and j.outcome is null\n",
        "      and j.claim = c.claim\n",
        f"{SLOTS}::test_a_job_that_was_cancelled_after_it_was_lined_up_is_not_started",
    ),
    Mutant(
        "what a dead node ran of a topic is taken for free room",
        TOPICS,
        "          v_left := v_left - 1;\n          continue each_topic when v_left = 0;\n"
        "          continue;\n",
        "          continue;\n",
        f"{SLOTS}::test_what_a_dead_node_ran_waits_for_its_report_and_takes_up_room_meanwhile",
    ),
    Mutant(
        "slots are kept",
        STEP,
        "  if cardinality(ask.held_ids) > 0 or cardinality(v_line.ids) > 0 then\n",
        "  if false then\n",
        f"{SLOTS}::test_a_slot_that_is_not_needed_any_longer_is_let_go",
    ),
    Mutant(
        "a job that could not be adopted is stranded",
        ACQUIRE,
        "  where q.ctid = any (p_rows) and q.queue not in (select l.queue from left_over l);",
        "  where q.id = any (p_rows);",
        f"{SLOTS}::test_a_job_that_somebody_has_locked_is_adopted_later",
    ),
    Mutant(
        "a careful look at a topic waits for what a dead node ran",
        TOPICS,
        "          if not p_careful then\n            perform",
        "          if true then\n            perform",
        f"{SLOTS}::test_a_job_of_a_dead_node_that_somebody_has_locked_holds_up_no_other",
    ),
    Mutant(
        "a careful look takes what a dead node ran",
        ACQUIRE,
        "          where t.taken\n        )",
        "          where false\n        )",
        f"{RACES}::test_what_a_dead_node_ran_and_somebody_has_locked_holds_up_no_other_queue",
    ),
    Mutant(
        "who cancels believes in the lock of a queue that has become a topic",
        OPERATE,
        "  v_free := v_free and v_job.topic = v_topic;\n",
        "",
        f"{SLOTS}::test_a_job_that_is_adopted_and_started_is_not_cancelled_by_its_queues_lock",
    ),
    Mutant(
        "what a session knows of a queue is what it saw as it left it",
        "pgqueuetopia/db/known.py",
        "self.left[queue] = self._taken.pop(queue)",
        "self.left[queue] = self._taken.pop(queue) and quoted(snapshot)",
        f"{KNOWN}::test_a_node_that_died_had_the_queue_by_a_row_that_committed_while_we_held_it",
    ),
    Mutant(
        "a step that took a queue untold is told of no more the next time",
        "pgqueuetopia/db/known.py",
        "(taken & self.left.keys()) - set(self._told())",
        "False",
        f"{KNOWN}::test_a_step_is_told_of_as_many_queues_as_it_needs_those_left_the_longest_ago_first",
    ),
    Mutant(
        "who knows a queue overlooks what has run for long",
        ACQUIRE,
        "from pg_snapshot_xip(p_seen) x (xid)",
        "from pg_snapshot_xip(null) x (xid)",
        f"{KNOWN}::test_what_ran_as_the_queue_was_taken_and_has_committed_since_is_found",
    ),
    Mutant(
        "a rounded snapshot sees what ran",
        ACQUIRE,
        "coalesce(min(r.xid) filter (where r.xid > v_end - c_lately), v_end),",
        "v_end,",
        f"{KNOWN}::test_what_commits_after_many_looks_is_the_next_of_a_queue_that_goes_on",
    ),
    Mutant(
        "a queue is read from its start each time that it is taken",
        ACQUIRE,
        "pgqueuetopia.rows_since(m.seen, p_scope, m.queue)",
        "pgqueuetopia.rows_since(null, p_scope, m.queue)",
        f"{KNOWN}::test_a_queue_that_is_taken_again_does_not_pass_its_dead_rows",
    ),
    Mutant(
        "who had run for long and commits is not looked for any more",
        CLAIM,
        "split_part(q.snapshot, ':', 3) = (select o.running from old o)\n",
        "true\n",
        f"{KNOWN}::test_what_commits_after_many_looks_is_the_next_of_a_queue_that_goes_on",
    ),
    Mutant(
        "a full lock table ends the step",
        STEP,
        "        if answer.crowded then\n          raise;",
        "        if true then\n          raise;",
        f"{SHORTAGES}::test_a_full_lock_table_makes_a_node_hold_fewer_queues",
    ),
    Mutant(
        "nobody is told who joined",
        SLEEP,
        "        self._joined = True\n",
        "",
        f"{LOSS}::test_a_node_that_was_alone_notices_the_death_of_one_that_joined_later",
    ),
    Mutant(
        "who finds itself alone does not look for the dead",
        SCHEDULER,
        "            self.rescue.wanted = self.sleep.is_alone\n",
        "",
        f"{LOSS}::test_a_node_that_finds_itself_alone_looks_for_the_queues_of_the_dead_once_more",
    ),
    Mutant(
        "a job that was claimed long ago is started",
        EXECUTION,
        "await method(*arguments) if listener.begin(job) else Interrupted()",
        "(listener.begin(job), await method(*arguments))[1]",
        f"{LOSS}::test_a_job_that_was_claimed_too_long_ago_is_not_started",
    ),
    Mutant(
        "nobody ends a session that the server waits for in vain",
        SCHEDULER,
        "            await self.rescue.end_stalled()\n",
        "            pass\n",
        f"{LOSS}::test_a_node_that_reads_nothing_any_longer_is_ended_by_another",
    ),
    Mutant(
        "an answer is as old as when it was read",
        "pgqueuetopia/db/session.py",
        "self._heard_at = asked_at",
        "self._heard_at = time.monotonic()",
        f"{LOSS}::test_an_answer_is_as_old_as_its_question",
    ),
    Mutant(
        "an idle node does not ask for a sign of life",
        SCHEDULER,
        "            await self.session.ping()\n",
        "",
        f"{LOSS}::test_an_idle_session_gives_signs_of_life",
    ),
    Mutant(
        "what could not be written comes after what has ended since",
        HELD,
        "self.ended[:0] = [",
        "self.ended[len(self.ended) :] = [",
        "tests/node/test_held.py::test_what_could_not_be_written_comes_before_what_has_ended_since",
    ),
    Mutant(
        "what the next step settles is taken for free",
        SCHEDULER,
        "            unsettled | self.held.claimed(),\n",
        "            self.held.claimed(),\n",
        f"{SCHEDULING}::test_what_the_next_step_settles_does_not_run_again_and_is_held_once",
    ),
    Mutant(
        "what the next step settles takes up no room",
        SCHEDULER,
        "len(self.held.running) + len(unsettled), now",
        "len(self.held.running), now",
        f"{SCHEDULING}::test_what_the_next_step_settles_takes_up_its_room",
    ),
    Mutant(
        "who waits for the reply of a job that is not kept waits in vain",
        PERSIST,
        "        and j.next_attempt_at is null\n        and not j.reply\n",
        "        and j.next_attempt_at is null\n",
        "tests/db/test_not_kept.py::test_one_whose_reply_somebody_waits_for_is_replied_to",
    ),
    Mutant(
        "a plain outcome is not fenced by the claim",
        PERSIST,
        f"{FENCE}        and not j.reply\n",
        "        and not j.reply\n",
        f"{RACES}::test_a_late_outcome_is_fenced_by_the_claim",
    ),
    Mutant(
        "a plain outcome is fenced by the claim of another",
        PERSIST,
        f"{FENCE}        and not j.reply\n",
        "        and j.claim = any (p_claims)\n        and not j.reply\n",
        f"{RACES}::test_of_several_outcomes_each_is_fenced_by_its_own_claim",
    ),
    Mutant(
        "who waits for the reply of a job that has succeeded waits in vain",
        PERSIST,
        f"{FENCE}        and not j.reply\n",
        FENCE,
        "tests/test_replies.py::test_a_job_without_a_result_tells_that_it_has_succeeded",
    ),
    Mutant(
        "a queue is looked at though the outcome of its last job is lost",
        STEP,
        "(q.id is null or q.id in (select unnest(p_saved)))",
        "true",
        f"{PREFETCH}::test_a_queue_is_not_looked_at_where_the_last_of_several_is_not_written",
    ),
    Mutant(
        "a topic's job that cannot be written holds back the queue of its name",
        STEP,
        "where j.id = any (p_busy) and not j.topic",
        "where j.id = any (p_busy)",
        f"{PREFETCH}::test_a_job_that_cannot_be_written_holds_its_queue_back_and_a_topics_job_none",
    ),
    Mutant(
        "a queue that is acquired gets one job at once",
        STEP,
        "v_length_acquired := nullif(ask.length, 1);",
        "",
        f"{PREFETCH}::test_a_queue_that_is_acquired_gets_several_where_they_are_asked_for",
    ),
    Mutant(
        "a new queue gets one job at once though others had several",
        HELD,
        "self.usual_size += (size - self.usual_size) / LATELY",
        "pass",
        f"{PREFETCHING}::test_a_new_queue_gets_as_many_at_once_as_those_that_went_on",
    ),
    Mutant(
        "a job that is not kept and was claimed since is deleted",
        PERSIST,
        f"{FENCE}        and j.next_attempt_at",
        "        and j.next_attempt_at",
        "tests/db/test_not_kept.py::test_one_that_another_node_has_claimed_since_is_not_deleted",
    ),
    Mutant(
        "jobs run on after their session was lost",
        NODE,
        "            session.abort()\n            await self._end_without_session(scheduler)\n",
        "            session.abort()\n",
        f"{LOSS}::test_a_job_of_a_lost_session_is_stopped_and_runs_again_without_a_spent_attempt",
    ),
    Mutant(
        "what ended without a session is not saved",
        NODE,
        "        self._unsaved += [one for one in scheduler.held.ended if one.job is not None]\n",
        "",
        f"{LOSS}::test_an_outcome_that_came_in_while_the_session_was_lost_is_saved_late",
    ),
    Mutant(
        "the gate opens again where a node does not answer a suspension",
        TRIGGERS,
        "    begin\n      perform pg_advisory_xact_lock(pgqueuetopia.lock_key('starting', config_scope));\n"
        "      return;\n    exception when lock_not_available then\n      null;\n    end;\n",
        "    perform pg_advisory_xact_lock(pgqueuetopia.lock_key('starting', config_scope));\n    return;\n",
        f"{RACES}::test_a_suspension_that_gives_up_on_one_node_holds_up_the_others_until_it_commits",
    ),
    Mutant(
        "who resumes a queue believes that it has no job",
        TRIGGERS,
        "  if config_scope <> '*' then\n",
        "  if config_scope <> '*' and pgqueuetopia.first_priority(config_scope, parked_queue) is null then\n"
        "    return;\n  elsif config_scope <> '*' then\n",
        f"{RACES}::test_a_queue_that_is_resumed_while_a_job_of_it_is_being_created_is_not_stranded",
    ),
    Mutant(
        "a queue is parked while it is resumed in every scope",
        TRIGGERS,
        "  perform pg_advisory_xact_lock_shared(pgqueuetopia.lock_key('parking', ''));\n",
        "",
        f"{RACES}::test_a_queue_that_is_resumed_while_a_job_of_it_is_being_created_is_not_stranded",
    ),
    Mutant(
        "who truncates the configs resumes no queue",
        TRIGGERS,
        "  delete from pgqueuetopia.job_configs;\n",
        "",
        f"{SUSPENDING}::test_a_queue_is_resumed_where_all_configs_are_truncated",
    ),
    Mutant(
        "a queue that is resumed has the usual priority",
        TRIGGERS,
        "      coalesce(pgqueuetopia.first_priority(config_scope, parked_queue), 0)\n",
        "      0\n",
        f"{PRIORITIES}::test_a_queue_that_is_resumed_comes_before_those_of_lower_priority",
    ),
    Mutant(
        "a queue that is resumed in every scope has the usual priority",
        TRIGGERS,
        "  select s.scope, parked_queue, p.priority, now(), '-infinity'\n",
        "  select s.scope, parked_queue, 0, now(), '-infinity'\n",
        f"{PRIORITIES}::test_a_queue_that_is_resumed_comes_before_those_of_lower_priority",
    ),
    Mutant(
        "a job that is rescheduled has the usual priority",
        TRIGGERS,
        "least(v_place, now()), v_place, old.priority);",
        "least(v_place, now()), v_place, 0);",
        f"{PRIORITIES}::test_a_job_that_is_rescheduled_comes_before_those_of_lower_priority",
    ),
    Mutant(
        "a job that is moved by hand has the usual priority",
        TRIGGERS,
        "least(v_place, now()), v_place, new.priority);",
        "least(v_place, now()), v_place, 0);",
        f"{PRIORITIES}::test_a_job_that_is_rescheduled_comes_before_those_of_lower_priority",
    ),
    Mutant(
        "a job whose wait is cut short has the usual priority",
        TRIGGERS,
        "least(v_place, now()), v_place, old.priority);",
        "least(v_place, now()), v_place, 0);",
        f"{PRIORITIES}::test_a_job_whose_wait_is_cut_short_comes_before_those_of_lower_priority",
    ),
    Mutant(
        "a job that died with its node in its last attempt runs again and again",
        PERSIST,
        "when s.spent or s.error is not null then 'infinity'",
        "when s.spent then 'infinity'",
        f"{RACES}::test_a_job_that_kills_its_node_in_its_last_attempt_blocks_its_queue_where_that_was_asked_for",
    ),
    Mutant(
        "a row that came by a dump is one of a transaction that is still to come",
        ACQUIRE,
        ", xid = least(q.xid, pg_current_xact_id())",
        "",
        f"{RACES}::test_a_queue_that_came_from_another_server_by_a_dump_leaves_no_row_that_is_taken",
    ),
    Mutant(
        "who has seen all rows of a queue that are left locks it and does nothing",
        ACQUIRE,
        "coalesce(bool_or(r.taken), true) as orphaned",
        "bool_or(r.taken) as orphaned",
        f"{KNOWN}::test_a_queue_is_let_go_whose_row_somebody_had_locked_as_it_was_left",
    ),
    Mutant(
        "what was prefetched behind a dead node's job keeps its claim where the last is gone",
        ACQUIRE,
        "    left join pgqueuetopia.jobs last on",
        "    join pgqueuetopia.jobs last on",
        f"{PREFETCH}::test_what_a_dead_node_tells_later_does_not_count_where_the_last_was_removed_by_hand",
    ),
    Mutant(
        "where nothing was prefetched behind a dead node's job all behind it has another claim",
        ACQUIRE,
        "    where first.prefetched_to is not null\n",
        "",
        f"{PREFETCH}::test_what_is_behind_a_dead_nodes_job_is_left_alone_where_nothing_was_prefetched",
    ),
    Mutant(
        "nothing behind a job that runs can be cancelled",
        OPERATE,
        "      and running.prefetched_to is not null\n",
        "",
        f"{PREFETCHING}::test_one_at_a_time_unless_asked_for",
    ),
    Mutant(
        "a prefetched job can be cancelled where the last is gone",
        OPERATE,
        "    left join pgqueuetopia.jobs last on",
        "    join pgqueuetopia.jobs last on",
        f"{PREFETCH}::test_only_the_first_has_started_where_the_last_was_removed_by_hand",
    ),
    Mutant(
        "a decorated async method is not run",
        EXECUTION,
        "            if inspect.iscoroutine(value):\n",
        "            if False:\n",
        f"{RUNNING}::test_an_async_method_behind_a_decorator_that_does_not_say_so_is_run",
    ),
    Mutant(
        "a decorated async method may take as long as it likes",
        EXECUTION,
        "                self._timeouts.add(run, limit)\n                value = await value",
        "                value = await value",
        f"{RUNNING}::test_it_has_no_more_time_than_any_other",
    ),
    Mutant(
        "a job that cancels its own task ends without a word",
        EXECUTION,
        "            # Of a job that has cancelled itself, too",
        "            if run.stopped is None:\n                raise\n            #",
        f"{POISON}::test_any_error_is_a_failure_of_the_job",
    ),
    Mutant(
        "a generator that nobody has run is a success",
        "pgqueuetopia/node/outcomes.py",
        "case _ if inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):",
        "case _ if False:",
        f"{POISON}::test_any_error_is_a_failure_of_the_job",
    ),
    Mutant(
        "what a failure mode says is not looked at",
        "pgqueuetopia/failure.py",
        "        if faults := list(_settlement_faults(settlement)):\n",
        "        if faults := []:\n",
        f"{MODES}::test_a_failure_mode_that_says_what_cannot_be_written_has_its_job_abandoned",
    ),
    Mutant(
        "a failure mode's delay is taken as it is",
        "pgqueuetopia/failure.py",
        "replace(settlement, delay=as_delay(delay))",
        "settlement",
        f"{MODES}::test_a_failure_mode_may_ask_for_any_delay",
    ),
    Mutant(
        "a run that a mode has decided on is taken for one that has died",
        "pgqueuetopia/failure.py",
        " or (mode is not None and _has_told_of_its_last_run(job)):",
        ":",
        f"{MODES}::test_a_mode_that_is_a_function_may_retry_as_often_as_it_likes",
    ),
    Mutant(
        "a failure mode is sent as the connection's codec has it",
        "pgqueuetopia/db/sql/create_job.sql",
        "$11::text::jsonb",
        "$11::jsonb",
        f"{MODES}::test_a_jobs_own_mode_is_stored_by_a_connection_with_a_codec_of_its_own",
    ),
    Mutant(
        "a hook that exits ends the node",
        EXECUTION,
        'except (Exception, SystemExit) as error:\n            _tell_exception("handle_failed_job_raised"',
        'except Exception as error:\n            _tell_exception("handle_failed_job_raised"',
        f"{RUNNING}::test_a_hook_or_a_backoff_that_raises_loses_nothing",
    ),
    Mutant(
        "a backoff that exits ends the node",
        EXECUTION,
        'except (Exception, SystemExit) as error:\n            _tell_exception("backoff_raised"',
        'except Exception as error:\n            _tell_exception("backoff_raised"',
        f"{RUNNING}::test_a_hook_or_a_backoff_that_raises_loses_nothing",
    ),
    Mutant(
        "a success mode that exits ends the node",
        EXECUTION,
        'except (Exception, SystemExit) as error:\n            _tell_exception("success_mode_raised"',
        'except Exception as error:\n            _tell_exception("success_mode_raised"',
        f"{MODES}::test_what_a_success_mode_raises_harms_nothing",
    ),
    Mutant(
        "what an interrupted job raises is its failure",
        EXECUTION,
        "            if run.stopped in (Stop.INTERRUPTED, Stop.KILLED):\n",
        "            if run.stopped is Stop.KILLED:\n",
        f"{POISON}::test_an_error_of_a_job_that_its_node_interrupts_is_no_failure",
    ),
    Mutant(
        "what a killed job raises is its failure",
        EXECUTION,
        "            if run.stopped in (Stop.INTERRUPTED, Stop.KILLED):\n",
        "            if run.stopped is Stop.INTERRUPTED:\n",
        f"{POISON}::test_an_error_of_a_job_that_an_operator_kills_is_no_failure",
    ),
    Mutant(
        "a result that is no JSON, though it looks like it, ends the node",
        "pgqueuetopia/node/outcomes.py",
        '        text, faults = json_text("result", result, LONGEST_RESULT)\n    except Exception',
        '        text, faults = json_text("result", result, LONGEST_RESULT)\n    except ZeroDivisionError',
        f"{POISON}::test_a_result_that_cannot_be_stored_is_told_and_the_job_has_succeeded",
    ),
    Mutant(
        "what a job leaves behind for its task is the end of the next",
        EXECUTION,
        "this one is not to be lost with it.\n                return job\n",
        "this one is not to be lost with it.\n                raise\n",
        f"{PREFETCHING}::test_a_cancellation_that_a_job_leaves_behind_does_not_cost_the_next",
    ),
    Mutant(
        "a job whose context cannot be compared ends without a word",
        "pgqueuetopia/node/run.py",
        "        except Exception:\n",
        "        except ZeroDivisionError:\n",
        f"{PREFETCHING}::test_a_job_may_set_a_context_variable_to_what_cannot_be_compared",
    ),
    Mutant(
        "two runs of a job on one node are one",
        EXECUTION,
        "self._running[job.id, job.claim]",
        "self._running[job.id, 0]",
        f"{LOSS}::test_a_job_that_ignores_its_cancellation_may_run_beside_itself_and_its_node_goes_on",
    ),
    Mutant(
        "an unexpected error leaves the session open",
        NODE,
        "        except BaseException:\n            session.abort()\n            raise\n        else:\n",
        "        else:\n",
        f"{LOSS}::test_an_unexpected_error_ends_the_session_and_others_run_what_it_ran",
    ),
    Mutant(
        "a worker whose init was cancelled by somebody else leaves its post empty",
        "pgqueuetopia/node/crew.py",
        "        except (Exception, asyncio.CancelledError) as error:\n",
        "        except Exception as error:\n",
        "tests/test_workers.py::test_an_init_that_awaits_what_somebody_else_has_cancelled_is_tried_again",
    ),
    Mutant(
        "of several instances only the last hears a signal",
        "pgqueuetopia/node/leaving.py",
        "    for hear in _heard_by:\n",
        "    for hear in _heard_by[-1:]:\n",
        f"{SIGNALS}::test_each_of_several_in_a_process_hears_each_signal",
    ),
    Mutant(
        "signals are heard only once the database is there",
        QUEUETOPIA,
        "        with until_told_to_stop(self._hurry):\n            async with self.running():\n",
        "        async with self.running():\n            with until_told_to_stop(self._hurry):\n",
        f"{SIGNALS}::test_a_node_that_waits_for_its_database_leaves_at_once",
    ),
    Mutant(
        "a node whose host is cancelled as it has started stays for ever",
        QUEUETOPIA,
        '        tasks.start_soon(_leave_when_cancelled, node, name="host")\n',
        "",
        f"{RUNNING}::test_a_node_whose_host_is_cancelled_as_it_has_started_leaves_in_order",
    ),
    Mutant(
        "a job is sent by the loop of another thread",
        "pgqueuetopia/db/sharing.py",
        "        if self._sending is not None and self._sending.get_loop() is not loop:\n",
        "        if False:\n",
        "tests/test_sharing.py::test_another_threads_loop_waits_for_nobody_elses_statement",
    ),
    Mutant(
        "params that Python cannot read end the node",
        ROWS,
        "        except (ValueError, RecursionError):\n",
        "        except ZeroDivisionError:\n",
        f"{POISON}::test_params_nested_deeper_than_python_reads_are_a_failure_of_their_job_alone",
    ),
    Mutant(
        "a job whose params Python cannot read cannot be looked at",
        ROWS,
        "    except RecursionError:\n",
        "    except ZeroDivisionError:\n",
        f"{POISON}::test_params_nested_deeper_than_python_reads_are_a_failure_of_their_job_alone",
    ),
    Mutant(
        "a number that Python refuses to read fails its job",
        ROWS,
        "json.loads(text, parse_int=_integer)",
        "json.loads(text)",
        f"{POISON}::test_a_number_of_more_digits_than_python_reads_is_performed_as_text",
    ),
    Mutant(
        "a validator's odd error ends the node",
        "pgqueuetopia/settings.py",
        "        except Exception as error:\n            # A validator",
        "        except ValidationError as error:\n            # A validator",
        "tests/db/test_configs.py"
        "::test_a_config_whose_validator_raises_anything_is_refused_and_the_node_goes_on",
    ),
    Mutant(
        "a validator of all settings that raises anything ends the node",
        "pgqueuetopia/settings.py",
        "model_validate(values), faults\n        except Exception",
        "model_validate(values), faults\n        except ValidationError",
        "tests/db/test_configs.py"
        "::test_a_config_whose_validator_raises_anything_is_refused_and_the_node_goes_on",
    ),
    Mutant(
        "all loops share a pool",
        "pgqueuetopia/db/repo.py",
        "        loop = asyncio.get_running_loop()\n        if loop",
        "        loop = next(iter(self._homes), asyncio.get_running_loop())\n        if loop",
        "tests/test_loops.py",
    ),
]


def main() -> int:
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.fault for word in sys.argv[1:])]
    survivors = [mutant for mutant in chosen if not tell(mutant)]
    sys.stdout.write(f"{len(chosen) - len(survivors)} of {len(chosen)} faults were found\n")
    return 1 if survivors else 0


def tell(mutant: Mutant) -> bool:
    found = is_found(mutant)
    sys.stdout.write(f"{'found' if found else 'MISSED':6} | {mutant.fault} | {mutant.file} | {mutant.test}\n")
    sys.stdout.flush()
    return found


def is_found(mutant: Mutant) -> bool:
    """Whether the test fails where the fault is, and not for another reason than that."""
    with tempfile.TemporaryDirectory(prefix="pgqueuetopia-mutant-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        file = copy / mutant.file
        text = file.read_text()
        if mutant.line not in text:
            sys.exit(f"{mutant.file} no longer has the line of: {mutant.fault}")
        file.write_text(text.replace(mutant.line, mutant.instead))
        return run(copy, mutant.test) == 1


def run(project: Path, test: str) -> int:
    """pytest's exit code: 1 is a failed test, and nothing else."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, timeout=LIMIT, check=False
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
