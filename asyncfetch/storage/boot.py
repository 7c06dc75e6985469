"""Which start of the machine this is: what was written before another one may never have reached the disk."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path

__all__ = ["boot_id"]


@cache
def boot_id() -> str:
    """What tells this start of the machine from all others (random(4)); where there is none, this process."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return secrets.token_hex(16)
