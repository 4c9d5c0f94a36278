"""How soon does an idle worker start a job, ours and those of the peers that are woken?"""

import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio

from benchmarks.figures import Figure, latencies
from benchmarks.peers.databases import a_database_with
from benchmarks.peers.peer import Contestant
from benchmarks.peers.runner import Event
from benchmarks.scale import count as scaled
from benchmarks.server import Server
from pgqueuetopia import Queuetopia, Repo
from tests.acceptance.cluster import Cluster, until_nodes_are_up
from tests.acceptance.node import SCOPE
from tests.support import eventually

# In turns, for the machine is not as fast all the time.
ROUNDS = 4
SAMPLES = scaled(50)
# Jobs that are not counted: a worker may still be starting.
WARM_UP = 5
JOBS = WARM_UP + SAMPLES
# In seconds; a pause is between one and two times as long.
PAUSE = 0.1
# In seconds, for the last job to start.
LIMIT = 60


@dataclass(frozen=True, slots=True)
class Samples:
    """When the enqueueing of each job was called, when it returned, and when the job started."""

    called: dict[int, float] = field(default_factory=dict)
    returned: dict[int, float] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)

    def since(self, moments: Mapping[int, float]) -> list[float]:
        """How long it took from then; a start before the enqueueing has returned counts as one at once."""
        return [max(self.started[job] - moments[job], 0.0) for job in list(moments)[WARM_UP:]]


async def measure(
    server: Server, contestants: Sequence[Contestant], tell: Callable[[str], None]
) -> list[Figure]:
    """The worker is a process of its own, which has had nothing to do for a tenth of a second or more."""
    turns = {
        "pgqueuetopia": partial(_ours, server),
        **{str(one): partial(_theirs, server, one) for one in contestants if one.peer.wakes},
    }
    found: dict[str, list[Samples]] = {who: [] for who in turns}
    for n in range(ROUNDS):
        for who, turn in turns.items():
            tell(f"{SAMPLES} jobs, each for an idle worker, round {n + 1} of {ROUNDS}: {who}")
            found[who].append(await turn())
    return [figure for who, samples in found.items() for figure in _figures(who, samples)]


def _figures(who: str, rounds: Sequence[Samples]) -> list[Figure]:
    return [
        latencies(
            f"idle {who}: from the enqueueing call's return to the start",
            [took for samples in rounds for took in samples.since(samples.returned)],
        ),
        latencies(
            f"idle {who}: from the enqueueing call to the start",
            [took for samples in rounds for took in samples.since(samples.called)],
        ),
    ]


async def _ours(server: Server) -> Samples:
    async with server.database() as dsn:
        app = Queuetopia(repo=Repo(dsn), scope=SCOPE)
        with tempfile.TemporaryDirectory() as folder:
            cluster = Cluster(dsn, Path(folder))
            try:
                node = cluster.start("--tuned")
                await until_nodes_are_up(app, 1)
                samples = await _enqueue(app)
                await eventually(lambda: len(node.runs) == JOBS, within=LIMIT)
                samples.started.update({run.job: run.start for run in node.runs})
            finally:
                cluster.kill_all()
                await app.close()
    return samples


async def _enqueue(app: Queuetopia) -> Samples:
    samples = Samples()
    for n in range(JOBS):
        await anyio.sleep(PAUSE * random.uniform(1, 2))
        called = time.monotonic()
        job = await app.create_job(f"q{n % 10}", "work")
        samples.called[job.id], samples.returned[job.id] = called, time.monotonic()
    return samples


async def _theirs(server: Server, contestant: Contestant) -> Samples:
    """The jobs come from one process of the peer, and run in another."""
    samples = Samples()
    async with (
        a_database_with(contestant, server) as dsn,
        contestant.runner.running("watch", dsn=dsn) as starts,
    ):
        for event in await contestant.runner.run("trickle", JOBS, PAUSE, dsn=dsn):
            samples.called[event["job"]] = event["called"]
            samples.returned[event["job"]] = event["returned"]
        with anyio.fail_after(LIMIT):
            await _collect(starts, samples.started)
    return samples


async def _collect(starts: AsyncIterator[Event], started: dict[int, float]) -> None:
    async for event in starts:
        started[event["job"]] = event["start"]
        if len(started) == JOBS:
            return
