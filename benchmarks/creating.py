"""How many jobs a second can be created, and what does our trigger cost, beside a busy node?"""

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

import anyio

from benchmarks import scale
from benchmarks.clients import commits_per_second, tool
from benchmarks.figures import Figure, rate, ratio
from benchmarks.server import Server, connected
from benchmarks.throughput import SCOPE, Nothing
from pgqueuetopia import NewJob, Queuetopia, Repo

# The time that a commit takes changes from minute to minute where the disk is shared.
ROUNDS = 5
CLIENTS = (1, 8, 32)
SECONDS = max(round(scale.seconds(5)), 1)
# More than a node runs while the clients are measured, and while they connect.
BACKLOG = 30_000 * (SECONDS + 1)
QUEUES = 1_000
TASKS = 100
JOBS_A_TASK = scale.count(100)
MANY = scale.count(1_000_000)
BATCH = 10_000

FILL = """
insert into pgqueuetopia.jobs (scope, queue, action)
select $1, 'busy_' || n % $3, 'nothing'
from generate_series(1, $2) n
"""
# Due tomorrow, so that the node has the same to do whatever the trigger does.
CREATE = f"""
insert into pgqueuetopia.jobs (scope, queue, action, scheduled_at)
values ('{SCOPE}', 'created_' || floor(random() * {QUEUES}), 'nothing', now() + interval '1 day')
"""
OURS, ALWAYS, NONE = "our trigger", "a trigger that always notifies", "no trigger"
# What makes each of them. The one that always notifies asks nothing, and does no more than it must.
TRIGGERS = {
    OURS: "",
    ALWAYS: """
create or replace function pgqueuetopia.jobs_inserted() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  insert into pgqueuetopia.run_queue (scope, queue, priority, ready_at, place)
  select i.scope, i.queue, i.priority, greatest(i.scheduled_at, i.next_attempt_at), i.scheduled_at
  from inserted i
  where i.done_at is null and not i.topic;
  perform pg_notify('pgqueuetopia_jobs', i.scope) from inserted i;
  return null;
end
$$
""",
    NONE: "alter table pgqueuetopia.jobs disable trigger jobs_inserted",
}


async def measure(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """One job a commit, by clients in another process; then by tasks of one process, and by the million."""
    return [
        *await _one_a_commit(server, tell),
        await _in_rounds(f"create_job, called by {TASKS} tasks of one process", _by_tasks, server, tell),
        await _in_rounds(f"create_jobs, {MANY:,} jobs, {BATCH:,} a call", _in_batches, server, tell),
    ]


async def _one_a_commit(server: Server, tell: Callable[[str], None]) -> list[Figure]:
    """The triggers in turns, each on a fresh database."""
    rates: dict[tuple[int, str], list[float]] = defaultdict(list)
    for round_ in range(1, ROUNDS + 1):
        for clients in CLIENTS:
            for trigger in TRIGGERS:
                async with server.database() as dsn:
                    rates[clients, trigger].append(await _beside_a_node(dsn, trigger, clients))
            told = ", ".join(f"{trigger} {rates[clients, trigger][-1]:,.0f}" for trigger in TRIGGERS)
            tell(f"round {round_} of {ROUNDS}, {clients} clients ({tool()}): {told} jobs/s")
    return [
        *(
            rate(f"one job a commit, {_so_many(clients)}, {t}", found)
            for (clients, t), found in rates.items()
        ),
        _compared(rates, NONE),
        _compared(rates, ALWAYS),
    ]


def _so_many(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients"


def _compared(rates: dict[tuple[int, str], list[float]], other: str) -> Figure:
    most = max(CLIENTS)
    pairs = zip(rates[most, OURS], rates[most, other], strict=True)
    return ratio(f"{_so_many(most)}: {OURS} over {other}", [ours / its for ours, its in pairs])


async def _beside_a_node(dsn: str, trigger: str, clients: int) -> float:
    """What the clients commit while a node has more to do than it can, and so never sleeps."""
    performer = Nothing(BACKLOG)
    async with connected(dsn) as connection:
        await connection.execute(FILL, SCOPE, BACKLOG, QUEUES)
        if change := TRIGGERS[trigger]:
            await connection.execute(change)
    app = Queuetopia(repo=Repo(dsn), performer=performer, scope=SCOPE)
    async with app.running():
        commits = await commits_per_second(dsn, CREATE, clients, SECONDS)
    await app.close()
    if performer.all_started.is_set():
        raise RuntimeError(f"The node has run all {BACKLOG:,} jobs of its backlog: it needs a larger one.")
    return commits


async def _in_rounds(
    question: str,
    jobs_per_second: Callable[[Queuetopia], Awaitable[float]],
    server: Server,
    tell: Callable[[str], None],
) -> Figure:
    rates = []
    for round_ in range(1, ROUNDS + 1):
        async with server.database() as dsn:
            app = Queuetopia(repo=Repo(dsn), scope=SCOPE)
            rates.append(await jobs_per_second(app))
            await app.close()
        tell(f"{question}, round {round_} of {ROUNDS}: {rates[-1]:,.0f} jobs/s")
    return rate(question, rates)


async def _by_tasks(app: Queuetopia) -> float:
    """The pool's connections are open before the time is taken."""
    await _run_tasks(app, 1)
    begun = time.monotonic()
    await _run_tasks(app, JOBS_A_TASK)
    return TASKS * JOBS_A_TASK / (time.monotonic() - begun)


async def _run_tasks(app: Queuetopia, jobs: int) -> None:
    async with anyio.create_task_group() as tasks:
        for n in range(TASKS):
            tasks.start_soon(_create, app, f"q{n}", jobs)


async def _create(app: Queuetopia, queue: str, jobs: int) -> None:
    for _ in range(jobs):
        await app.create_job(queue, "nothing")


async def _in_batches(app: Queuetopia) -> float:
    begun = time.monotonic()
    for first in range(0, MANY, BATCH):
        numbers = range(first, min(first + BATCH, MANY))
        await app.create_jobs([NewJob(f"q{n % QUEUES}", "nothing") for n in numbers])
    return MANY / (time.monotonic() - begun)
