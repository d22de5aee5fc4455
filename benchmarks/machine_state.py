"""The state that a machine is in before and after a measurement, and what it says of the figures.

Clocks fall when a chip gets hot, or when the mains adapter is too weak, and others' work takes cores away. None of this
shows in the times themselves. What the machine does not tell is "unavailable".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.environment import UNAVAILABLE, line_of, load_average, number_in, temperature, usable_cores

#: From this share of the cores on, others' work is said to disturb the figures.
BUSY_SHARE = 0.25
#: A clock that falls by more than this share is said to.
CLOCK_SHARE = 0.1
#: Hundredths of a second in /proc/stat; the kernel's USER_HZ.
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
#: What the bits of a Raspberry Pi's get_throttled mean, now (bit) and since it started (bit + 16); from its
#: documentation.
_PI_BITS = {0: "undervoltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def machine_state(root: Path = Path("/")) -> dict[str, Any]:
    """Now, as plain JSON. root: where /proc and /sys are, for tests.

    frequency_mhz (mean of the cores that this process may use), governors (of these), temperature_c (the hottest zone),
    throttle_count (of all cores and packages since the system started), pi_throttled (a Raspberry Pi's bits, or
    "unavailable"), load_average, busy_s and steal_s (processor seconds of all programs since the system started, and
    those that the host of a virtual machine took away), clock_s (of the monotonic clock).
    """
    cores = usable_cores()
    places = [root / f"sys/devices/system/cpu/cpu{core}/cpufreq" for core in cores]
    clocks = [number_in(place / "scaling_cur_freq", 1000) for place in places]
    known = [clock for clock in clocks if not isinstance(clock, str)]
    governors = sorted({line_of(place / "scaling_governor") for place in places} - {""})
    busy, steal = _processor_seconds(root)
    return {
        "frequency_mhz": round(sum(known) / len(known), 1) if known else UNAVAILABLE,
        "governors": governors or UNAVAILABLE,
        "temperature_c": temperature(root),
        "throttle_count": _throttle_count(root),
        "pi_throttled": _pi_throttled(root),
        "load_average": load_average() or UNAVAILABLE,
        "busy_s": busy,
        "steal_s": steal,
        "clock_s": round(time.monotonic(), 3),
    }


def change(before: dict[str, Any], after: dict[str, Any], own_s: float) -> dict[str, Any]:
    """What happened in between, as plain JSON. own_s: processor seconds of the measuring processes themselves.

    frequency_change: 0 for none, -0.1 for a clock that is 10 % lower. throttled: by how much the counts rose.
    others_cores: how many cores others' programs used in the mean, and the host that took them away. Each may be
    "unavailable".
    """
    told = {key: UNAVAILABLE for key in ("frequency_change", "throttled", "others_cores")} | {"own_s": round(own_s, 3)}
    if _numbers(before["frequency_mhz"], after["frequency_mhz"]) and before["frequency_mhz"]:
        told["frequency_change"] = round(after["frequency_mhz"] / before["frequency_mhz"] - 1, 4)
    if _numbers(before["throttle_count"], after["throttle_count"]):
        told["throttled"] = after["throttle_count"] - before["throttle_count"]
    seconds = after["clock_s"] - before["clock_s"]
    if _numbers(before["busy_s"], after["busy_s"], before["steal_s"], after["steal_s"]) and seconds > 0:
        theirs = sum(after[key] - before[key] for key in ("busy_s", "steal_s")) - own_s
        told["others_cores"] = round(max(theirs, 0.0) / seconds, 2)
    return told


def state_warnings(before: dict[str, Any], after: dict[str, Any], between: dict[str, Any]) -> list[str]:
    """Why the figures may be higher than they would be on a quiet, cool machine."""
    cores = len(usable_cores())
    found = []
    load = before["load_average"]
    if not isinstance(load, str) and load[0] > BUSY_SHARE * cores:
        found.append(f"the machine was busy before (load {load[0]:.2f} on {cores} cores): figures may be too high")
    if _numbers(between["others_cores"]) and between["others_cores"] > BUSY_SHARE * cores:
        found.append(f"others used {between['others_cores']:.2f} of {cores} cores meanwhile: figures may be too high")
    if _numbers(between["frequency_change"]) and between["frequency_change"] < -CLOCK_SHARE:
        fall = f"{before['frequency_mhz']:.0f} to {after['frequency_mhz']:.0f} MHz"
        found.append(f"the clock fell from {fall}: cool the machine, or set its governor to performance")
    if _numbers(between["throttled"]) and between["throttled"] > 0:
        found.append(f"the processor was throttled {between['throttled']} times meanwhile: cool it and measure anew")
    if _numbers(after["pi_throttled"]) and after["pi_throttled"] & 0xF:
        now = ", ".join(words for bit, words in _PI_BITS.items() if after["pi_throttled"] >> bit & 1)
        found.append(f"the Raspberry Pi says: {now}; cool it, or take a stronger supply")
    slow = [] if isinstance(before["governors"], str) else [name for name in before["governors"] if name == "powersave"]
    if slow:
        found.append("the governor is powersave: the clock may be far below what the processor can")
    return found


def _numbers(*values: Any) -> bool:
    return not any(isinstance(value, str) for value in values)


def _throttle_count(root: Path) -> int | str:
    places = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    return _sum(number_in(place, 1) for place in places)


def _sum(counts: Iterable[float | str]) -> int | str:
    known = [int(count) for count in counts if not isinstance(count, str)]
    return sum(known) if known else UNAVAILABLE


def _pi_throttled(root: Path) -> int | str:
    """The bits of the firmware: from the kernel, else from vcgencmd where there is one."""
    for place in sorted((root / "sys/devices/platform/soc").glob("*/get_throttled")):
        return _hexadecimal(line_of(place))
    program = shutil.which("vcgencmd") if root == Path("/") else None
    if program is None:
        return UNAVAILABLE
    try:
        told = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=5).stdout
    except (OSError, subprocess.TimeoutExpired):
        return UNAVAILABLE
    return _hexadecimal(told.strip().removeprefix("throttled="))


def _hexadecimal(text: str) -> int | str:
    try:
        return int(text, 16)
    except ValueError:
        return UNAVAILABLE


def _processor_seconds(root: Path) -> tuple[float | str, float | str]:
    """Busy and stolen seconds of all cores, from the first line of /proc/stat: user, nice, system, idle, iowait, irq,
    softirq, steal, of which guests' times are a part."""
    words = line_of(root / "proc/stat").split()
    if len(words) < 9 or words[0] != "cpu" or not all(word.isdigit() for word in words[1:9]):
        return UNAVAILABLE, UNAVAILABLE
    user, nice, system, _, _, irq, softirq, steal = (int(word) / _TICKS for word in words[1:9])
    return round(user + nice + system + irq + softirq, 2), round(steal, 2)
