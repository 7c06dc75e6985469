"""How much memory this process may still take, by the machine and by the limits of its container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory"]


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be had without swapping, what the page cache would give up counted in. None where nobody tells.

    The least of what the machine has (MemAvailable, proc_meminfo(5)) and what each control group above this process
    allows (https://docs.kernel.org/admin-guide/cgroup-v2.html#memory). `root` is where /proc and /sys are.
    """
    found = [room for room in (_of_machine(root), *_of_groups(root)) if room is not None]
    return max(min(found), 0) if found else None


def _of_machine(root: Path) -> int | None:
    kib = _table(root / "proc/meminfo").get("MemAvailable")
    return None if kib is None else kib << 10


def _of_groups(root: Path) -> Iterator[int | None]:
    """The room in each group from that of this process up to the root, of version 2 and of version 1."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                base, names = (
                    root / "sys/fs/cgroup/memory",
                    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
                )
            else:
                continue
            # In a container the path may be that of the host, which is not seen here: then the base is its group.
            folder = base / path.strip("/")
            for group in [folder, *folder.parents]:
                yield _of_group(group, *names)
                if group == base:
                    break


def _of_group(group: Path, limit: str, usage: str, prefix: str) -> int | None:
    """None where it has no limit, or is not there."""
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
    except (OSError, ValueError):  # `max` is no number
        return None
    stat = _table(group / "memory.stat")
    return most - used + stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    with suppress(OSError):
        for line in path.read_text(encoding="ascii", errors="replace").splitlines():
            name, *values = line.replace(":", " ").split()
            if values and values[0].isdecimal():
                found[name] = int(values[0])
    return found
