"""What a person sees of the demo: live on a terminal, a line now and then elsewhere."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from examples.demo.mails import MAILS, QUEUES

SECONDS_BETWEEN_LINES = 1.0


@dataclass(frozen=True, slots=True)
class Picture:
    """The demo at one moment: mails created and done, deliveries that failed, and queues by their state.

    A queue is blocked by a mail that failed; it waits for a place on a node, or until its mail is due.
    """

    created: int
    done: int
    failed: int
    waiting: int
    running: int
    blocked: int
    paused: bool


class View(Protocol):
    """Shows pictures while it is open."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def show(self, picture: Picture) -> None: ...


def view_on(console: Console) -> View:
    """The view that fits the console."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class LiveView:
    """A progress bar, and the queues below it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]delivered"),
            BarColumn(bar_width=44),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("delivered", total=MAILS)
        self._live = Live(self._progress, console=console, refresh_per_second=12)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, traceback)

    def show(self, picture: Picture) -> None:
        """Draw it."""
        self._progress.update(self._bar, completed=picture.done)
        self._live.update(Group(self._progress, _queues(picture)))


def _queues(picture: Picture) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("mails", f"{picture.created} created, {picture.failed} deliveries failed")
    table.add_row("nodes", _nodes(picture))
    for name, count, style in (
        ("running", picture.running, "green"),
        ("waiting", picture.waiting, "yellow"),
        ("blocked", picture.blocked, "red"),
    ):
        table.add_row(f"queues {name}", Text(f"{count:>2} {'■' * count}", style=style))
    return table


def _nodes(picture: Picture) -> Text:
    if picture.paused:
        return Text(" both are paused ", style="bold black on yellow")
    return Text("two at work", style="green")


class PlainView:
    """One line a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0
        self._paused = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def show(self, picture: Picture) -> None:
        """Print it, if it is time or something has changed."""
        now = time.monotonic()
        if picture.paused == self._paused and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last, self._paused = now, picture.paused
        self._console.print(
            f"{picture.done} of {MAILS} delivered, {picture.created} created; of {QUEUES} queues "
            f"{picture.running} running, {picture.waiting} waiting, {picture.blocked} blocked"
            f"{'; PAUSED' if picture.paused else ''}",
            soft_wrap=True,
            highlight=False,
        )
