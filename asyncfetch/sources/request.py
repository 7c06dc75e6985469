"""What the user named: a Hub repository, a URL, a bucket or a local path. Pure: a look at the disk is passed in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ..errors import SourceError, redact_url
from ..format.index import Selector
from ..format.near import near_name
from ..network.urls import origin_of
from ..policy import Policy
from ..storage.cache import path_inside
from ..storage.checksums import Checksum
from ..storage.wrong import WrongFiles
from .bucket import BucketSource, bucket_of, is_bucket
from .candidates import candidates, is_index_name
from .listing import Chosen
from .settings import DEFAULT_ENDPOINT, Settings

__all__ = [
    "BucketSource",
    "HubSource",
    "LocalSource",
    "Request",
    "Source",
    "UrlSource",
    "check_repo_id",
    "is_repo_id",
    "names_in",
    "parse_source",
]

_SHARD = ".safetensors"
# Fields of signed links: of S3 and its like by their prefix, of others by name; Azure's are short.
_SIGNATURE = re.compile(
    r"(x-(amz|goog|oss|cos|obs|tos)-[^=]*|q-(sign|ak|key|header|url)[^=]*|([^=]*[-_])?(sig|sign|signature|auth|secret)|"
    r"[^=]*token|password|credentials?|api[-_]?key|(aws|oss)?accesskeyid|googleaccessid|hdnea|hdnts)=",
    re.IGNORECASE,
)
_BESIDE_ONE = re.compile(
    r"(expires|policy|key-pair-id|sv|ss|srt|sp|se|st|spr|sr|si|sip|sk(oid|tid|t|e|s|v))=", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository on the Hub. `file` is set where the user named one index or one shard in it, or of a dataset any."""

    repo_id: str
    revision: str
    subfolder: str = ""
    file: str | None = None
    repo_type: str = "model"  # or "dataset"

    @property
    def name(self) -> str:
        """How it is called in the Hub's own addresses: `owner/name`, or `datasets/owner/name`."""
        return self.repo_id if self.repo_type == "model" else f"{self.repo_type}s/{self.repo_id}"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision != "main" else self.name


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

    @property
    def selecting(self) -> str:
        """What of the query says which files these are, such as `version=2`; not what says that the caller may.

        Signatures are made anew each time, and what they open is the same. A name that is not known to be
        one of theirs counts: another version would be taken for this one.
        """
        fields = sorted(field for field in self.query.split("&") if field)
        rest = [field for field in fields if not _SIGNATURE.match(field)]
        return "&".join(field for field in rest if len(rest) == len(fields) or not _BESIDE_ONE.match(field))

    def __str__(self) -> str:
        return redact_url(self.folder + quote(self.file or ""))

    def __repr__(self) -> str:
        return f"UrlSource({str(self)!r})"


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A folder on disk, given by its path or by the path of an index or a safetensors file in it.

    `shadows` is the repository that it could have been as well, by how it was written.
    """

    folder: str
    file: str | None
    shadows: str = field(default="", compare=False)

    def both_readings(self, revision: str = "main") -> str:
        """How to say which of the two is meant."""
        return f"For the repository of that name give {self.shadows}@{revision}, for the folder ./{self.shadows}."

    def __str__(self) -> str:
        return os.path.join(self.folder, self.file or "")


Source = HubSource | UrlSource | BucketSource | LocalSource


def parse_source(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    repo_type: str | None = None,
    endpoint: str = DEFAULT_ENDPOINT,
    kind_of: Callable[[str], str | None],
    names_in: Callable[[str], Collection[str]] = lambda _: (),
) -> Source:
    """Decide what `source` names.

    `kind_of(path)` says "file", "folder" or None. What exists on disk is a path, also where it could be a
    repository; a URL below the endpoint, or of the Hub's own pages, is the repository there, and any other
    a web folder; s3://, gs:// and az:// name buckets; anything else without a scheme is a repository id, with
    `@revision` or `revision=`. What begins with `datasets/` is a dataset, as in the Hub's addresses. `names_in(folder)`
    are what a misspelt path may have meant. Raises SourceError.
    """
    text = os.fspath(source)
    if not isinstance(text, str) or not text or "\0" in text:
        raise SourceError("The source is empty or not text.")
    kind = kind_of(text)
    if kind is not None:
        return _local(source, kind, revision, subfolder, repo_type)
    if isinstance(source, os.PathLike) or text.startswith(("/", "./", "../", "~")):
        near = _near_path(text, kind_of, names_in)
        raise SourceError(
            f"There is nothing at {text!r}.", hint=f"Did you mean {near!r}?" if near else "Check the path."
        )
    if re.search(r"[\x01-\x1f\x7f\ud800-\udfff]", f"{text}{revision}{subfolder}"):  # fine in a path of bytes only
        raise SourceError("The source has characters that no URL can carry.")
    sub = _folder(subfolder or "")
    if re.match(r"https?://", text, re.IGNORECASE):
        return _url(text, revision, sub, endpoint, repo_type)
    if is_bucket(text):
        return _bucket(text, revision, sub, repo_type)
    if "://" in text:
        raise SourceError(
            f"{text.split('://')[0]}:// is not supported.",
            hint="Give an http(s) URL, a bucket (s3://, gs://, az://), a path or a repository.",
        )
    repo_id, _, at = text.partition("@")
    if at and revision and at != revision:
        raise SourceError(f"The source says revision {at!r} and revision= says {revision!r}.")
    repo_type, repo_id = _typed(repo_id, repo_type)
    return HubSource(check_repo_id(repo_id), _revision(at or revision or "main"), sub, repo_type=repo_type)


def _near_path(
    path: str, kind_of: Callable[[str], str | None], names_in: Callable[[str], Collection[str]]
) -> str | None:
    """The path of something that is there, with one name that is nearly as in `path`; None where there is none."""
    head, name = os.path.split(path.rstrip("/"))
    rest: list[str] = []
    while head.strip("/") and kind_of(head) is None:
        rest.insert(0, name)
        head, name = os.path.split(head)
    near = near_name(name, names_in(head or "."))
    found = os.path.join(head, near, *rest) if near else ""
    return found if found and kind_of(found) else None


def _typed(name: str, repo_type: str | None) -> tuple[str, str]:
    """The type of a repository and its id, by its name in the Hub's addresses and by what the caller says."""
    if not name.startswith("datasets/"):
        return repo_type or "model", name
    if repo_type == "model":
        raise SourceError(f"{name!r} is a dataset, and repo_type= says model.")
    return "dataset", name.removeprefix("datasets/")


