"""The peers: who they are, what they promise, and when they are done."""

from dataclasses import dataclass

from benchmarks.peers.runner import Runner
from benchmarks.scale import count as scaled

MANY = scaled(50_000)
FEW = scaled(2_000)

GRAPHILE_WORKER_LEFT = "select exists (select from graphile_worker.jobs)"
PG_BOSS_LEFT = "select exists (select from pgboss.job where name = 'bench' and state < 'completed')"
PGQUEUER_LEFT = "select exists (select from pgqueuer)"
PROCRASTINATE_LEFT = "select exists (select from procrastinate_jobs where status in ('todo', 'doing'))"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another queue on PostgreSQL.

    `left` asks its database whether a job is not done yet; `wakes` says that its runner can be asked how soon
    an idle worker starts a job.
    """

    name: str
    promise: str
    runner: str
    jobs: int
    left: str
    words: tuple[str, ...] = ()
    wakes: bool = False


@dataclass(frozen=True, slots=True)
class Contestant:
    """A peer that is installed."""

    peer: Peer
    version: str
    runner: Runner

    def __str__(self) -> str:
        return f"{self.peer.name} {self.version}"


PEERS_IN_NODE = (
    Peer(
        "graphile-worker",
        "queue names, of which a local queue runs several jobs at once (graphile/worker#621)",
        "graphile_worker.mjs",
        MANY,
        GRAPHILE_WORKER_LEFT,
        words=("graphile-worker",),
        wakes=True,
    ),
    Peer(
        "graphile-worker",
        "queue names, one job at a time, no blocking on failure",
        "graphile_worker.mjs",
        MANY,
        GRAPHILE_WORKER_LEFT,
        words=("graphile-worker-0.18",),
        wakes=True,
    ),
    Peer(
        "pg-boss",
        "key_strict_fifo, one outcome for a whole batch",
        "pg_boss.mjs",
        MANY,
        PG_BOSS_LEFT,
        words=("batch",),
    ),
    Peer(
        "pg-boss",
        "key_strict_fifo, an outcome for each job of a batch",
        "pg_boss.mjs",
        MANY,
        PG_BOSS_LEFT,
        words=("job",),
    ),
)

PEERS_IN_PYTHON = (
    Peer(
        "PgQueuer",
        "no order per key",
        "pgqueuer_runner.py",
        MANY,
        PGQUEUER_LEFT,
        wakes=True,
    ),
    Peer(
        "Procrastinate",
        "lock=, one job at a time, no blocking on failure",
        "procrastinate_runner.py",
        FEW,
        PROCRASTINATE_LEFT,
    ),
)
