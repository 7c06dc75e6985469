"""The man page, made of what --help says: docs/asyncfetch.1, which wheels install.

Commands, options and their words are those of the program, exit codes those of its table. docutils writes the page.
Options: --help.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cyclopts import App, Group
from cyclopts.help import create_parameter_help_panel
from docutils.core import publish_string

from asyncfetch.cli import output
from asyncfetch.cli.commands import app
from asyncfetch.policy import __version__

PAGE = Path(__file__).parents[1] / "docs" / "asyncfetch.1"
ENVIRONMENT = {
    "HF_HOME, HF_HUB_CACHE": "Where the cache is: $HF_HUB_CACHE, or $HF_HOME/hub, or ~/.cache/huggingface/hub.",
    "HF_ENDPOINT": "The Hub that is asked, instead of https://huggingface.co.",
    "HF_TOKEN, HF_TOKEN_PATH": "The token, or the file that it is in. It is sent to the endpoint only.",
    "HF_HUB_OFFLINE": "1: only what is cached is used.",
    "HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT": "Seconds to wait for a connection, and for bytes.",
    "ASYNCFETCH_CONNECTIONS, ASYNCFETCH_ATTEMPTS, ASYNCFETCH_PATIENCE": (
        "What --connections, --attempts and --patience (here in seconds) are where they are not given."
    ),
    "ASYNCFETCH_MAX_INDEX_BYTES": "The largest index that is read.",
    "ASYNCFETCH_DEBUG": "1: a traceback with each error.",
    "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY": "Proxies: http, https, socks5 and socks5h.",
    "SSL_CERT_FILE, SSL_CERT_DIR": "Certificates that are trusted, instead of those of the system.",
    "NO_COLOR": "No colours.",
}


def source(date: str) -> str:
    """The page in reStructuredText."""
    name, about = app.name[0], app.help.rstrip(".").partition(": ")
    lines = [
        *_title("=", name),
        *_title("-", f"{about[0].lower()}: {about[2]}"),
        f":Manual section: 1\n:Manual group: User Commands\n:Version: {name} {__version__}\n:Date: {date}\n",
        *_title("=", "SYNOPSIS", over=False),
        f"| **{name}** *COMMAND* [*OPTION* ...] [*ARGUMENT* ...]",
        f"| **{name}** **--help** | **--version**\n",
        *_title("=", "DESCRIPTION", over=False),
        f"{_escaped(app.help)} Data goes to stdout, all else to stderr. {_escaped(app.help_epilogue)}\n",
        *_title("=", "COMMANDS", over=False),
    ]
    for words, command in commands(app, (name,)):
        lines += [*_title("-", " ".join(words), over=False), *_command(words, command)]
    lines += [*_title("=", "EXIT STATUS", over=False), *_definitions(exit_codes())]
    lines += [*_title("=", "ENVIRONMENT", over=False), *_definitions(ENVIRONMENT)]
    lines += [*_title("=", "SEE ALSO", over=False), "**hf**\\ (1), https://github.com/asyncfetch/asyncfetch\n"]
    return "\n".join(lines)


def commands(parent: App, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], App]]:
    """All commands that do something, with the words by which they are called; one by its first name alone."""
    seen: set[int] = set()
    for name, command in parent.resolved_commands().items():
        if not name.startswith("-") and id(command) not in seen:
            seen.add(id(command))
            below = list(commands(command, (*words, name)))
            yield from below or [((*words, name), command)]


def options(command: App) -> Iterator[tuple[str, str]]:
    """What a command takes, as --help words it: its spelling, and what it does."""
    panel = create_parameter_help_panel(
        Group("all"), command.assemble_argument_collection(parse_docstring=True), "plaintext"
    )
    for entry in panel.entries:
        choices = f" One of: {', '.join(entry.choices)}." if entry.choices else ""
        yield ", ".join(entry.display_labels_with_metavar), f"{_plain(entry.description)}{choices}"


def exit_codes() -> dict[str, str]:
    """The table in output.py."""
    return dict(re.findall(r"^\| (\d+) \| (.*) \|$", output.__doc__ or "", re.MULTILINE))


def _plain(text: object) -> str:
    return " ".join(str(getattr(text, "primary_renderable", text) or "").split())


def _command(words: tuple[str, ...], command: App) -> Iterator[str]:
    taken = dict(options(command))
    arguments = [label for label in taken if not label.startswith("-")]
    synopsis = [f"**{' '.join(words)}**", "[*OPTION* ...]" if len(arguments) < len(taken) else ""]
    known = {argument.name: argument for argument in command.assemble_argument_collection()}
    for label in arguments:
        many = " ..." if known[label].is_var_positional() else ""
        synopsis.append(f"*{label}*{many}" if known[label].required else f"[*{label}*{many}]")
    yield " ".join(filter(None, synopsis)) + "\n"
    yield _escaped(_plain(command.help)) + "\n"
    yield from _definitions(taken)


def _definitions(meanings: dict[str, str]) -> Iterator[str]:
    for term, meaning in meanings.items():
        yield f"**{_escaped(term)}**\n{textwrap.indent(_escaped(meaning), '    ')}\n"


def _title(mark: str, text: str, *, over: bool = True) -> Iterator[str]:
    line = mark * len(text)
    yield from [line, text, line, ""] if over else [text, line, ""]


def _escaped(text: str) -> str:
    return re.sub(r"([\\*`_|@:])", r"\\\1", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the man page anew.")
    parser.add_argument("--output", type=Path, default=PAGE, help="where to write it; default: %(default)s")
    output_: Path = parser.parse_args().output
    settings = {"report_level": 2, "halt_level": 2}  # a warning is an error
    page = publish_string(source(f"{datetime.now(UTC):%Y-%m-%d}"), writer="manpage", settings_overrides=settings)
    text = page.decode().replace(".SH Name", ".SH NAME")
    output_.write_text(re.sub(r"^(\.S[HS] .*)\n\.sp$", r"\1", text, flags=re.MULTILINE))  # which would be skipped
    print(output_)


if __name__ == "__main__":
    main()
