"""Where the clients are installed: a virtual environment or an npm folder for each set of packages, made once."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from .contestants import Client

__all__ = ["command_of"]


def command_of(client: Client, program: Path, base: Path) -> list[str] | None:
    """What runs the program of a client, all installed below `base`; None where there is no npm."""
    if not client.packages:
        return [sys.executable, str(program)]
    folder = base / client.environment
    if not client.is_javascript:
        _install_python(folder, client.packages)
        return [str(folder / "bin" / "python"), str(program)]
    if shutil.which("npm") is None:
        return None
    _install_npm(folder, client.packages)
    # An import of Node looks beside the file that has it.
    return ["node", shutil.copy(program, folder / program.name)]


def _install_python(folder: Path, packages: tuple[str, ...]) -> None:
    if _is_done(folder, packages):
        return
    print(f"Installing {' '.join(packages)} into {folder}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages], check=True)
    _set_done(folder, packages)


def _install_npm(folder: Path, packages: tuple[str, ...]) -> None:
    if _is_done(folder, packages):
        return
    print(f"Installing {' '.join(packages)} into {folder}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    # Scripts of packages would fetch GPU libraries.
    quiet = ["--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts"]
    subprocess.run(["npm", "install", "--prefix", str(folder), *quiet, *packages], check=True)
    _set_done(folder, packages)


def _is_done(folder: Path, packages: tuple[str, ...]) -> bool:
    stamp = folder / "installed.txt"
    return stamp.exists() and stamp.read_text() == "\n".join(packages)


def _set_done(folder: Path, packages: tuple[str, ...]) -> None:
    (folder / "installed.txt").write_text("\n".join(packages))
