"""The commands of the console script. Data goes to stdout, all else to stderr."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from ..api import functions as api
from ..api.saving import convert as convert_checkpoint
from ..errors import SourceError, redact_url
from ..format.near import near_name
from ..format.writer import check_output
from .caching import cache_app
from .clustering import ClusterFlags, download_for_cluster
from .doctor import doctor
from .inspecting import list_inspection
from .listing import list_plan, list_snapshot, list_tensors, list_verified
from .merging import merge
from .options import (
    FLAG,
    CommonFlags,
    FetchFlags,
    FileFlags,
    LineFlags,
    TensorFlags,
    noticing,
    reporting,
)  # fmt: skip
from .output import NO_ROOM, stdout_errors
from .planning import room_of_cache, room_of_folder
from .plotting import check_plot
from .plotting import plot as draw
from .prefetching import PrefetchFlags, prefetch_from
from .serving import ServeFlags, serve_until_stopped

__all__ = ["app", "run"]


def _version() -> str:
    try:
        return version("asyncfetch")
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"


app = App(
    name="asyncfetch",
    help="Fetch and load sharded safetensors checkpoints: concurrent, resumable, verified.",
    help_epilogue="A token is never an argument: set HF_TOKEN, or sign in with `hf auth login`.",
    help_format="plaintext",
    version=_version,
    version_flags=["--version", "-V"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def run(arguments: Sequence[str]) -> int:
    """Run the command in `arguments`; return its exit code. Raises SourceError on wrong usage."""
    _refuse_tokens(arguments)
    only_prints = not arguments or not {"--help", "-h", "--version", "-V"}.isdisjoint(arguments)
    try:
        with stdout_errors() if only_prints else nullcontext():
            code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        wrong = str(error).strip()
    else:
        return code if isinstance(code, int) else 0
    # Not even as the context of the error: that has what was typed, where a URL may stand in a wrong place.
    raise SourceError(f"{wrong}{_meant(arguments[0])}", hint=_help_for(arguments))


def _meant(word: str) -> str:
    """Which of the options that stand in the place of a command was probably meant; of others it is told already."""
    near = near_name(word, ["--help", "--version"]) if word.startswith("-") else None
    return "" if near is None else f" Did you mean {near}?"


def _help_for(arguments: Sequence[str]) -> str:
    """Where it is told what may be typed."""
    words, found = ["asyncfetch"], app
    for word in arguments:
        if word.startswith("-") or word not in (below := found.resolved_commands()):
            break
        words, found = [*words, word], below[word]
    if any(not name.startswith("-") for name in found.resolved_commands()):
        return f"`{' '.join(words)} --help` lists the commands, `{' '.join(words)} COMMAND --help` their options."
    return f"`{' '.join(words)} --help` tells what it takes."


def _refuse_tokens(arguments: Sequence[str]) -> None:
    """Say why there is no --token, without showing the token; cyclopts would suggest another option."""
    for argument in arguments:
        option = argument.partition("=")[0]
        if option in ("--token", "--hf-token", "--api-key"):
            hint = "Set HF_TOKEN, or sign in with `hf auth login`."
            if arguments[0] == "serve":
                hint = "Name the variable that holds it: --token-env NAME."
            raise SourceError("A token is never an argument: every user of the machine can read those.", hint=hint)


app.command(cache_app)
COMMON, TENSORS, LINE, FETCH, FILES = CommonFlags(), TensorFlags(), LineFlags(), FetchFlags(), FileFlags()
SERVE, PREFETCH, CLUSTER = ServeFlags(), PrefetchFlags(), ClusterFlags()
Source = Annotated[
    str, Parameter(help="org/model, org/model@revision, an https:// URL, s3://, gs:// or az://, or a local path.")
]
Output = Annotated[
    Path | None, Parameter(alias="-o", help="Write all tensors to this one safetensors file, replaced on success.")
]
DType = Annotated[str | None, Parameter(help="Cast floating tensors to this dtype, such as float32 or bfloat16.")]
Dequantize = Annotated[
    bool, FLAG, Parameter(help="Give the true numbers of FP8, MXFP4 and NVFP4 weights, float32 without --dtype.")
]
Memory = Annotated[bool, FLAG, Parameter(help="Download into memory; write nothing to the cache.")]
VerifyCache = Annotated[bool, FLAG, Parameter(help="Hash files that are already cached as well.")]
DryRun = Annotated[bool, FLAG, Parameter(help="Download nothing; tell what would be downloaded.")]
AllTensors = Annotated[
    bool, FLAG, Parameter(name="--all", help="A line for every tensor on a terminal too, not one for many layers.")
]


@app.command
def load(
    source: Source,
    /,
    *,
    output: Output = None,
    dtype: DType = None,
    dequantize: Dequantize = False,
    memory: Memory = False,
    verify_cache: VerifyCache = False,
    dry_run: DryRun = False,
    every: AllTensors = False,
    flags: CommonFlags = COMMON,
    wanted: TensorFlags = TENSORS,
    fetch: FetchFlags = FETCH,
) -> int:
    """Load a checkpoint and list its tensors; with --output, merge it into one file."""
    if output is not None:
        check_output(output)
    arguments = flags.arguments() | wanted.arguments() | fetch.arguments()
    if dry_run:
        return _dry_run("load", source, arguments | {"weights_only": True}, flags, to_disk=not memory)
    with reporting(flags) as report:
        tensors, found = api.load_inspected(
            source,
            **arguments,
            dtype=dtype,
            dequantize=dequantize,
            storage="memory" if memory else "disk",
            verify="always" if verify_cache else "download",
            report=report,
        )
    if output is not None:
        merge(tensors, found, output, quiet=flags.quiet or flags.json)
    list_tensors(tensors, found, output=output, every=every, as_json=flags.json, quiet=flags.quiet)
    return 0


@app.command
def download(
    source: Source,
    /,
    *files: Annotated[str, Parameter(help="Only these files, by their names in the source.")],
    which: FileFlags = FILES,
    verify_cache: VerifyCache = False,
    dry_run: DryRun = False,
    flags: CommonFlags = COMMON,
    wanted: TensorFlags = TENSORS,
    fetch: FetchFlags = FETCH,
) -> int:
    """Download a checkpoint and what belongs to it into the cache, or a folder, and print the folder that holds it."""
    arguments = flags.arguments() | wanted.arguments() | fetch.arguments() | which.arguments(files)
    if dry_run:
        return _dry_run("download", source, arguments, flags)
    with reporting(flags) as report:
        snapshot = api.download(source, **arguments, verify="always" if verify_cache else "download", report=report)
    list_snapshot(source, snapshot, as_json=flags.json)
    return 0


@app.command
def cluster_download(
    source: Source,
    /,
    *,
    which: ClusterFlags = CLUSTER,
    flags: CommonFlags = COMMON,
    wanted: TensorFlags = TENSORS,
    fetch: FetchFlags = FETCH,
) -> None:
    """Download a checkpoint once into the cache of each node of a Ray cluster, and list the nodes."""
    download_for_cluster(source, flags.arguments() | wanted.arguments() | fetch.arguments(), which, flags)


@app.command
def convert(
    source: Source,
    folder: Annotated[Path, Parameter(help="A new folder, or an empty one. An interrupted run goes on there.")],
    /,
    *,
    dtype: DType = None,
    dequantize: Dequantize = False,
    rename: Annotated[
        tuple[str, ...], FLAG, Parameter(help="OLD=NEW: another prefix of names, repeatable. OLD=: without it.")
    ] = (),
    max_shard_size: Annotated[str, Parameter(help="As 5GB or 512MiB; none: one file.")] = "5GB",
    weights_only: Annotated[bool, FLAG, Parameter(help="Bring no config, tokenizer and the like.")] = False,
    verify_cache: VerifyCache = False,
    flags: CommonFlags = COMMON,
    wanted: TensorFlags = TENSORS,
    fetch: FetchFlags = FETCH,
) -> None:
    """Write a checkpoint as another one: merged, in other shards, cast, renamed, dequantized."""
    with reporting(flags) as report:
        snapshot = convert_checkpoint(
            source,
            folder,
            **flags.arguments() | wanted.arguments() | fetch.arguments(),
            dtype=dtype,
            dequantize=dequantize,
            rename=[_prefixes(pair) for pair in rename] or None,
            max_shard_size=None if max_shard_size.lower() == "none" else max_shard_size,
            weights_only=weights_only,
            verify="always" if verify_cache else "download",
            report=report,
        )
    return list_snapshot(source, snapshot, command="convert", as_json=flags.json)


def _prefixes(pair: str) -> tuple[str, str]:
    old, equals, new = pair.partition("=")
    if not equals:
        raise SourceError(f"--rename {pair!r} is not OLD=NEW.")
    return old, new


def _dry_run(
    command: str, source: str, arguments: Mapping[str, Any], flags: CommonFlags, *, to_disk: bool = True
) -> int:
    with noticing(flags) as report:
        resolved = api.dry_run(source, **arguments, report=report)
    cache = room_of_cache(resolved, os.environ, flags.cache_dir) if to_disk else None
    given = arguments.get("local_dir")
    local = None if given is None else room_of_folder(resolved, given, None if cache is None else cache.folder)
    fits = list_plan(command, resolved, cache=cache, local=local, as_json=flags.json, quiet=flags.quiet)
    return 0 if fits else NO_ROOM


@app.command
def inspect(
    source: Source,
    /,
    *,
    tensors: Annotated[bool, FLAG, Parameter(help="List every tensor as well.")] = False,
    plot: Annotated[
        Path | None, Parameter(help="Write a picture of where the bytes are to this file: .png, .svg or .pdf.")
    ] = None,
    flags: CommonFlags = COMMON,
    wanted: TensorFlags = TENSORS,
    line: LineFlags = LINE,
) -> None:
    """Show what a checkpoint holds, and what a load of it needs in memory. Only its index and its headers are read."""
    picture = None if plot is None else check_plot(plot)
    arguments = flags.arguments() | wanted.arguments()
    with noticing(flags) as report:
        found = api.inspect(source, **arguments, policy=line.policy(), report=report)
    if picture is not None:
        draw(found, picture)
    list_inspection(found, tensors=tensors, as_json=flags.json)


@app.command
def verify(source: Source, /, *, flags: CommonFlags = COMMON) -> int:
    """Hash what is cached of a checkpoint again; exit with 5 if a file is wrong."""
    arguments = flags.arguments()
    del arguments["offline"]  # it always is
    with noticing(flags) as report:
        files = api.verify(source, **arguments, report=report)
    code = 5 if any(file.ok is False for file in files) else 0
    list_verified(source, files, mend=_mending(source, flags), exit_code=code, as_json=flags.json)
    return code


def _mending(source: str, flags: CommonFlags) -> str:
    """The command that fetches again what is wrong of `source` in its cache."""
    if re.match("https?:", source, re.IGNORECASE):
        shown = _usable(source, "SOURCE")
    elif os.path.exists(os.path.expanduser(source)):
        return "copy or download it again: a local folder has no source to ask"
    else:
        shown = source
    named = ("revision", "subfolder", "variant", "cache_dir", "endpoint")
    values = {name: value for name in named if (value := getattr(flags, name)) is not None}
    if flags.endpoint is not None:
        values["endpoint"] = _usable(flags.endpoint, "ENDPOINT")
    given = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return shlex.join(["asyncfetch", "download", "--verify-cache", "--no-offline", *given, shown])


def _usable(url: str, word: str) -> str:
    """A URL for a command that is shown, or the word for it: with half a URL the command would be of no use."""
    return url if redact_url(url) == url else word


@app.command
def serve(
    directory: Annotated[
        Path | None, Parameter(help="Models as NAME or ORG/NAME, one model, a hub cache, or a part of it.")
    ] = None,
    /,
    *,
    flags: ServeFlags = SERVE,
) -> None:
    """Serve a folder of models, another Hub by --upstream, or both, with the Hub's protocol, until Ctrl-C."""
    serve_until_stopped(directory, flags)


@app.command
def prefetch(
    source: Annotated[
        str, Parameter(help="org/model, org/model@revision, or the address of a page of the server's Hub.")
    ],
    /,
    *,
    flags: PrefetchFlags = PREFETCH,
) -> None:
    """Let a server that was started with --upstream fetch a model before anybody asks for it."""
    prefetch_from(source, flags)


@app.command(name="doctor")
def examine(
    *,
    cache_dir: Annotated[Path | None, Parameter(help="Cache to use instead of HF_HUB_CACHE.")] = None,
    endpoint: Annotated[str | None, Parameter(help="Hub to ask instead of HF_ENDPOINT.")] = None,
    json: Annotated[bool, FLAG, Parameter(help="One JSON object on stdout.")] = False,
) -> int:
    """Tell what a load would use here (cache, endpoint, token, proxy), whether it works, and what to do if not."""
    return doctor(os.environ, cache_dir=cache_dir, endpoint=endpoint, as_json=json)


@app.command
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell that is to complete.")], /
) -> None:
    """Print the completion script of a shell; no file is changed."""
    print(app.generate_completion(shell=shell))
