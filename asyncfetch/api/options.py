"""Every keyword of the public functions, written once.

A function takes `**options: Unpack[Options]`, which type checkers see through; `spelled_out` gives it the
signature and the docstring in which all of them stand.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar, overload

from ..policy import Policy

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..events import Reporter
    from ..format.index import Selector
    from ..models.names import Rename

    class Tensor(torch.Tensor):  # type: ignore[misc]
        """A `torch.Tensor`. Without torch a type checker knows of it what it does not inherit, and that is enough."""


__all__ = [
    "Access",
    "AsNumpy",
    "AsTorch",
    "DTypeLike",
    "DeviceLike",
    "DownloadOptions",
    "Fetched",
    "Files",
    "Foreseen",
    "Framework",
    "HttpClient",
    "InspectOptions",
    "LoadOptions",
    "Loaded",
    "LocalAccess",
    "OpenOptions",
    "Opened",
    "Options",
    "PlanOptions",
    "Planned",
    "Read",
    "ReadOptions",
    "RepoType",
    "Sought",
    "Source",
    "Storage",
    "StreamOptions",
    "Streamed",
    "Told",
    "Verify",
    "VerifyOptions",
    "Wanted",
    "spelled_out",
    "split",
]

F = TypeVar("F", bound=Callable[..., Any])

Source = str | os.PathLike[str]
Storage = Literal["disk", "memory"]
Verify = Literal["download", "always"]
RepoType = Literal["model", "dataset"]
AsNumpy = Literal["numpy"]
AsTorch = Literal["torch"]
Framework = AsNumpy | AsTorch


class HttpClient(Protocol):
    """A client of httpx's kind, such as `httpx.AsyncClient` or one of httpx2."""

    @property
    def build_request(self) -> Callable[..., Any]: ...

    @property
    def send(self) -> Callable[..., Awaitable[Any]]: ...


class TorchDType(Protocol):
    """`torch.float32` and the like."""

    @property
    def is_floating_point(self) -> bool: ...

    @property
    def itemsize(self) -> int: ...


class TorchDevice(Protocol):
    """`torch.device("cuda")` and the like."""

    @property
    def type(self) -> str: ...

    @property
    def index(self) -> int | None: ...


if TYPE_CHECKING:
    DTypeLike = str | type[np.generic] | np.dtype[Any] | TorchDType
    DeviceLike = str | int | TorchDevice
else:
    DTypeLike = DeviceLike = object


class LocalAccess(TypedDict, total=False):
    """What a client that sends nothing must know.

    cache_dir: the cache, instead of HF_HUB_CACHE or HF_HOME/hub.
    endpoint: the Hub's address, instead of HF_ENDPOINT.
    policy: connections, time-outs, retries; None is `Policy.from_env()`.
    """

    cache_dir: Source | None
    endpoint: str | None
    policy: Policy | None


class Access(LocalAccess, total=False):
    """Who asks, whom, and how: fixed for the life of a Client.

    token: for the Hub only; None finds one as huggingface_hub does, False sends none, True must find one.
    offline: send nothing, use the cache; None reads HF_HUB_OFFLINE.
    client: an `httpx.AsyncClient` to send with, which is open. It is neither changed nor closed.
    """

    token: str | bool | None
    offline: bool | None
    client: HttpClient | None


class Told(TypedDict, total=False):
    """Who is told of a call that sends nothing, and how long it may take: as in `Sought`."""

    timeout: float | None
    report: Reporter | None


class Sought(TypedDict, total=False):
    """Which checkpoint, which of its tensors, and who is told.

    revision: a branch, tag or commit. A full commit hash with all files cached needs no request.
    subfolder: the folder within the source that holds the checkpoint.
    variant: such as `"fp16"`, for file names that carry it.
    select: a glob, several globs or a predicate over tensor names. Only the shards that hold selected
        tensors are downloaded.
    timeout: seconds after which the call raises TimedOutError; None waits as long as the policy does.
    report: called with each event (see `asyncfetch.events`), on the event loop.
    progress: True shows how it goes: in a notebook below the cell, else on stderr, as a table where that is a terminal.
        None does so if ASYNCFETCH_PROGRESS is 1 and no `report` is given.
    """

    revision: str | None
    subfolder: str | None
    variant: str | None
    select: Selector
    timeout: float | None
    report: Reporter | None
    progress: bool | None


class Planned(Sought, total=False):
    """What a plan of a download needs to know.

    checksums: `{file: "sha256:<64 hex>"}`, for sources that give no hash.
    """

    checksums: Mapping[str, str] | None


class Wanted(Planned, total=False):
    """What differs from call to call.

    verify: `"download"` hashes what is downloaded, `"always"` also what was cached.
    """

    verify: Verify


