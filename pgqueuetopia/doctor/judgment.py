"""What facts mean: pure decisions, one for each check."""

from collections.abc import Sequence
from math import ceil

from pgqueuetopia.db.checkup import Holder, Locks, Server, Stranded, Table
from pgqueuetopia.db.migrations import State
from pgqueuetopia.doctor.finding import Finding, Level

OLDEST_VERSION = 140_000
# In seconds.
CLOCKS_APART = 1.0
LONG_TRANSACTION = 60.0
# Of a table's rows; few of them never matter.
DEAD_SHARE = 0.5
DEAD_ROWS = 20_000
# What a node locks besides one queue for each job, and how much of the lock table nodes may fill.
OTHER_LOCKS = 5
LOCKS_SHARE = 0.5


def judged_pooler(session: Server, pool: Server) -> Finding:
    """A node's own connection must be direct, and lead to the database of the pool."""
    if session.pooled:
        return Finding(
            "pooler",
            Level.PROBLEM,
            "A pooler stands between nodes and the database: it loses their locks and notifications.",
            "Give Repo(session_dsn=...) or $PGQUEUETOPIA_SESSION_DSN the server's own address.",
        )
    if (session.started_at, session.database) != (pool.started_at, pool.database):
        return Finding(
            "pooler",
            Level.PROBLEM,
            f"The DSN leads to {pool.database} and the session DSN to {session.database} of another server "
            "or name: jobs would be created in one and looked for in the other.",
            "Have both lead to one database.",
        )
    what = "the pool goes through a pooler, nodes connect directly" if pool.pooled else "none"
    return Finding("pooler", Level.OK, what)


def judged_version(server: Server) -> Finding:
    """PostgreSQL 14 or newer."""
    if server.version_number < OLDEST_VERSION:
        return Finding(
            "version",
            Level.PROBLEM,
            f"PostgreSQL {server.version} is too old.",
            "Upgrade the server to PostgreSQL 14 or newer.",
        )
    return Finding("version", Level.OK, f"PostgreSQL {server.version}")


def judged_writable(server: Server) -> Finding:
    """A primary that may be written to."""
    if server.standby:
        return Finding(
            "writable",
            Level.PROBLEM,
            "The server is a standby and takes no writes.",
            "Connect to the primary; a DSN of several hosts takes target_session_attrs=read-write.",
        )
    if server.read_only:
        return Finding(
            "writable",
            Level.PROBLEM,
            "Transactions of this role are read only, so no job can be created.",
            f"alter role {server.role} set default_transaction_read_only = off",
        )
    return Finding("writable", Level.OK, "a primary")


def judged_isolation(server: Server) -> Finding:
    """Nodes set their own; everybody else does better with the default."""
    if server.isolation == "read committed":
        return Finding("isolation", Level.OK, server.isolation)
    return Finding(
        "isolation",
        Level.WARNING,
        f"Transactions of this role are {server.isolation} by default: cancel, retry and configs may fail "
        "with serialization errors. Nodes are not affected, they set their own.",
        f"alter role {server.role} set default_transaction_isolation = 'read committed'",
    )


def judged_clock(server: Server) -> Finding:
    """The database's clock decides; ours matters where a program computes scheduled_at."""
    apart = abs(server.clock_ahead)
    what = f"{apart:.3f} s {'behind' if server.clock_ahead > 0 else 'ahead of'} the database"
    if apart - server.clock_error <= CLOCKS_APART:
        return Finding("clock", Level.OK, what)
    return Finding(
        "clock",
        Level.WARNING,
        f"This machine's clock is {what}: a scheduled_at computed here comes true early or late.",
        "Synchronise the clocks (NTP), or give scheduled_at as a timedelta.",
    )


def judged_locks(locks: Locks, nodes: int | None, concurrency: int) -> Finding:
    """Each job that runs holds a lock, and the server's lock table is finite."""
    nodes = max(locks.nodes, 1) if nodes is None else nodes
    needed = nodes * (concurrency + OTHER_LOCKS)
    what = (
        f"{nodes} node{'s' * (nodes > 1)} with {concurrency} jobs at once may hold {needed:,} locks; "
        f"the server has room for {locks.capacity:,} and holds {locks.held:,} now"
    )
    if needed <= locks.capacity * LOCKS_SHARE:
        return Finding("locks", Level.OK, what)
    return Finding(
        "locks",
        Level.WARNING if needed <= locks.capacity else Level.PROBLEM,
        f"{what}. Where there is no room left, fewer jobs run at once, and others' statements fail.",
        f"Set max_locks_per_transaction to {_enough(locks, needed)} (needs a restart), or lower concurrency.",
    )


