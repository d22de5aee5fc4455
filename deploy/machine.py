"""What the machine tells of itself while a run goes on."""

from __future__ import annotations

import os
from pathlib import Path


def temperature(root: Path = Path("/")) -> float | None:
    """Degrees Celsius of the hottest thermal zone; None where there is none. root: where /sys is, for tests."""
    degrees = []
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        try:
            degrees.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):  # a zone that is switched off gives an error or no number
            continue
    return max(degrees, default=None)


def resident_memory(root: Path = Path("/")) -> int:
    """Bytes of this process that lie in memory; 0 where the system does not tell."""
    try:
        pages = int((root / "proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