class Files(TypedDict, total=False):
    """Which files a download brings: by default a checkpoint, and all beside it that holds no weights.

    repo_type: `"dataset"` for a repository of data, of which all files come; `"datasets/owner/name"` says it too.
    weights_only: the checkpoint alone, without config, tokenizer and the like.
    files: exactly these files, by their names in the source, whatever they are; at least one.
    include: a glob or several over all files, as huggingface_hub has them; `"*"` is everything.
    exclude: a glob or several over files to leave out, of what `include` and `files` say, or beside the checkpoint.
    local_dir: put the files into this folder too, as the source has them; what is there already is not fetched.
        A file that was changed there is an error.
    overwrite: replace what was changed in `local_dir`.
    """

    repo_type: RepoType | None
    weights_only: bool
    files: str | Sequence[str] | None
    include: str | Sequence[str] | None
    exclude: str | Sequence[str] | None
    local_dir: Source | None
    overwrite: bool


class Fetched(Wanted, Files, total=False):
    """What differs from download to download."""


class Foreseen(Planned, Files, total=False):
    """What differs from plan to plan."""


class Read(Wanted, total=False):
    """What differs from call to call where tensors come of it.

    dequantize: give the true numbers of weights that are stored beside a scale (FP8, MXFP4, NVFP4), in `dtype`,
        or float32 where that is None, and leave those scales out. Else a cast of such a weight is refused.
    """

    dequantize: bool


class Options(Wanted, Access, total=False):
    """What the functions take that download: a client for one call, and the call."""


class ReadOptions(Read, Access, total=False):
    """What the functions take that give tensors."""


class Opened(Read, total=False):
    """What `Client.open` takes."""

    dtype: DTypeLike | None
    device: DeviceLike | None


class Loaded(Opened, total=False):
    """What `Client.load` takes."""

    rename: Rename
    storage: Storage


class Streamed(Loaded, total=False):
    """What `Client.stream` takes."""

    early: bool
    memory_limit: int | None


class OpenOptions(Opened, Access, total=False):
    """What `open` takes."""


class LoadOptions(Loaded, Access, total=False):
    """What `load` takes."""


class StreamOptions(Streamed, Access, total=False):
    """What `stream` takes."""


class DownloadOptions(Wanted, Files, Access, total=False):
    """What `download` takes."""


class PlanOptions(Planned, Files, Access, total=False):
    """What `dry_run` takes."""


class InspectOptions(Sought, Access, total=False):
    """What `inspect` takes."""


class VerifyOptions(Planned, LocalAccess, total=False):
    """What `verify` takes."""


_DESCRIPTIONS = {
    name: text
    for part in (LocalAccess, Access, Sought, Planned, Wanted, Files, Read)
    for name, text in re.findall(r"^(\w+): (.+(?:\n    .+)*)", inspect.cleandoc(part.__doc__ or ""), re.MULTILINE)
}
_DEFAULTS: Mapping[str, object] = {
    "verify": "download",
    "weights_only": False,
    "overwrite": False,
    "dequantize": False,
}  # of all others None


@overload
def split(options: DownloadOptions) -> tuple[Access, Fetched]: ...  # type: ignore[overload-overlap]
@overload
def split(options: ReadOptions) -> tuple[Access, Read]: ...  # type: ignore[overload-overlap]
@overload
def split(options: Options) -> tuple[Access, Wanted]: ...  # type: ignore[overload-overlap]
@overload
def split(options: PlanOptions) -> tuple[Access, Foreseen]: ...
@overload
def split(options: InspectOptions) -> tuple[Access, Sought]: ...  # type: ignore[overload-overlap]
@overload
def split(options: VerifyOptions) -> tuple[LocalAccess, Planned]: ...
def split(options: Any) -> tuple[Any, Any]:
    """What belongs to a client, and what to one call of it."""
    fixed = Access.__annotations__.keys()
    access = {name: value for name, value in options.items() if name in fixed}
    return access, {name: value for name, value in options.items() if name not in fixed}


class _Written(str):
    """An annotation that is shown as it is written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def spelled_out(kind: type) -> Callable[[F], F]:
    """Give a function that takes `**options: Unpack[kind]` the signature with each of them.

    Their descriptions take the place of the line `**options` in its docstring.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        shown = [one.replace(annotation=_Written(one.annotation)) for one in own.parameters.values()]
        if shown[-1].kind is inspect.Parameter.VAR_KEYWORD:
            shown.pop()
        for name, annotation in kind.__annotations__.items():
            written = _Written(getattr(annotation, "__forward_arg__", annotation))
            shown.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=written)
            )
        signature = inspect.Signature(shown, return_annotation=_Written(own.return_annotation))
        function.__signature__ = signature  # type: ignore[attr-defined]
        function.__doc__ = _described(function.__doc__ or "", kind.__annotations__)
        return function

    return decorate


def _described(doc: str, names: Iterable[str]) -> str:
    found = re.search(r"^( *)\*\*options\n", doc, re.MULTILINE)
    if found is None:
        return doc
    text = "".join(f"{name}: {_DESCRIPTIONS[name]}\n" for name in names)
    return doc[: found.start()] + textwrap.indent(text, found[1]) + doc[found.end() :]
