"""Installs what the peers need into .peers/ of the project, where it is missing: a venv, and node_modules."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

from benchmarks.peers.runner import Runner

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".peers"
RUNNERS = HERE / "runners"
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
NPM = ("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")


class Missing(Exception):
    """What a peer needs is not here, and cannot be installed."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where packages are installed, and the interpreter that finds them from there."""

    folder: Path
    interpreter: Path

    def runner(self, name: str, *words: str) -> Runner:
        """The runner with that file name."""
        return Runner((str(self.interpreter), str(RUNNERS / name), *words), self.folder)


async def node(tell: Callable[[str], None]) -> Place:
    """The Node that is here installs the one that is pinned, on which the peers run."""
    folder, wanted = FOLDER / "node", HERE / "package.json"
    if not _is_complete(folder, wanted):
        if lacking := [name for name in ("node", "npm") if not shutil.which(name)]:
            raise Missing(
                f"{' and '.join(lacking)} not found; Node 20 or newer with npm installs the packages"
            )
        tell(f"installing {wanted.name} into {folder}")
        _empty(folder)
        shutil.copy(wanted, folder)
        await _run(*NPM, folder=folder)
        _complete(folder, wanted)
    return Place(folder, folder / "node_modules" / "node" / "bin" / "node")


async def python(tell: Callable[[str], None]) -> Place:
    """A venv made by the Python that runs the benchmarks."""
    folder, wanted = FOLDER / "python", HERE / "requirements.txt"
    interpreter = folder / "bin" / "python"
    if not _is_complete(folder, wanted):
        tell(f"installing {wanted.name} into {folder}")
        _empty(folder)
        await _run(sys.executable, "-m", "venv", str(folder))
        await _run(str(interpreter), *PIP, "-r", str(wanted))
        _complete(folder, wanted)
    return Place(folder, interpreter)


def _stamp(folder: Path) -> Path:
    """A copy of what was installed, written last, so that an interrupted installation is made again."""
    return folder / ".complete"


def _is_complete(folder: Path, wanted: Path) -> bool:
    return _stamp(folder).exists() and _stamp(folder).read_text() == wanted.read_text()


def _complete(folder: Path, wanted: Path) -> None:
    shutil.copy(wanted, _stamp(folder))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


async def _run(*command: str, folder: Path | None = None) -> None:
    done = await anyio.run_process(command, cwd=folder, check=False, stderr=subprocess.STDOUT)
    if done.returncode:
        raise Missing(f"{' '.join(command)} failed:\n{done.stdout.decode(errors='replace')}")
