"""What a process and all that it started hold: memory, file descriptors, threads. From /proc, on Linux."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from deploy.errors import BackendError


@dataclasses.dataclass(frozen=True)
class Usage:
    """Sums over the processes. Memory that they share counts in each."""

    memory_mb: float
    descriptors: int
    threads: int
    processes: int


def process_usage(pid: int, root: Path = Path("/")) -> Usage | None:
    """Of the process and its descendants, None where it has ended. root: where /proc is, for tests.

    Raises BackendError where there is no /proc.
    """
    if not (root / "proc/self").exists():
        raise BackendError("memory and file descriptors are read from /proc, which only Linux has; measure there")
    told = [_usage(root / "proc" / str(one)) for one in _family(pid, root)]
    found = [one for one in told if one is not None]
    if not found or told[0] is None:
        return None
    return Usage(
        sum(one.memory_mb for one in found),
        sum(one.descriptors for one in found),
        sum(one.threads for one in found),
        len(found),
    )


def _family(pid: int, root: Path) -> list[int]:
    """The process, then its descendants."""
    children: dict[int, list[int]] = {}
    for entry in (root / "proc").iterdir():
        if entry.name.isdigit() and (parent := _status(entry).get("PPid")):
            children.setdefault(int(parent), []).append(int(entry.name))
    family = [pid]
    for one in family:
        family += children.get(one, [])
    return family


def _usage(place: Path) -> Usage | None:
    status = _status(place)
    if "VmRSS" not in status:  # ended, or ended but not yet waited for
        return None
    try:
        descriptors = len(os.listdir(place / "fd"))
    except OSError:  # ended meanwhile
        return None
    return Usage(int(status["VmRSS"].split()[0]) / 1024, descriptors, int(status["Threads"]), 1)


def _status(place: Path) -> dict[str, str]:
    """The lines of a process's status; none where it has ended."""
    try:
        lines = (place / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
