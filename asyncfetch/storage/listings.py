"""The listing of a commit: every file with its size and its hash. Blocking calls: run them in a thread.

Two files may hold it, in the same form: `trees/<commit>.json` is huggingface_hub's, which takes a snapshot that
lacks one of its files for broken, and so is only read; `listings/<commit>.json` is ours. A full listing also
tells what a commit does not have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checksums import Checksum, checksum_of_etag

__all__ = ["Records", "TreeEntry", "entries_of", "listing_text", "read_listing"]

_VERSION = 1

# Of each file: `size` and `blob_id`, and where it is in large-file storage also `lfs_size` and `lfs_sha256`.
Records = Mapping[str, Mapping[str, int | str]]


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One file of a commit. `size` is bytes."""

    size: int
    checksum: Checksum | None


def entries_of(records: Mapping[str, Any]) -> dict[str, TreeEntry]:
    """What records say of each file. Raises KeyError, TypeError, ValueError, AttributeError where they are none."""
    return {
        str(name): TreeEntry(
            int(record.get("lfs_size") or record["size"]),
            checksum_of_etag(str(record.get("lfs_sha256") or record["blob_id"])),
        )
        for name, record in records.items()
    }


def read_listing(folder: Path, commit: str) -> dict[str, TreeEntry] | None:
    """The full listing of a commit in a repository's folder of the cache; None if there is none that can be read."""
    for kind in ("trees", "listings"):
        try:
            raw = json.loads((folder / kind / f"{commit}.json").read_bytes())
            if raw["format_version"] == _VERSION:
                return entries_of(raw["files"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return None


def listing_text(records: Records) -> bytes:
    """The file that holds a listing."""
    return json.dumps({"format_version": _VERSION, "files": records}, indent=1, sort_keys=True).encode()