def _enough(locks: Locks, needed: int) -> int:
    return ceil(locks.per_transaction * needed / (locks.capacity * LOCKS_SHARE))


def judged_horizon(holders: Sequence[Holder], sees_all: bool) -> Finding:
    """What is open for long keeps dead rows, and every look at a queue wades through them."""
    long = [one for one in holders if one.seconds is None or one.seconds > LONG_TRANSACTION]
    if long:
        named = ", ".join(_named(one) for one in long[:3])
        return Finding(
            "long transactions",
            Level.WARNING,
            f"{len(long)} keep vacuum from removing dead rows, and slow every queue down: {named}.",
            "End them: select pg_terminate_backend(pid), rollback prepared, pg_drop_replication_slot.",
        )
    if not sees_all:
        return Finding(
            "long transactions",
            Level.OK,
            "none of this role's own; those of others are hidden from it",
            "To see them: grant pg_read_all_stats to the role.",
        )
    return Finding("long transactions", Level.OK, "none")


def _named(one: Holder) -> str:
    return one.holder if one.seconds is None else f"{one.holder} for {one.seconds:.0f} s"


def judged_migrations(states: Sequence[State]) -> Finding:
    """All that the code has, and nothing else."""
    missing = [f"{state.version:04} {state.name}" for state in states if state.applied_at is None]
    if missing:
        return Finding(
            "migrations",
            Level.PROBLEM,
            f"Not applied: {', '.join(missing)}.",
            "Run: pgqueuetopia migrate",
        )
    return Finding("migrations", Level.OK, f"at {states[-1].version:04} {states[-1].name}")


def judged_privileges(role: str, missing: Sequence[tuple[str, str]]) -> Finding:
    """All that a node needs."""
    if missing:
        named = ", ".join(f"{privilege} on {name}" for name, privilege in missing)
        return Finding(
            "privileges",
            Level.PROBLEM,
            f"Role {role} cannot run a node; it lacks {named}.",
            "Give it the grants of a node in docs/operations.md, or connect as the role that runs nodes.",
        )
    return Finding("privileges", Level.OK, f"{role} may run a node")


def judged_autovacuum(server: Server, tables: Sequence[Table]) -> Finding:
    """These tables are rewritten all day."""
    off = [table.name for table in tables if table.autovacuum_off]
    if off or not (server.autovacuum and server.track_counts):
        return Finding(
            "autovacuum",
            Level.PROBLEM,
            f"Autovacuum is off for {' and '.join(off) or 'the whole server'}: queues get slower for ever.",
            "Turn autovacuum and track_counts on; alter table ... reset (autovacuum_enabled).",
        )
    what = ", ".join(f"{table.name}: {table.dead:,} dead of {_all(table):,} rows" for table in tables)
    if any(_is_bloated(table) for table in tables):
        return Finding(
            "autovacuum",
            Level.WARNING,
            f"{what}. Autovacuum does not keep up, or something keeps it from removing them.",
            "End long transactions; then: vacuum (analyze) pgqueuetopia.jobs, pgqueuetopia.run_queue",
        )
    return Finding("autovacuum", Level.OK, what)


def _all(table: Table) -> int:
    return table.live + table.dead


def _is_bloated(table: Table) -> bool:
    return table.dead > DEAD_ROWS and table.dead > DEAD_SHARE * _all(table)


def judged_stranded(stranded: Stranded) -> Finding:
    """Invariant 1: every queue with a pending job is in the run queue in time."""
    if not stranded.queues:
        return Finding("run queue", Level.OK, "every queue that has a job will be looked at")
    named = ", ".join(f"{scope}/{queue}" for scope, queue in stranded.first)
    return Finding(
        "run queue",
        Level.PROBLEM,
        f"{stranded.queues:,} queues have a pending job and nobody will look at them: {named}. This comes of "
        "triggers that were disabled, as by a partial restore, and is a fault of ours otherwise: report it.",
        "insert into pgqueuetopia.run_queue (scope, queue) "
        "select distinct scope, queue from pgqueuetopia.jobs where done_at is null",
    )
