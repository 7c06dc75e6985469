"""The picture in the README: a real load of a real model on a terminal, as SVG.

A server on this machine serves all-MiniLM-L6-v2 in shards, `asyncfetch load` runs in tmux, and what is on its screen
while bytes arrive is drawn by rich. Options: --help.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from asyncfetch.server import Server
from scripts.make_minilm import make

PICTURE = Path(__file__).parents[1] / "docs" / "terminal.svg"
REPO = "sentence-transformers/all-MiniLM-L6-v2"
COLUMNS, LINES = 96, 12
TYPED = f"asyncfetch load {REPO} --bandwidth 20M"
PART = re.compile(r"total .* (?:[67]\d)%")  # the screen that is drawn: some files are here, some are not
PATIENCE = 60.0  # seconds


def tmux(socket: Path, *arguments: str) -> str:
    """What tmux says, of a server of our own."""
    command = ["tmux", "-S", str(socket), "-f", os.devnull, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def screen(folder: Path, endpoint: str) -> str:
    """What is on the screen when most of the model is here, with its colours as escape sequences."""
    environment = {
        "ASYNCFETCH_CONNECTIONS": "4",  # one for each shard, which then come side by side
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "home"),
    }
    socket = folder / "tmux"
    settings = [word for name, value in environment.items() for word in ("-e", f"{name}={value}")]
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    path = shlex.quote(str(Path(sys.executable).absolute().parent))
    tmux(socket, "new-session", "-d", *size, *settings, f"PATH={path}:$PATH; echo '$ {TYPED}'; {TYPED}")
    try:
        until(socket, PART)
        return tmux(socket, "capture-pane", "-p", "-e")
    finally:
        tmux(socket, "kill-server")


def until(socket: Path, shown: re.Pattern[str]) -> None:
    """Wait until the screen shows it."""
    began = time.monotonic()
    while not shown.search(tmux(socket, "capture-pane", "-p")):
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"The terminal never showed {shown.pattern!r}:\n{tmux(socket, 'capture-pane', '-p')}")
        time.sleep(0.02)


def draw(screen: str, path: Path) -> None:
    """Write a screen as a picture."""
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=COLUMNS, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(screen.rstrip()), soft_wrap=True)
        console.save_svg(str(path), title="asyncfetch", theme=MONOKAI, unique_id="terminal")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the picture in the README. Needs tmux.")
    parser.add_argument("--output", type=Path, default=PICTURE, help="where to write it; default: %(default)s")
    output: Path = parser.parse_args().output
    if shutil.which("tmux") is None:
        raise SystemExit("The picture is taken of a terminal of tmux, which is not installed.")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        make(models / REPO)
        with Server(models) as server:
            draw(screen(Path(folder), server.url), output)
    print(output)


if __name__ == "__main__":
    main()
