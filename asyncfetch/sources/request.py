"""What the user named: a Hub repository, a URL or a local path. Pure: one look at the disk is passed in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ..errors import SourceError, redact_url
from ..format.index import Selector
from ..network.urls import origin_of
from ..policy import Policy
from ..storage.cache import path_inside
from ..storage.checksums import Checksum
from .settings import DEFAULT_ENDPOINT, Settings

__all__ = [
    "HubSource",
    "LocalSource",
    "Request",
    "Source",
    "UrlSource",
    "candidates",
    "check_repo_id",
    "is_index_name",
    "names_in",
    "parse_source",
]

_SHARD = ".safetensors"
# Tried after the names that every tool writes; a repository that has none of them is an error
# anyway. Diffusers components, Mistral's own releases, PEFT adapters.
_OTHER_NAMES = ("diffusion_pytorch_model", "consolidated", "adapter_model")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hub. `file` is set where the user named one index or one shard in it."""

    repo_id: str
    revision: str
    subfolder: str = ""
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" if self.revision != "main" else self.repo_id


@dataclass(frozen=True, slots=True, repr=False)
class UrlSource:
    """A folder on a web server, given by the URL of the folder, an index or a safetensors file.

    `query` belongs to each file of the folder, as with the access signatures of object stores.
    """

    folder: str
    file: str | None
    query: str = ""

    def url(self, name: str) -> str:
        """The address of a file of the folder. Raises SourceError for a name that would leave it."""
        path_inside(name)
        return f"{self.folder}{quote(name)}" + (f"?{self.query}" if self.query else "")

    def __str__(self) -> str:
        return redact_url(self.folder + quote(self.file or ""))

    def __repr__(self) -> str:
        return f"UrlSource({str(self)!r})"


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A folder on disk, given by its path or by the path of an index or a safetensors file in it."""

    folder: str
    file: str | None

    def __str__(self) -> str:
        return os.path.join(self.folder, self.file or "")


Source = HubSource | UrlSource | LocalSource


def is_index_name(name: str) -> bool:
    """Whether a file name is that of an index, variants included: `*.index*.json`."""
    return re.search(r"\.index(\.[\w\-]+)?\.json$", name) is not None


def parse_source(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    endpoint: str = DEFAULT_ENDPOINT,
    kind_of: Callable[[str], str | None],
) -> Source:
    """Decide what `source` names.

    `kind_of(path)` says "file", "folder" or None. What exists on disk is a path; a URL of the
    Hub's pages is its repository; anything else without a scheme is a repository id, with
    `@revision` or `revision=`. Raises SourceError.
    """
    text = os.fspath(source)
    if not isinstance(text, str) or not text or "\0" in text:
        raise SourceError("The source is empty or not text.")
    kind = kind_of(text)
    if kind is not None:
        return _local(text, kind, revision, subfolder)
    if isinstance(source, os.PathLike) or text.startswith(("/", "./", "../", "~")):
        raise SourceError(f"There is nothing at {text!r}.", hint="Check the path.")
    if re.search(r"[\ud800-\udfff]", f"{text}{revision}{subfolder}"):  # fine in a path of bytes only
        raise SourceError("The source has characters that no URL can carry.")
    sub = _folder(subfolder or "")
    if re.match(r"https?://", text, re.IGNORECASE):
        return _url(text, revision, sub, endpoint)
    if "://" in text:
        raise SourceError(
            f"{text.split('://')[0]}:// is not supported.", hint="Give an http(s) URL, a path or a repository."
        )
    repo_id, _, at = text.partition("@")
    if at and revision and at != revision:
        raise SourceError(f"The source says revision {at!r} and revision= says {revision!r}.")
    return HubSource(check_repo_id(repo_id), _revision(at or revision or "main"), sub)


def _local(text: str, kind: str, revision: str | None, subfolder: str | None) -> LocalSource:
    if revision:
        raise SourceError(f"{text!r} is a local path, which has no revisions.")
    text = os.path.expanduser(text)
    if kind == "folder":
        return LocalSource(os.path.join(text, _folder(subfolder or "")), None)
    if subfolder:
        raise SourceError("subfolder= goes with a folder, not with a file.")
    folder, file = os.path.split(text)
    _check_file(file)
    return LocalSource(folder, file)


def _url(text: str, revision: str | None, subfolder: str, endpoint: str) -> Source:
    parts = None
    with suppress(ValueError):  # its text may show the password: so it is no context of ours
        parts, origin = urlsplit(text), origin_of(text)
    if parts is None:
        raise SourceError(f"{redact_url(text)!r} is not a usable URL.")
    if not parts.hostname:
        raise SourceError(f"{redact_url(text)!r} has no host.")
    if origin in {origin_of(endpoint), origin_of(DEFAULT_ENDPOINT), origin_of("https://hf.co")}:
        return _hub_page(parts.path, revision, subfolder)
    if revision:
        raise SourceError(f"{redact_url(text)!r} is a plain URL, which has no revisions.")
    folder, _, file = parts.path.rpartition("/")
    if file and not (file.endswith(_SHARD) or is_index_name(unquote(file))):
        if "." in file and re.search(r"\.(bin|pt|pth|ckpt|json|gguf|zip)$", file):
            _check_file(file)
        folder, file = parts.path.rstrip("/"), ""
    folder = urlunsplit((parts.scheme, parts.netloc, folder + "/", "", ""))
    if subfolder:
        if file:
            raise SourceError("subfolder= goes with the URL of a folder, not of a file.")
        folder += quote(subfolder) + "/"
    if file:
        path_inside(unquote(file))
    return UrlSource(folder, unquote(file) or None, parts.query)


def _hub_page(path: str, revision: str | None, subfolder: str) -> HubSource:
    """A URL copied from the Hub's site: /owner/name[/{tree,blob,resolve}/revision[/path]]."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    cut = next(
        (at for at, part in enumerate(parts[:-1]) if part in ("tree", "blob", "resolve") and at in (1, 2)), len(parts)
    )
    repo_id = check_repo_id("/".join(parts[:cut]))
    rest = parts[cut + 2 :]
    named = parts[cut + 1] if cut + 1 < len(parts) else None
    if named and revision and named != revision:
        raise SourceError(f"The URL says revision {named!r} and revision= says {revision!r}.")
    file = None
    if rest and parts[cut] != "tree":
        file = rest.pop()
        _check_file(file)
        path_inside(file)
    inner = _folder("/".join([*rest, *([subfolder] if subfolder else [])]))
    return HubSource(repo_id, _revision(named or revision or "main"), inner, file)


