"""What machine a figure was measured on. What the machine does not tell is "unavailable", never left out."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNAVAILABLE = "unavailable"

#: Distributions whose versions change figures.
LIBRARIES = ("slimdet", "ai-edge-litert", "numpy", "opencv-python-headless", "pillow")


def environment(root: Path = Path("/")) -> dict[str, Any]:
    """The machine and the libraries, as plain JSON. root: where /proc and /sys are, for tests.

    cpu, cores (logical ones), usable_cores (that this process may use), memory_mb, governor and frequency_mhz (cpu0's),
    temperature_c (the hottest zone), load_average (1, 5, 15 minutes), system, kernel, architecture, python, libraries.
    """
    return {
        "cpu": _cpu_name(root),
        "cores": os.cpu_count() or UNAVAILABLE,
        "usable_cores": len(usable_cores()) or UNAVAILABLE,
        "memory_mb": _memory_mb(root),
        "governor": line_of(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or UNAVAILABLE,
        "frequency_mhz": number_in(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1000),
        "temperature_c": temperature(root),
        "load_average": load_average() or UNAVAILABLE,
        "system": platform.system() or UNAVAILABLE,
        "kernel": platform.release() or UNAVAILABLE,
        "architecture": platform.machine() or UNAVAILABLE,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def load_average() -> list[float] | None:
    """Mean number of runnable tasks over the last 1, 5 and 15 minutes, or None where the system does not tell."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):  # Windows has no such call
        return None


def _cpu_name(root: Path) -> str:
    """From /proc/cpuinfo (x86 has "model name", Raspberry Pi "Model"), the device tree, or the platform."""
    found = _fields(root / "proc/cpuinfo")
    tree = line_of(root / "proc/device-tree/model").strip("\0")
    return found.get("model name") or found.get("Model") or tree or platform.processor() or UNAVAILABLE


def _memory_mb(root: Path) -> int | str:
    kilobytes = _fields(root / "proc/meminfo").get("MemTotal", "").removesuffix(" kB")
    return int(kilobytes) // 1024 if kilobytes.isdigit() else UNAVAILABLE


def usable_cores() -> list[int]:
    """The numbers of the cores that this process may use, as far as the system tells."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 0))


def temperature(root: Path) -> float | str:
    """Degrees Celsius of the hottest thermal zone."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    degrees = [value for value in (number_in(zone, 1000) for zone in zones) if not isinstance(value, str)]
    return max(degrees, default=UNAVAILABLE)


def number_in(path: Path, divisor: int) -> float | str:
    """The whole number on the file's first line over the divisor, or "unavailable"."""
    text = line_of(path)
    return int(text) / divisor if text.removeprefix("-").isdigit() else UNAVAILABLE


def _fields(path: Path) -> dict[str, str]:
    """The `key : value` lines of a file, the first of each key; empty where it cannot be read."""
    fields: dict[str, str] = {}
    for line in _text(path).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def line_of(path: Path) -> str:
    """The file's first line, "" where it cannot be read."""
    return (_text(path).splitlines() or [""])[0].strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return UNAVAILABLE
