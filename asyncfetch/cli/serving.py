"""What `asyncfetch serve` takes, and what it says on stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import SourceError, redact_url
from ..storage.roots import cache_root, expanded
from .options import FLAG
from .text import printable

__all__ = ["ServeFlags", "serve_folder", "serve_upstream", "state_folder"]


@Parameter(name="*")
@dataclass(frozen=True)
class ServeFlags:
    """What is served and how, to whom, and what is said about it."""

    upstream: str | None = None
    """Serve another Hub instead of a folder: what is asked for is fetched from this URL once, verified and kept."""
    cache_dir: Path | None = None
    """Where what comes from --upstream is kept, in the Hub's own layout, instead of HF_HUB_CACHE."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine."""
    port: int = 8000
    """Port to listen on; 0 for a free one."""
    token_env: str | None = None
    """Ask clients for the token in this variable."""
    follow_links: Annotated[bool, FLAG] = False
    """Open what links in the folder lead to, wherever it is: whoever can make a link there says what is served."""
    state_dir: Path | None = None
    """Folder that keeps the hashes of files. Default: asyncfetch/serve in XDG_CACHE_HOME, or in ~/.cache. With
    --upstream it keeps what that Hub said; by default in the cache."""
    public_url: str | None = None
    """Where clients find this server, if it is behind a proxy that changes that."""
    trusted_proxies: str = "127.0.0.1,::1"
    """Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    tls_cert: Path | None = None
    """Certificate, with its chain, as a PEM file: serve https."""
    tls_key: Path | None = None
    """Key of the certificate, as a PEM file without a password."""
    quiet: Annotated[bool, FLAG] = False
    """No line for each request, and none about hashing; only warnings and errors."""


def state_folder(environ: Mapping[str, str], explicit: Path | None) -> Path | None:
    """Where hashes are kept over restarts; None where no home folder is known."""
    if explicit is not None:
        return explicit
    return expanded(os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "asyncfetch", "serve"))


def serve_folder(directory: Path, flags: ServeFlags) -> None:
    """Serve until Ctrl-C. Raises SourceError for what cannot be served, and for flags that make no sense."""
    from ..server.layout import KINDS, Layout
    from ..server.server import serve

    tls = _tls(flags)
    token = None
    if flags.token_env is not None:
        token = os.environ.get(flags.token_env)
        if not token:
            raise SourceError(f"--token-env names {flags.token_env}, which is not set.")
    with _logging_to_stderr(quiet=flags.quiet):
        layout = Layout(directory, follow_links=flags.follow_links)
        counts = {kind: len(layout.names(kind)) for kind in KINDS}

        def ready(url: str) -> None:
            print(f"serving {_counted(counts)} of {printable(str(directory))} at {url}", file=sys.stderr)
            if not any(counts.values()):
                print("no folder in it holds files: name one that holds models as NAME or ORG/NAME", file=sys.stderr)
            print(f"export HF_ENDPOINT={flags.public_url or url}", file=sys.stderr, flush=True)

        serve(
            directory,
            flags.host,
            flags.port,
            on_ready=ready,
            tls=tls,
            trusted_proxies=flags.trusted_proxies,
            token=token,
            follow_links=flags.follow_links,
            state_dir=state_folder(os.environ, flags.state_dir),
            ahead=True,
            public_url=flags.public_url,
        )


def serve_upstream(upstream: str, flags: ServeFlags) -> None:
    """Serve what another Hub has, until Ctrl-C. Raises SourceError, StorageError."""
    from ..server.server import serve

    if flags.token_env is not None or flags.follow_links:
        raise SourceError(
            "--token-env and --follow-links are for a folder: with --upstream, clients send their tokens there."
        )
    tls, root = _tls(flags), cache_root(os.environ, flags.cache_dir)
    with _logging_to_stderr(quiet=flags.quiet):

        def ready(url: str) -> None:
            shown = printable(redact_url(upstream))
            print(f"serving {shown} at {url}, by way of {printable(str(root))}", file=sys.stderr)
            print(f"export HF_ENDPOINT={flags.public_url or url}", file=sys.stderr, flush=True)

        serve(
            root,
            flags.host,
            flags.port,
            on_ready=ready,
            tls=tls,
            trusted_proxies=flags.trusted_proxies,
            state_dir=flags.state_dir,
            public_url=flags.public_url,
            upstream=upstream,
        )


def _tls(flags: ServeFlags) -> tuple[str, str] | None:
    if (flags.tls_cert is None) != (flags.tls_key is None):
        raise SourceError("--tls-cert and --tls-key go together: a certificate is of no use without its key.")
    return None if flags.tls_cert is None else (str(flags.tls_cert), str(flags.tls_key))


def _counted(counts: Mapping[str, int]) -> str:
    """ "3 models", "1 model and 2 datasets": no datasets are not worth a word."""
    told = [f"{n} {kind if n != 1 else kind[:-1]}" for kind, n in counts.items() if n or kind == "models"]
    return " and ".join(told)


@contextmanager
def _logging_to_stderr(*, quiet: bool) -> Iterator[None]:
    """A line on stderr, with the time, for each that the server logs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logger = logging.getLogger("asyncfetch.server")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
