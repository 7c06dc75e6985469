"""The words of the command line where the library has its own: flags and variables instead of keywords."""

from __future__ import annotations

import re

__all__ = ["FLAGS", "in_flags"]

PHRASES = {  # what the library says, and what the command line says instead
    " or pass token=": "",  # HF_TOKEN stands before it, and a token is never an argument
    " or token=": "",
    "Pass client= with the credentials that it wants": "Give a URL that carries its access signature",
    'numpy.float32, torch.float16 or "bfloat16"': "float32, float16 or bfloat16",
    "verify() sends": "verify sends",
    "download(source, offline=False)": "asyncfetch download --no-offline SOURCE",
    "offline=False": "--no-offline",
    'storage="memory"': "--memory",
    "Call it again to go on": "Run the same command again to go on",
    "dequantize=True": "--dequantize",
    "overwrite=True": "--overwrite",
    "Policy.attempts": "ASYNCFETCH_ATTEMPTS",
    "Policy.connections": "ASYNCFETCH_CONNECTIONS",
    "Policy.max_index_bytes": "ASYNCFETCH_MAX_INDEX_BYTES",
    "Policy.patience": "ASYNCFETCH_PATIENCE",
    "Policy.connect_timeout": "HF_HUB_ETAG_TIMEOUT",
    "Policy.read_timeout": "HF_HUB_DOWNLOAD_TIMEOUT",
}
FLAGS = {  # by the keyword of the library
    "cache_dir": "--cache-dir",
    "checksums": "--checksum",
    "dtype": "--dtype",
    "endpoint": "--endpoint",
    "exclude": "--exclude",
    "local_dir": "--local-dir",
    "max_shard_size": "--max-shard-size",
    "offline": "--offline",
    "rename": "--rename",
    "repo_type": "--repo-type",
    "revision": "--revision",
    "select": "--select",
    "subfolder": "--subfolder",
    "variant": "--variant",
}
_KEYWORD = re.compile(rf"""(?<!\S)({"|".join(FLAGS)})=(?=(['"\w]?))""")


def in_flags(text: str) -> str:
    """The message or hint of an error with flags and variables where the library names its keywords (`subfolder=`)."""
    for theirs, ours in PHRASES.items():
        text = text.replace(theirs, ours)
    return _KEYWORD.sub(lambda match: FLAGS[match[1]] + (" " if match[2] else ""), text)
