"""What `asyncfetch serve` takes, and what it says on stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ..errors import SourceError, redact_url
from ..progress.text import printable
from ..storage.roots import cache_root, expanded
from ..words import size_of
from .options import FLAG

if TYPE_CHECKING:
    from ..server.endpoints import UpstreamOptions

__all__ = ["ServeFlags", "serve_until_stopped", "state_folder"]


@Parameter(name="*")
@dataclass(frozen=True)
class ServeFlags:
    """What is served and how, to whom, and what is said about it."""

    upstream: str | None = None
    """Serve another Hub: what is asked for is fetched from this URL once, verified and kept. A folder that is named too
    is served beside it, and its repositories come before those of the same names there."""
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
    # With --upstream: who may have what, and the room that it takes.
    allow: Annotated[tuple[str, ...], FLAG] = ()
    """With --upstream: serve only repositories like this: ORG/NAME, ORG/*, datasets/ORG/NAME. May be repeated."""
    deny: Annotated[tuple[str, ...], FLAG] = ()
    """With --upstream: serve none like this, also where --allow names it. May be repeated."""
    upstream_token_env: str | None = None
    """Send the token in this variable to --upstream for all clients, instead of their own. Needs --allow: it opens
    what it may see to everybody who reaches the port."""
    admin_token_env: str | None = None
    """Let who sends the token in this variable start jobs, pin and evict. Without it, only who asks a server that
    listens on loopback from this machine may, as the user who runs it: behind a proxy or a tunnel it is needed."""
    max_size: str | None = None
    """How large the cache may get, as in 200G or 180GiB. Beyond it goes what was not read for the
    longest time, whoever brought it. What is larger is handed on without being kept."""
    min_free: str | None = None
    """How much of the disk stays free, as in 50G; what nobody read goes for it. Default: 1G, or a hundredth of
    a smaller disk, for which nothing goes: what has no room is handed on without being kept."""
    upstream_bandwidth: str | None = None
    """How much may come from --upstream, as in 100M a second."""
    strict: Annotated[bool, FLAG] = False
    """With --upstream: send no byte of a file before its hash is right. The first byte of a large file comes late:
    clients need a long time-out, such as HF_HUB_DOWNLOAD_TIMEOUT=3600."""
    audit: str | None = None
    """A file that gets a line of JSON for each request: who, what, how many bytes and from where; - for stdout."""
    grace: Annotated[float, Parameter(validator=Number(gte=0, lte=3600))] = 10.0
    """Seconds that running answers get when the server is told to stop. What is being fetched can be gone on with."""


def state_folder(environ: Mapping[str, str], explicit: Path | None) -> Path | None:
    """Where hashes are kept over restarts; None where no home folder is known."""
    if explicit is not None:
        return explicit
    return expanded(os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "asyncfetch", "serve"))


def _token_in(variable: str | None, option: str) -> str | None:
    """The token that an option names by its variable. Raises SourceError where it is not set."""
    if variable is None:
        return None
    token = os.environ.get(variable)
    if not token:
        raise SourceError(f"{option} names {variable}, which is not set.")
    return token


def _size_of(text: str | None, option: str) -> int | None:
    """The bytes that an option says. Raises SourceError."""
    size = None if text is None else size_of(text)
    if text is not None and size is None:
        raise SourceError(f"{option} {text!r:.80} is no size such as 500M, 200G or 1TiB.")
    return size


def serve_until_stopped(directory: Path | None, flags: ServeFlags) -> None:
    """Serve a folder, another Hub, or both, until Ctrl-C. Raises SourceError, StorageError.

    SourceError is for what cannot be served, and for flags that make no sense together.
    """
    from ..server.server import serve

    if directory is None and flags.upstream is None:
        raise SourceError("Name a folder to serve, or another Hub by --upstream, or both.")
    _refuse_misfits(directory, flags)
    tls, options = _tls(flags), {} if flags.upstream is None else _upstream_options(directory, flags)
    root = directory if flags.upstream is None else cache_root(os.environ, flags.cache_dir)
    with _logging_to_stderr(quiet=flags.quiet):
        serve(
            root or "",
            flags.host,
            flags.port,
            on_ready=_announcement(directory, root, flags),
            tls=tls,
            trusted_proxies=flags.trusted_proxies,
            grace=flags.grace,
            token=_token_in(flags.token_env, "--token-env"),
            state_dir=flags.state_dir if flags.upstream else state_folder(os.environ, flags.state_dir),
            follow_links=flags.follow_links,
            ahead=directory is not None,
            public_url=flags.public_url,
            audit=flags.audit,
            **options,
        )


def _announcement(directory: Path | None, root: Path | None, flags: ServeFlags) -> Callable[[str], None]:
    """Says on stderr what is served at a URL. Raises SourceError where the folder is none."""
    from ..server.folders.layout import KINDS, Layout

    layout = None if directory is None else Layout(directory, follow_links=flags.follow_links)
    counts = {kind: len(layout.names(kind)) for kind in KINDS} if layout else {}

    def ready(url: str) -> None:
        own = f"{_counted(counts)} of {printable(str(directory))}"
        if flags.upstream is None:
            print(f"serving {own} at {url}", file=sys.stderr)
        else:
            before = f"{own} and " if layout else ""
            shown = printable(redact_url(flags.upstream))
            print(f"serving {before}{shown} at {url}, by way of {printable(str(root))}", file=sys.stderr)
            for line in _warnings(flags):
                print(f"WARNING: {line}", file=sys.stderr)
        if layout and not any(counts.values()):
            print("no folder in it holds files: name one that holds models as NAME or ORG/NAME", file=sys.stderr)
        print(f"export HF_ENDPOINT={flags.public_url or url}", file=sys.stderr, flush=True)

    return ready


def _upstream_options(directory: Path | None, flags: ServeFlags) -> UpstreamOptions:
    """How another Hub is served. Raises SourceError."""
    return {
        "upstream": flags.upstream,
        "own": directory,
        "allow": flags.allow,
        "deny": flags.deny,
        "upstream_token": _token_in(flags.upstream_token_env, "--upstream-token-env"),
        "admin_token": _token_in(flags.admin_token_env, "--admin-token-env"),
        "max_size": _size_of(flags.max_size, "--max-size"),
        "min_free": _size_of(flags.min_free, "--min-free"),
        "upstream_bandwidth": _size_of(flags.upstream_bandwidth, "--upstream-bandwidth"),
        "strict": flags.strict,
    }


_OF_UPSTREAM = (
    "cache_dir", "allow", "deny", "upstream_token_env", "admin_token_env", "max_size", "min_free",
    "upstream_bandwidth", "strict",
)  # fmt: skip


def _refuse_misfits(directory: Path | None, flags: ServeFlags) -> None:
    """Raises SourceError for flags that do not go together."""
    for name in _OF_UPSTREAM if flags.upstream is None else ():
        if getattr(flags, name):
            raise SourceError(f"--{name.replace('_', '-')} goes with --upstream.")
    if directory is None and flags.follow_links:
        raise SourceError("--follow-links is about links in a folder.")


def _warnings(flags: ServeFlags) -> Iterator[str]:
    """What an operator should know who lets others reach another Hub by this server."""
    from ..server.access import is_for_others, is_loopback

    if is_loopback(flags.host):
        if is_for_others(flags.public_url) and flags.admin_token_env is None:
            yield "nobody may start jobs, pin or evict at a --public-url: --admin-token-env names a token for it."
        return
    if flags.token_env is None and not flags.allow:
        whose = "read what is public there" if not flags.upstream_token_env else "read what the token may see"
        yield (
            f"everybody who reaches this port may {whose}, and fill this disk with it:"
            " --allow names what may be asked for, --token-env asks for a token."
        )
    if flags.tls_cert is None and flags.public_url is None:
        yield "tokens of clients come over the network in the clear: --tls-cert and --tls-key make it https."


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
