"""The man page tells what the program takes, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cyclopts import App

import asyncfetch
from asyncfetch.cli.commands import app
from asyncfetch.policy import __version__
from scripts.man import ENVIRONMENT, PAGE, commands, exit_codes, options


def text_of(roff: str) -> str:
    """The words of a page, without what is for the typesetter."""
    words = re.sub(r"\\f[BIPR]|^\.\w+ ?", "", roff, flags=re.MULTILINE)
    for escape, character in (("\\-", "-"), ("\\(aq", "'"), ("\\(ga", "`"), ("\\&", ""), ("\\e", "\\"), ("\\(ti", "~")):
        words = words.replace(escape, character)
    return " ".join(words.split())


ROFF = PAGE.read_text(encoding="utf-8")
PAGE_TEXT = text_of(ROFF)
COMMANDS = [pytest.param(*one, id=" ".join(one[0])) for one in commands(app, ("asyncfetch",))]


@pytest.mark.parametrize(("words", "command"), COMMANDS)
def test_each_command_is_in_it(words: tuple[str, ...], command: App) -> None:
    """With its options, in the words of --help, and no others. `scripts/man` writes the page anew."""
    name = re.escape(" ".join(words).replace("-", r"\-"))
    section = re.search(rf"^\.SS {name}$(.*?)(?=^\.S[SH] )", ROFF, re.MULTILINE | re.DOTALL)
    assert section is not None, "run scripts/man"
    taken = dict(options(command))
    assert [text_of(term) for term in re.findall(r"^\.B (.*)$", section[1], re.MULTILINE)] == [*taken], (
        "run scripts/man"
    )
    text = text_of(section[1])
    assert all(f"{label} {' '.join(meaning.split())}".strip() in text for label, meaning in taken.items())


def test_codes_and_variables_are_in_it() -> None:
    """Each exit code, and each variable, which the package reads."""
    assert len(exit_codes()) >= 11
    for code, meaning in exit_codes().items():
        assert f" {code} {meaning}" in PAGE_TEXT
    source = "".join(path.read_text(encoding="utf-8") for path in Path(asyncfetch.__file__).parent.rglob("*.py"))
    for names, meaning in ENVIRONMENT.items():
        assert f"{names} {meaning}" in PAGE_TEXT
        assert all(name in source for name in names.split(", ") if "PROXY" not in name)
    assert f"asyncfetch {__version__}" in PAGE_TEXT


@pytest.mark.parametrize("checker", [("mandoc", "-T", "lint", "-W", "warning"), ("man", "--warnings", "-l")])
def test_it_is_sound(checker: tuple[str, ...]) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"NOT TESTED: {checker[0]} is not installed")
    ran = subprocess.run([*checker, str(PAGE)], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert checker[0] == "man" or ran.stdout == ""