def _check_file(file: str) -> None:
    if not (file.endswith(_SHARD) or is_index_name(file)):
        raise SourceError(
            f"{file!r} is neither a .safetensors file nor an index (*.safetensors.index.json).",
            hint="Pickled checkpoints (.bin, .pt) are not read: they can run code.",
        )


def _folder(text: str) -> str:
    folder = text.strip("/")
    if any(part in ("", ".", "..") or re.search(r"[\x00-\x1f\\]", part) for part in folder.split("/") if folder):
        raise SourceError(f"The folder {text!r} does not stay inside its source.")
    return folder


def _revision(text: str) -> str:
    if any(part in ("", ".", "..") for part in text.split("/")) or re.search(r"[\x00-\x20\x7f\\^~:?*\[]", text):
        raise SourceError(f"{text!r} is not a branch, tag or commit.")
    return text


def candidates(variant: str | None) -> list[str]:
    """The file names to try in a folder, in order: the index before any single file.

    Tools spell the index of a variant in three ways; all are tried
    (https://huggingface.co/docs/diffusers/using-diffusers/loading#checkpoint-variants).
    """
    if variant is None:
        names = [
            "model.safetensors.index.json",
            "model.safetensors",
            "pytorch_model.safetensors",
            "model-00001-of-00001.safetensors",
        ]
        for base in _OTHER_NAMES:
            names += [f"{base}.safetensors.index.json", f"{base}.safetensors"]
        return names
    if not re.fullmatch(r"[\w\-]{1,64}", variant, re.ASCII):
        raise SourceError(f"{variant!r} is not a variant such as 'fp16'.")
    names = [
        *_variant_indexes("model", variant),
        f"model.{variant}.safetensors",
        f"pytorch_model.{variant}.safetensors",
        f"model.{variant}-00001-of-00001.safetensors",
    ]
    for base in _OTHER_NAMES[:1]:
        names += [*_variant_indexes(base, variant), f"{base}.{variant}.safetensors"]
    return names


def names_in(source: Source, variant: str | None) -> list[str]:
    """The paths in `source` to try, in order: one only, where the user named a file. Raises SourceError."""
    names = [source.file] if source.file else candidates(variant)
    folder = f"{source.subfolder}/" if isinstance(source, HubSource) and source.subfolder else ""
    return [folder + name for name in names]


def _variant_indexes(base: str, variant: str) -> list[str]:
    return [
        f"{base}.safetensors.index.{variant}.json",
        f"{base}.safetensors.{variant}.index.json",
        f"{base}.{variant}.safetensors.index.json",
    ]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, with everything from the environment already read."""

    source: Source
    settings: Settings
    cache_root: Path
    policy: Policy
    variant: str | None = None
    select: Selector = None
    checksums: Mapping[str, Checksum] | None = None
    dequantize: bool = False  # what scales a selected tensor is wanted too


def check_repo_id(repo_id: str) -> str:
    """`name` or `owner/name` by the Hub's rules, or SourceError."""
    parts = repo_id.split("/")
    good = len(parts) <= 2 and all(re.fullmatch(r"[\w\-.]{1,96}", part, re.ASCII) for part in parts)
    if not good or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git") or any(p[0] in "-." for p in parts):
        raise SourceError(
            f"{repo_id!r} is neither an existing path nor a repository id.",
            hint='A repository is "owner/name", a revision is added as "owner/name@revision".',
        )
    return repo_id
