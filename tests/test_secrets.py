"""The password of a DSN is nowhere but in the DSN; values never become SQL; nothing is unpickled."""

import ast
import io
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

import pgqueuetopia
from pgqueuetopia import Err, Job, Queuetopia, QueuetopiaError, Repo
from tests.support import Recorder, an_app, eventually

SECRET = "s3cr3t-of-the-test"
PACKAGE = Path(pgqueuetopia.__file__).parent
DSNS = [
    f"postgresql://app:{SECRET}@127.0.0.1:1/jobs",
    f"postgresql://app:{SECRET}@no-such-host.invalid/jobs",
    f"postgresql://app:{SECRET}/x@127.0.0.1:1/jobs",
    f"postgresql://app:x#{SECRET}@127.0.0.1:1/jobs",
    f"postgresql://app:x?{SECRET}@127.0.0.1:1/jobs",
    f"postgresql://app:x[{SECRET}@127.0.0.1:1/jobs",
    f"postgresql://app:%zz{SECRET}@127.0.0.1:port/jobs",
    f"postgresql://app:{SECRET}@127.0.0.1:1/jobs?sslmode=perhaps",
    f"mysql://app:{SECRET}@127.0.0.1:1/jobs",
    f"host=127.0.0.1 port=1 password={SECRET}",
]
RUN_SQL = {"fetch", "fetchrow", "fetchval", "execute", "executemany", "cursor", "prepare"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
# A node and a worker process that it has started itself talk over a pipe that nobody else can reach.
PRIVATE_PIPE = {"process_run.py", "process_worker.py"}


@pytest.mark.parametrize("dsn", DSNS)
async def test_a_connection_that_fails_tells_everything_but_the_password(dsn: str) -> None:
    told = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(told))
    app = Queuetopia(repo=Repo(dsn, timeout=2), performer=Recorder(), scope="Test")
    with pytest.raises(QueuetopiaError) as refused:
        await app.create_job("q", "a")
    told.write("".join(traceback.format_exception(refused.value)))
    told.write(f"{app.repo!r} {app!r} {vars(refused.value)}")
    await app.close()
    assert SECRET not in told.getvalue()


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_sql_is_put_together_from_values() -> None:
    """What is sent is a file's text or a constant of the module, never made of pieces at run time."""
    found = [
        f"{path.name}:{node.lineno}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in RUN_SQL
        and node.args
        and isinstance(node.args[0], ast.JoinedStr | ast.BinOp | ast.Call)
    ]
    assert found == []


def test_nothing_is_unpickled_or_evaluated() -> None:
    for path, tree in sources():
        if path.name in PRIVATE_PIPE:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not UNSAFE & {name.name for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in UNSAFE, path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec"}, path


async def test_a_logged_traceback_shows_no_local_values(dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Mails(Recorder):
        async def handle_failed_job(self, job: Job) -> None:
            async with an_app(DSNS[0]) as elsewhere:
                await elsewhere.create_job("q", "a")

    told = io.StringIO()

    def has_told() -> bool:
        told.write(capsys.readouterr().out)
        return "handle_failed_job_raised" in told.getvalue()

    async with an_app(dsn, Mails(lambda job: Err("no"))) as app, app.running():
        await app.create_job("q", "a", max_attempts=1)
        await eventually(has_told)
    assert SECRET not in told.getvalue()
    assert "in create_job" in told.getvalue(), "but the traceback itself is there"
