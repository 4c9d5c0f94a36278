"""The examination: asks the database what there is to know, and has it judged."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pgqueuetopia.db import checkup, migrations
from pgqueuetopia.db.checkup import Checkup, Server
from pgqueuetopia.db.repo import Repo
from pgqueuetopia.doctor.finding import Finding, Level
from pgqueuetopia.doctor.judgment import (
    judged_autovacuum,
    judged_clock,
    judged_horizon,
    judged_isolation,
    judged_locks,
    judged_migrations,
    judged_pooler,
    judged_privileges,
    judged_stranded,
    judged_version,
    judged_writable,
)
from pgqueuetopia.errors import AccessDenied, QueuetopiaError


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined, and by whom it is to be used: how many nodes, of how many jobs at once."""

    repo: Repo
    checkup: Checkup
    server: Server
    nodes: int | None
    concurrency: int


async def examine(repo: Repo, *, nodes: int | None = None, concurrency: int = 100) -> list[Finding]:
    """Check everything that a node needs; `nodes` is how many will run, by default those that do now."""
    try:
        async with checkup.connected(repo.session_dsn) as questions:
            server = await questions.server()
            return await _findings(Patient(repo, questions, server, nodes, concurrency))
    except QueuetopiaError as error:
        return [Finding("connection", Level.PROBLEM, str(error), "Correct the DSN, or start the server.")]


async def _findings(patient: Patient) -> list[Finding]:
    """The table of contents: what can be told of any database, and what only of one that is migrated."""
    server = patient.server
    findings = [
        Finding("connection", Level.OK, f"{server.role} on {server.database}"),
        await _asked("pooler", _pooler, patient),
        judged_version(server),
        judged_writable(server),
        judged_isolation(server),
        judged_clock(server),
        await _asked("locks", _locks, patient),
        await _asked("long transactions", _horizon, patient),
        await _asked("migrations", _migrations, patient),
    ]
    if findings[-1].level is Level.PROBLEM:
        return findings
    return [
        *findings,
        await _asked("privileges", _privileges, patient),
        await _asked("autovacuum", _autovacuum, patient),
        await _asked("run queue", _run_queue, patient),
    ]


async def _asked(check: str, question: Callable[[Patient], Awaitable[Finding]], patient: Patient) -> Finding:
    """A check that cannot be made is a finding too."""
    try:
        return await question(patient)
    except AccessDenied as error:
        return Finding(check, Level.WARNING, f"This role may not look: {error}")
    except QueuetopiaError as error:
        return Finding(check, Level.PROBLEM, str(error))


async def _pooler(patient: Patient) -> Finding:
    if patient.repo.dsn == patient.repo.session_dsn:
        return judged_pooler(patient.server, patient.server)
    async with checkup.connected(patient.repo.dsn) as pool:
        return judged_pooler(patient.server, await pool.server())


async def _locks(patient: Patient) -> Finding:
    return judged_locks(await patient.checkup.locks(), patient.nodes, patient.concurrency)


async def _horizon(patient: Patient) -> Finding:
    return judged_horizon(*await patient.checkup.holders())


async def _migrations(patient: Patient) -> Finding:
    return judged_migrations(await migrations.status(patient.repo.session_dsn))


async def _privileges(patient: Patient) -> Finding:
    return judged_privileges(patient.server.role, await patient.checkup.missing_privileges())


async def _autovacuum(patient: Patient) -> Finding:
    return judged_autovacuum(patient.server, await patient.checkup.tables())


async def _run_queue(patient: Patient) -> Finding:
    return judged_stranded(await patient.checkup.stranded())
