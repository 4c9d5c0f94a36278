"""pgqueuetopia jobs: list, show, cancel, retry, abandon."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated

import typer

from pgqueuetopia.cli import show
from pgqueuetopia.cli.target import App, AsJson, Dsn, Scope, Target
from pgqueuetopia.errors import JobNotFound, Misconfigured
from pgqueuetopia.job import Job, Page
from pgqueuetopia.queuetopia import Queuetopia
from pgqueuetopia.status import Cancelled

app = typer.Typer(help="Jobs: list them, or show, cancel, retry or abandon one.")

Id = Annotated[int, typer.Argument(help="The job's id.")]


@app.callback(invoke_without_command=True)
def list_jobs(
    ctx: typer.Context,
    queue: Annotated[str | None, typer.Option()] = None,
    action: Annotated[str | None, typer.Option()] = None,
    state: Annotated[
        str | None,
        typer.Option(
            help="ready, scheduled, retrying, blocked, executing, succeeded, abandoned, cancelled or moved"
        ),
    ] = None,
    search: Annotated[str | None, typer.Option(help="Text in queue, action or params; case counts.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    after: Annotated[int, typer.Option(help="The `next` of the page before.")] = 0,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """Jobs in the order of creation, a page at a time; or one of the commands below."""
    if ctx.invoked_subcommand is not None:
        return
    page = Target(dsn, scope, app).ask(
        lambda queuetopia: queuetopia.list_jobs(
            queue=queue, action=action, state=state, search=search, limit=limit, after=after
        )
    )
    if as_json:
        show.document({"jobs": list(page), "total": page.total, "next": page.next})
    else:
        _show_page(page)


@app.command("show")
def show_job(job: Id, dsn: Dsn = None, scope: Scope = None, app: App = None, as_json: AsJson = False) -> None:
    """Everything about one job, its errors too."""
    found = Target(dsn, scope, app).ask(lambda queuetopia: queuetopia.get_job(job))
    if as_json:
        show.document(found)
    else:
        _show_job(found)


@app.command("cancel")
def cancel_job(
    job: Id, dsn: Dsn = None, scope: Scope = None, app: App = None, as_json: AsJson = False
) -> None:
    """End a job that does not run; exit 1 if it runs, or is not pending."""
    _end(job, Target(dsn, scope, app), lambda queuetopia: queuetopia.cancel(job), as_json=as_json)


@app.command("abandon")
def abandon_job(
    job: Id, dsn: Dsn = None, scope: Scope = None, app: App = None, as_json: AsJson = False
) -> None:
    """Give up a job that does not run: its queue goes on; exit 1 if it runs, or is not pending."""
    _end(job, Target(dsn, scope, app), lambda queuetopia: queuetopia.abandon(job), as_json=as_json)


@app.command("retry")
def retry_jobs(
    job: Annotated[int | None, typer.Argument(help="The job's id.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every job that waits for its next attempt.")
    ] = False,
    queue: Annotated[str | None, typer.Option(help="With --all: of this queue.")] = None,
    dsn: Dsn = None,
    scope: Scope = None,
    app: App = None,
    as_json: AsJson = False,
) -> None:
    """Run a job now that waits for its next attempt, or again if it has ended; attempts count anew."""

    async def retried(queuetopia: Queuetopia) -> int:
        if job is None:
            return await queuetopia.retry_all(queue)
        await queuetopia.retry(job)
        return 1

    if (job is None) != everything or (queue is not None and not everything):
        raise Misconfigured("Give the ID of a job; or --all, with or without --queue.")
    count = Target(dsn, scope, app).ask(retried)
    if as_json:
        show.document({"retried": count})
    else:
        typer.echo(f"retried: {count}")


def _end(
    job: int,
    target: Target,
    request: Callable[[Queuetopia], Awaitable[Cancelled]],
    *,
    as_json: bool,
) -> None:
    answer = target.ask(request)
    if as_json:
        show.document({"job": job, "result": answer})
        raise typer.Exit(0 if answer is Cancelled.OK else 1)
    match answer:
        case Cancelled.OK:
            typer.echo(f"job {job} has ended")
        case Cancelled.IN_PROGRESS:
            raise JobNotFound(f"Job {job} runs now; wait for it to end.")
        case Cancelled.NOT_FOUND:
            raise JobNotFound(f"There is no pending job {job} in this scope.")


def _show_page(page: Page) -> None:
    show.table(
        ("id", "queue", "action", "state", "attempts", "scheduled", "error"),
        [(j.id, j.queue, j.action, j.state, j.attempts, j.scheduled_at, _last_error(j)) for j in page],
    )
    if page.next is not None:
        typer.echo(f"{len(page)} of {page.total}; the next page: --after {page.next}", err=True)


def _last_error(job: Job) -> str | None:
    return str(job.errors[-1].get("error", ""))[:200] if job.errors else None


def _show_job(job: Job) -> None:
    facts = asdict(job)
    errors = facts.pop("errors")
    show.record(facts)
    for error in errors:
        heading = f"attempt {error.get('attempt')} at {error.get('at')} on {error.get('node')}"
        typer.echo(f"\n{show.in_one_line(heading)}: {show.in_one_line(error.get('error'))}")
        for line in str(error.get("traceback", "")).splitlines():
            typer.echo(f"  {show.in_one_line(line)}")
