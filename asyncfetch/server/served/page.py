"""Pages for people: what is served here, and the files of one repository. Plain HTML; pure, without I/O."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

from ..folders.layout import qualified
from ..text import size_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..folders.repository import Repository

__all__ = ["SAFETY", "home_page", "repository_page"]

# What is shown here was named by others: nothing of it may run, or be framed.
SAFETY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = """
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
pre { overflow-x: auto; padding: .5rem 1rem; border: 1px solid; border-radius: .25rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n{body}</body>\n</html>\n"
    )


def home_page(origin: str, names: Mapping[str, Sequence[str]]) -> str:
    """What is served, by kind, and the line that points a client here."""
    origin = escape(origin)
    parts = [
        "<main>\n<h1>asyncfetch</h1>\n<p>This server speaks the protocol of the Hugging Face Hub.",
        f" To use it:</p>\n<pre>export HF_ENDPOINT={origin}</pre>\n",
    ]
    for kind, found in names.items():
        if found or kind == "models":
            parts.append(f"<h2>{kind.capitalize()}</h2>\n")
            links = [
                f'<li><a href="{origin}/{quote(qualified(kind, name))}">{escape(name)}</a></li>\n' for name in found
            ]
            parts.append(f"<ul>\n{''.join(links)}</ul>\n" if links else "<p>There are none here.</p>\n")
    return _page("asyncfetch", "".join([*parts, "</main>\n"]))


def repository_page(origin: str, kind: str, repository: Repository) -> str:
    """The files of a repository, with their sizes and hashes."""
    origin = escape(origin)
    base = f"{origin}/{quote(qualified(kind, repository.name))}/resolve/{repository.commit}"
    rows = [
        f'<tr><td><a href="{base}/{quote(file.path)}">{escape(file.path)}</a></td>'
        f'<td class="number">{size_text(file.size)}</td><td><code>{file.etag[:12]}</code></td></tr>\n'
        for file in repository.files.values()
    ]
    return _page(
        repository.name,
        f'<main>\n<p><a href="{origin}/">All that is here</a></p>\n<h1>{escape(repository.name)}</h1>\n'
        f'<p>Commit <code>{repository.commit}</code></p>\n<table>\n<thead><tr><th scope="col">File</th>'
        '<th scope="col" class="number">Size</th><th scope="col">Hash</th></tr></thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>\n</main>\n",
    )
