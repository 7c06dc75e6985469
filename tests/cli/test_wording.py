"""What the command line says where the library would name its keywords, and what it understands."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import asyncfetch
from asyncfetch.cli.options import LineFlags
from asyncfetch.cli.wording import in_flags
from asyncfetch.errors import SourceError


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("subfolder= goes with a folder.", "--subfolder goes with a folder."),
        ("dtype='float33' is not a dtype.", "--dtype 'float33' is not a dtype."),
        ("Say variant=, or revision=.", "Say --variant, or --revision."),
        ("Unset HF_HUB_OFFLINE or pass offline=False once.", "Unset HF_HUB_OFFLINE or pass --no-offline once."),
        ("if it is private, set HF_TOKEN or pass token=.", "if it is private, set HF_TOKEN."),
        ("may read it (HF_TOKEN or token=).", "may read it (HF_TOKEN)."),
        (
            "It is away. Call it again to go on: 1 of 2 MB.",
            "It is away. Run the same command again to go on: 1 of 2 MB.",
        ),
        ("Policy.connections must be positive, not 0.", "ASYNCFETCH_CONNECTIONS must be positive, not 0."),
        ("/data/dtype=f32/variant=a/x.safetensors: it is cut short.", None),
        ("no file 'revision=1'.", None),
    ],
)
def test_keywords_become_flags(said: str, typed: str | None) -> None:
    """An option is named as it is typed; a path or a name that looks like one stays."""
    assert in_flags(said) == (said if typed is None else typed)


def said_by_errors() -> Iterator[str]:
    """The strings in the source that become messages and hints, wherever a command can meet them."""
    root = Path(asyncfetch.__file__).parent
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] in ("cli", "models", "server"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", "super().__init__")):
                parts: list[ast.AST] = [node]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).split(".")[-1] == "hint":
                parts = [node.value]
            else:
                continue
            for part in parts:
                for text in ast.walk(part):
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        yield text.value


def test_no_error_tells_the_command_line_of_keywords() -> None:
    """A text that names a keyword of `load` needs its flag in the table. The commands set some well, or never."""
    never = {"storage", "verify", "timeout", "framework", "device", "rename"}
    names = set(inspect.signature(asyncfetch.load).parameters) - never
    keyword = re.compile(rf"\b({'|'.join(names)})=")
    texts = {text for text in said_by_errors() if keyword.search(text)}
    assert len(texts) > 10
    assert [text for text in texts if keyword.search(in_flags(text))] == ["token=True, and no token was found."]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        ("1.5h", 5400),
        (" 2 m ", 120),
        ("999999999h", 999_999_999 * 3600),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A number of seconds, or one with its unit; the flag wins over the environment."""
    assert LineFlags(patience=text).policy().patience == seconds


@pytest.mark.parametrize("text", ["", "m", "-5", "5 min", "1e3", "nan", "inf", "5d", "1h30m", "٥"])
def test_senseless_durations(text: str) -> None:
    """Anything else is wrong usage, and says what is right."""
    with pytest.raises(SourceError, match=r"--patience .* is not a time such as 90s, 5m or 2h"):
        LineFlags(patience=text).policy()