def _local(
    source: str | os.PathLike[str], kind: str, revision: str | None, subfolder: str | None, repo_type: str | None
) -> LocalSource:
    text = os.fspath(source)
    shadows = text if isinstance(source, str) and is_repo_id(text.removeprefix("datasets/")) else ""
    if revision or repo_type == "dataset":
        hint = LocalSource(text, None, shadows).both_readings(revision or "main") if shadows else ""
        raise SourceError(f"{text!r} is a local path, which has no {'revisions' if revision else 'type'}.", hint=hint)
    path = os.path.expanduser(text)
    if kind == "folder":
        return LocalSource(os.path.join(path, _folder(subfolder or "")), None, shadows)
    folder, file = os.path.split(path)
    if shadows and not _is_readable(file):
        raise SourceError(
            f"{text!r} is a file here, and none of safetensors.",
            hint=f"For the repository of that name give {text}@main.",
        )
    if subfolder:
        raise SourceError("subfolder= goes with a folder, not with a file.")
    _check_file(file)
    return LocalSource(folder, file)


def _url(text: str, revision: str | None, subfolder: str, endpoint: str, repo_type: str | None) -> Source:
    parts = None
    with suppress(ValueError):  # its text may show the password: so it is no context of ours
        parts, origin = urlsplit(text), origin_of(text)
    if parts is None:
        raise SourceError(f"{redact_url(text)!r} is not a usable URL.")
    if not parts.hostname:
        raise SourceError(f"{redact_url(text)!r} has no host.")
    page = _below(parts.path, urlsplit(endpoint).path) if origin == origin_of(endpoint) else None
    if page is None and origin in {origin_of(DEFAULT_ENDPOINT), origin_of("https://hf.co")}:
        page = parts.path
    if page is not None and not page.strip("/"):
        raise SourceError(f"{redact_url(text)!r} is the Hub itself.", hint="Add a repository: /owner/name.")
    if page is not None:
        return _hub_page(page, revision, subfolder, repo_type)
    if revision or repo_type == "dataset":
        what = "revisions" if revision else "type"
        raise SourceError(f"{redact_url(text)!r} is a plain URL, which has no {what}.")
    folder, _, file = parts.path.rpartition("/")
    if file and not _is_readable(unquote(file)):
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


