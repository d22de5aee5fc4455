"""Which cores a measurement may use. A thread that moves from core to core finds its caches cold, and on processors
with large and small cores its time depends on where it lands."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.errors import BackendError, InputError

#: For as many cores as there are threads, the fastest first.
AUTO = "auto"


def chosen_cores(text: str, threads: int, root: Path = Path("/")) -> tuple[int, ...]:
    """The cores that `0,1` or `auto` names, ascending. root: where /sys is, for tests.

    auto: as many as threads, of those that this process may use: the ones with the highest clock that the machine tells
    of, and of equal ones the last, since the first have the most interrupts to serve.

    Raises InputError for what names no core that this process may use, BackendError where the system cannot pin.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise BackendError("pinning to cores needs Linux's sched_setaffinity, which this system lacks; leave --pin out")
    usable = sorted(os.sched_getaffinity(0))
    if text == AUTO:
        return tuple(sorted(sorted(usable, key=lambda core: (-_most_mhz(core, root), -core))[:threads]))
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
        raise InputError(
            f"cores are numbers with commas between, as in 0,1, or {AUTO}, not {text[:60]!r}; write --pin {AUTO} where "
            "a word follows"
        )
    cores = sorted({int(word) for word in words})
    if not set(cores) <= set(usable):
        others = _list(sorted(set(cores) - set(usable)))
        raise InputError(f"a core is one of {_list(usable)}, which this process may use, not {others}; name these")
    return tuple(cores)


def pin(cores: tuple[int, ...]) -> None:
    """Lets this process run on the cores alone. Before libraries start their threads, which inherit it."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        raise BackendError(f"cannot pin to cores {_list(cores)}: {error.strerror}; choose others") from error


def _most_mhz(core: int, root: Path) -> int:
    try:
        text = (root / f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq").read_text(encoding="ascii")
        return int(text) // 1000
    except (OSError, ValueError):
        return 0  # not told: all alike


def _list(cores: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))
