"""A folder, an index or a file in a bucket of an object store, as its address names it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from ..errors import SourceError
from ..storage.cache import path_inside

__all__ = ["BucketSource", "bucket_of", "is_bucket"]

# What an address may begin with, and whose store is meant: Amazon's and those that speak as it does, Google's, Azure's.
_SCHEMES = {
    "s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs",
    "az": "az", "azure": "az", "abfs": "az", "abfss": "az", "wasb": "az", "wasbs": "az",
}  # fmt: skip
_BUCKET = re.compile(r"[A-Za-z0-9$][\w.\-]{0,221}", re.ASCII)
_ACCOUNT = re.compile(r"(?P<account>[a-z0-9\-]{3,64})(\.(dfs|blob)\.[a-z0-9.\-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class BucketSource:
    """A folder of a bucket ("" or with a slash at its end), or one file in it.

    `scheme` is s3, gs or az. `account` is Azure's, where the address names one. `endpoint` is where the store is
    asked, as the environment says: buckets of the same name at two endpoints are two.
    """

    scheme: str
    bucket: str
    folder: str = ""
    file: str | None = None
    account: str = ""
    endpoint: str = ""

    def key(self, name: str) -> str:
        """The key in the bucket of a file of the folder. Raises SourceError for a name that would leave it."""
        path_inside(name)
        return self.folder + name

    @property
    def address(self) -> str:
        """Of the folder, percent-encoded: of two folders never the same."""
        return f"{self.scheme}://{self.bucket}/{quote(self.folder)}"

    def at(self, name: str) -> str:
        """How a file of the folder is called in messages."""
        home = f"abfs://{self.bucket}@{self.account}.dfs.core.windows.net" if self.account else ""
        return f"{home or f'{self.scheme}://{self.bucket}'}/{self.folder}{name}"

    def __str__(self) -> str:
        return self.at(self.file or "")


def is_bucket(text: str) -> bool:
    """Whether `text` is written as the address of a bucket is."""
    return text.partition("://")[0].lower() in _SCHEMES


def bucket_of(text: str) -> tuple[BucketSource, str]:
    """The bucket that an address names, without a folder, and the path in it.

    The path is a key as it is, not percent-encoded, as the stores' own tools take it. Raises SourceError.
    """
    scheme, _, rest = text.partition("://")
    host, _, path = rest.partition("/")
    named = f"{scheme.lower()}://…" if "@" in host and _SCHEMES[scheme.lower()] != "az" else text.partition("?")[0]
    if "?" in rest:  # which may be a signature
        hint = "For a signed address give its https:// form; versions of an object cannot be named."
        raise SourceError(f"{named!r} is followed by a query, which the address of a bucket has none of.", hint=hint)
    bucket, at, server = host.partition("@")
    account = ""
    if at:
        match = _ACCOUNT.fullmatch(server) if _SCHEMES[scheme.lower()] == "az" else None
        if match is None:
            raise SourceError(f"{named!r} has an @ in it.", hint="Credentials are taken from the environment.")
        account = match["account"]
    if not _BUCKET.fullmatch(bucket):
        raise SourceError(f"{named!r} names no bucket.", hint="Write it as s3://bucket/folder, gs:// or az://.")
    if any(part in ("", ".", "..") for part in path.rstrip("/").split("/") if path.strip("/")):
        raise SourceError(f"{named!r} has a part that is empty or made of dots.")
    return BucketSource(_SCHEMES[scheme.lower()], bucket, account=account), path