def _bucket(text: str, revision: str | None, subfolder: str, repo_type: str | None) -> BucketSource:
    bucket, path = bucket_of(text)
    folder, _, file = path.rpartition("/")
    if file and not _is_readable(file):
        if re.search(r"\.(bin|pt|pth|ckpt|json|gguf|zip)$", file):
            _check_file(file)
        folder, file = path.rstrip("/"), ""
    if revision or repo_type == "dataset":
        raise SourceError(f"{bucket} is a bucket, which has no {'revisions' if revision else 'type'}.")
    if subfolder and file:
        raise SourceError("subfolder= goes with a folder, not with a file.")
    folder = _folder("/".join(part for part in (folder, subfolder) if part))
    return replace(bucket, folder=f"{folder}/" if folder else "", file=file or None)


def _below(path: str, home: str) -> str | None:
    """What follows the path of an endpoint in the path of a URL; None if that lies beside it."""
    parts, base = path.strip("/").split("/"), [unquote(part) for part in home.split("/") if part]
    return "/".join(parts[len(base) :]) if [unquote(part) for part in parts[: len(base)]] == base else None


def _hub_page(path: str, revision: str | None, subfolder: str, repo_type: str | None) -> HubSource:
    """A URL copied from the Hub's site: [/datasets]/owner/name[/{tree,blob,resolve}/revision[/path]].

    A revision is one part of the path, but for pull requests and conversions, which are three
    (https://huggingface.co/docs/hub/repositories-pull-requests-discussions).
    """
    repo_type, path = _typed(path.strip("/"), repo_type)
    parts = [unquote(part) for part in path.split("/")]
    cut = next(
        (at for at, part in enumerate(parts[:-1]) if part in ("tree", "blob", "resolve") and at in (1, 2)), len(parts)
    )
    repo_id = check_repo_id("/".join(parts[:cut]))
    long = re.fullmatch(r"refs/(pr/\d+|convert/[\w\-.]+)", "/".join(parts[cut + 1 : cut + 4]), re.ASCII)
    rest = parts[cut + (4 if long else 2) :]
    named = long[0] if long else parts[cut + 1] if cut + 1 < len(parts) else None
    if named and revision and named != revision:
        raise SourceError(f"The URL says revision {named!r} and revision= says {revision!r}.")
    file = None
    if rest and parts[cut] != "tree":
        file = rest.pop()
        if repo_type == "model":
            _check_file(file)
        path_inside(file)
    inner = _folder("/".join([*rest, *([subfolder] if subfolder else [])]))
    return HubSource(repo_id, _revision(named or revision or "main"), inner, file, repo_type)


def _is_readable(file: str) -> bool:
    return file.endswith(_SHARD) or is_index_name(file)


def _check_file(file: str) -> None:
    if not _is_readable(file):
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


def names_in(source: Source, variant: str | None) -> list[str]:
    """The paths in `source` to try, in order: one only, where the user named a file. Raises SourceError."""
    if source.file:
        _check_file(source.file)
    names = [source.file] if source.file else candidates(variant)
    folder = f"{source.subfolder}/" if isinstance(source, HubSource) and source.subfolder else ""
    return [folder + name for name in names]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, with everything from the environment already read.

    `wrong` are the cached files that were found to be wrong on the way.
    """

    source: Source
    settings: Settings
    cache_root: Path
    policy: Policy
    variant: str | None = None
    select: Selector = None
    checksums: Mapping[str, Checksum] | None = None
    dequantize: bool = False  # what scales a selected tensor is wanted too
    chosen: Chosen | None = None  # None: what a load needs, and no more
    believed: bool = True  # a listing, about hashes and sizes
    late: bool = False  # headers may come with the first bytes of the shards, where hashes are known before
    nameless: bool = False  # so may that of a file without an index, which alone tells the names of its tensors
    wrong: WrongFiles = field(default_factory=WrongFiles, compare=False)


def is_repo_id(text: str) -> bool:
    """Whether it is `name` or `owner/name` by the Hub's rules."""
    parts = text.split("/")
    good = len(parts) <= 2 and all(re.fullmatch(r"[\w\-.]{1,96}", part, re.ASCII) for part in parts)
    return good and not ("--" in text or ".." in text or text.endswith(".git") or any(p[0] in "-." for p in parts))


def check_repo_id(repo_id: str) -> str:
    """`name` or `owner/name` by the Hub's rules, or SourceError."""
    if not is_repo_id(repo_id):
        raise SourceError(
            f"{repo_id!r} is neither an existing path nor a repository id.",
            hint='A repository is "owner/name", a revision is added as "owner/name@revision".',
        )
    return repo_id
