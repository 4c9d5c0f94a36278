import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from pgqueuetopia.embedded import EmbeddedUnavailable, binaries, start
from pgqueuetopia.embedded.account import accounts
from pgqueuetopia.embedded.binaries import find_binaries

USER = """
import sys
from pathlib import Path
from pgqueuetopia.embedded import start
with start(Path(sys.argv[1]), durable=False) as server:
    print(server.dsn, flush=True)
    sys.stdin.read()
"""

# What comes after setuid may no longer read the interpreter's own files: all is imported before.
ORDINARY_USER = """
import asyncio, os, sys
from pathlib import Path
import asyncpg
from pgqueuetopia.embedded import start
async def who(dsn):
    connection = await asyncpg.connect(dsn)
    print(await connection.fetchval("select current_user"), os.geteuid())
    await connection.close()
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
with start(Path(sys.argv[1]), durable=False) as server:
    asyncio.run(who(server.dsn))
"""


def ask(dsn: str, query: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def postmaster_pid(directory: Path) -> int | None:
    try:
        return int((directory / "data" / "postmaster.pid").read_text().split()[0])
    except FileNotFoundError:
        return None


@contextmanager
def user_process(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", USER, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield process, process.stdout.readline().strip()


@contextmanager
def reachable_directory() -> Iterator[Path]:
    # Not tmp_path: as root, the server's user could not enter the folders above it.
    parent = Path(tempfile.mkdtemp(prefix="pgq-", dir="/tmp"))
    parent.chmod(0o755)
    yield parent
    shutil.rmtree(parent)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A stopped server's directory; each test leaves it as it was."""
    with reachable_directory() as parent:
        start(parent / "server", durable=False).stop()
        yield parent / "server"


@pytest.fixture
def parent() -> Iterator[Path]:
    with reachable_directory() as parent:
        yield parent


@pytest.mark.slow
@pytest.mark.parametrize("found", find_binaries(), ids=lambda found: f"{found.directory}")
def test_every_postgresql_found_starts_on_new_data_and_answers(
    found: binaries.Binaries, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGQUEUETOPIA_PG_BIN", str(found.directory))
    with start(parent / "server", durable=False) as server:
        version = ask(server.dsn, "select current_setting('server_version_num')::int / 10000")
    assert version == found.major


@pytest.mark.slow
def test_a_started_server_listens_on_its_socket_only(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    with start(directory, durable=False) as server:
        assert ask(server.dsn, "select current_user || '@' || current_database()") == ("postgres@postgres")
        assert ask(server.dsn, "show listen_addresses") == ""
        assert ask(server.dsn, "show unix_socket_permissions") == "0700"


@pytest.mark.slow
def test_options_go_before_the_defaults(directory: Path) -> None:
    with start(directory, durable=False, options={"max_connections": "20"}) as server:
        assert ask(server.dsn, "show max_connections") == "20"


@pytest.mark.slow
@pytest.mark.parametrize(("durable", "setting"), [(True, "on"), (False, "off")])
def test_only_a_server_for_tests_gives_durability_away(directory: Path, durable: bool, setting: str) -> None:
    with start(directory, durable=durable) as server:
        names = ("fsync", "synchronous_commit", "full_page_writes")
        assert {ask(server.dsn, f"show {name}") for name in names} == {setting}


@pytest.mark.slow
def test_data_survives_a_restart(directory: Path) -> None:
    with start(directory, durable=False) as server:
        ask(server.dsn, "create table kept as select 42 as answer")
    assert postmaster_pid(directory) is None
    with start(directory, durable=False) as server:
        assert ask(server.dsn, "select answer from kept") == 42


@pytest.mark.slow
def test_the_last_of_two_processes_to_leave_stops_the_server(directory: Path) -> None:
    with user_process(directory) as (first, dsn):
        with start(directory, durable=False) as server:
            assert server.dsn == dsn
            first.communicate()
            assert ask(server.dsn, "select 1") == 1
        assert postmaster_pid(directory) is None


@pytest.mark.slow
def test_two_users_in_one_process_count_as_two(directory: Path) -> None:
    first = start(directory, durable=False)
    second = start(directory, durable=False)
    first.stop()
    first.stop()
    assert ask(second.dsn, "select 1") == 1
    second.stop()
    assert postmaster_pid(directory) is None


@pytest.mark.slow
def test_the_next_start_finds_the_server_of_a_killed_owner(directory: Path) -> None:
    with user_process(directory) as (owner, _):
        pid = postmaster_pid(directory)
        owner.kill()
    with start(directory, durable=False) as server:
        assert ask(server.dsn, "select 1") == 1
        assert postmaster_pid(directory) == pid
    assert postmaster_pid(directory) is None


@pytest.mark.slow
def test_a_killed_server_is_started_again_with_all_that_was_committed(directory: Path) -> None:
    with start(directory, durable=False, options={"synchronous_commit": "on"}) as first:
        ask(first.dsn, "create table committed as select 42 as answer")
        pid = postmaster_pid(directory)
        assert pid
        os.kill(pid, signal.SIGKILL)
        with start(directory, durable=False) as second:
            assert ask(second.dsn, "select answer from committed") == 42


@pytest.mark.slow
def test_a_stale_file_that_names_a_stranger_does_not_hinder_the_start(directory: Path) -> None:
    pid_file = directory / "data" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n\n\n5432\n{directory / 'data'}\n\n\nready\n")
    with start(directory, durable=False) as server:
        assert ask(server.dsn, "select 1") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["with späces", 'a, comma "quoted"', "long" * 40])
def test_any_path_will_do(name: str, directory: Path, parent: Path) -> None:
    shutil.copytree(directory / "data", parent / name / "data")
    with start(parent / name, durable=False) as server:
        assert ask(server.dsn, "select 1") == 1
        sockets = Path(str(ask(server.dsn, "show unix_socket_directories")).strip('"'))
    assert sockets == parent / name / "data" or not sockets.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_runs_the_server_as_himself(parent: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    account = next(account for account in accounts() if account.uid != 0)
    if not account.can_serve(find_binaries()[0].directory / "postgres", parent):
        pytest.skip("no ordinary user may read the programs where they lie")
    os.chown(parent, nobody.pw_uid, nobody.pw_gid)
    command = [sys.executable, "-c", ORDINARY_USER, str(parent / "server"), str(nobody.pw_uid)]
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert printed.stdout.split() == ["postgres", str(nobody.pw_uid)], printed.stderr


def test_a_directory_with_other_files_is_left_alone(parent: Path) -> None:
    (parent / "diary.txt").touch()
    with pytest.raises(EmbeddedUnavailable, match="choose an empty directory"):
        start(parent)
    assert [path.name for path in parent.iterdir()] == ["diary.txt"]


@pytest.mark.slow
def test_a_server_that_does_not_start_shows_its_log(directory: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match='invalid value for parameter "work_mem"'):
        start(directory, options={"work_mem": "plenty"})


def test_data_of_another_major_version_is_refused(parent: Path) -> None:
    (parent / "data").mkdir()
    (parent / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedUnavailable, match=r"made by PostgreSQL 9, .* remove"):
        start(parent)


def test_a_machine_without_postgresql_is_told_what_to_install(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_postgresql(monkeypatch, parent / "none")
    with pytest.raises(EmbeddedUnavailable, match=r"pgqueuetopia\[embedded\].*PGQUEUETOPIA_PG_BIN"):
        start(parent / "server")


def test_a_folder_without_the_programs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGQUEUETOPIA_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedUnavailable, match=f"PGQUEUETOPIA_PG_BIN={tmp_path}"):
        start(tmp_path / "server")


def test_the_newest_supported_version_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_postgresql(monkeypatch, tmp_path)
    for version in ("9.6.24", "16.14", "18.4", "broken"):
        install_programs(tmp_path / version / "bin", version)
    assert [found.major for found in find_binaries()] == [18, 16]


def without_postgresql(monkeypatch: pytest.MonkeyPatch, debian: Path) -> None:
    monkeypatch.delenv("PGQUEUETOPIA_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(binaries, "WHEELS", ())
    monkeypatch.setattr(binaries, "DEBIAN", debian)


def install_programs(directory: Path, version: str) -> None:
    directory.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        program = directory / name
        program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        program.chmod(0o755)
