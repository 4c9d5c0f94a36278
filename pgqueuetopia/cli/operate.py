"""pgqueuetopia status, blocked, suspend and resume."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from pgqueuetopia.cli import show
from pgqueuetopia.cli.target import App, AsJson, Dsn, Everywhere, Queue, Scope, Target
from pgqueuetopia.errors import Misconfigured
from pgqueuetopia.job import Job
from pgqueuetopia.queuetopia import Queuetopia


def status(
    queue: Queue = None,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """How many jobs are ready, scheduled, retrying, blocked and executing; suspension; nodes and workers."""
    found = Target(dsn, scope, app).ask(lambda queuetopia: queuetopia.status(queue))
    workers = {name: work and _told(*work) for name, work in found.workers.items()}
    facts = {one.name: getattr(found, one.name) for one in fields(found)} | {"count": found.count}
    (show.document if as_json else show.record)(facts | {"workers": workers})


def _told(job: Job, progress: Any) -> dict[str, Any]:
    return {"job": job.id, "queue": job.queue, "action": job.action, "progress": progress}


def blocked(
    limit: Annotated[int, typer.Option(min=1, help="At most so many queues.")] = 100,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """The queues whose head has failed and waits: since when, until when, and why."""
    found = Target(dsn, scope, app).ask(lambda queuetopia: queuetopia.blocked_queues(limit=limit))
    if as_json:
        show.document(found)
    else:
        show.table(
            ("queue", "head", "attempts", "since", "next attempt", "why"),
            [(b.queue, b.head, b.attempts, b.since, b.next_attempt_at, b.why) for b in found],
        )


def suspend(
    queue: Queue = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the running jobs have ended.")] = False,
    everywhere: Everywhere = False,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """Start no job any more, on any node, until `resume`; the running ones go on."""
    target = Target(dsn, scope, app)
    if not everywhere:
        target.ask(lambda queuetopia: queuetopia.suspend(queue, wait=wait))
    elif wait:
        raise Misconfigured("--wait needs one scope: suspend --everywhere, then --scope NAME --wait.")
    else:
        target.ask_configs(lambda configs: configs.set(_key(queue), "true"), everywhere=True)
    _tell(queue, suspended=True, as_json=as_json)


def resume(
    queue: Queue = None,
    everywhere: Everywhere = False,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """Undo `suspend`. What was suspended --everywhere is resumed --everywhere."""

    async def resumed(queuetopia: Queuetopia) -> bool:
        await queuetopia.resume(queue)
        return await queuetopia.repo.suspended(queuetopia.scope, queue)

    target, still = Target(dsn, scope, app), False
    if everywhere:
        target.ask_configs(lambda configs: configs.set(_key(queue), "false"), everywhere=True)
    else:
        still = target.ask(resumed)
    _tell(queue, suspended=still, as_json=as_json)


def _key(queue: str | None) -> str:
    return "suspended" if queue is None else f"{queue}_suspended"


def _tell(queue: str | None, *, suspended: bool, as_json: bool) -> None:
    if as_json:
        show.document({"queue": queue, "suspended": suspended})
    else:
        typer.echo("suspended" if suspended else "resumed")
