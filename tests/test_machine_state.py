"""What a machine tells of itself, from files as machines have them."""

import os
from pathlib import Path

import pytest

from benchmarks import machine_state
from benchmarks.machine_state import change, state_warnings
from benchmarks.machine_state import machine_state as state

UNTOLD = ("frequency_mhz", "governors", "temperature_c", "throttle_count", "pi_throttled", "busy_s", "steal_s")


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        place = root / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


@pytest.fixture
def pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Raspberry Pi of two cores that has run for a while."""
    monkeypatch.setattr(machine_state, "usable_cores", lambda: [0, 1])
    monkeypatch.setattr(machine_state, "load_average", lambda: [0.1, 0.1, 0.1])
    cpu = "sys/devices/system/cpu"
    texts = {
        f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "1700000\n",
        f"{cpu}/cpu0/cpufreq/scaling_governor": "ondemand\n",
        f"{cpu}/cpu1/cpufreq/scaling_governor": "ondemand\n",
        f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
        f"{cpu}/cpu0/thermal_throttle/package_throttle_count": "4\n",
        f"{cpu}/cpu1/thermal_throttle/core_throttle_count": "5\n",
        "sys/class/thermal/thermal_zone0/temp": "61500\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        "proc/stat": "cpu  100 200 300 9000 50 10 20 30 0 0\ncpu0 1 2\n",
    }
    return machine(tmp_path, **texts)


def test_what_a_raspberry_pi_tells(pi):
    found = state(pi)
    assert (found["frequency_mhz"], found["governors"], found["temperature_c"]) == (1600.0, ["ondemand"], 61.5)
    assert (found["throttle_count"], found["pi_throttled"]) == (3 + 4 + 5, 0x50005)
    ticks = os.sysconf("SC_CLK_TCK")
    assert (found["busy_s"], found["steal_s"]) == (round((100 + 200 + 300 + 10 + 20) / ticks, 2), round(30 / ticks, 2))


def test_what_is_not_told_is_unavailable(tmp_path):
    found = state(tmp_path)
    assert {found[key] for key in UNTOLD} == {"unavailable"}
    between = change(found, found, 0.0)
    assert {between[key] for key in ("frequency_change", "throttled", "others_cores")} == {"unavailable"}


@pytest.mark.parametrize("text", ["", "cpu", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8 9"])
def test_broken_files_are_unavailable(tmp_path, text):
    machine(tmp_path, **{"proc/stat": text, "sys/devices/platform/soc/soc:firmware/get_throttled": "hot"})
    found = state(tmp_path)
    assert (found["busy_s"], found["pi_throttled"]) == ("unavailable", "unavailable")


def test_change_is_what_others_used_and_how_the_clock_fell(pi):
    before = state(pi)
    after = before | {"clock_s": before["clock_s"] + 10, "busy_s": before["busy_s"] + 14, "throttle_count": 15}
    after |= {"steal_s": before["steal_s"] + 1, "frequency_mhz": 1200.0}
    # 14 s busy and 1 s stolen of which 9 are our own: 6 s in 10.
    assert change(before, after, 9.0) == {
        "frequency_change": -0.25,
        "throttled": 3,
        "others_cores": 0.6,
        "own_s": 9.0,
    }
    found = state_warnings(before, after, change(before, after, 9.0))
    assert [text.split(":")[0] for text in found] == [
        "others used 0.60 of 2 cores meanwhile",
        "the clock fell from 1600 to 1200 MHz",
        "the processor was throttled 3 times meanwhile",
        "the Raspberry Pi says",
    ]
    assert "undervoltage, throttled;" in found[-1]


def test_a_quiet_cool_machine_gets_no_warning(pi):
    before = state(pi) | {"pi_throttled": 0}
    after = before | {"clock_s": before["clock_s"] + 10, "busy_s": before["busy_s"] + 9}
    assert state_warnings(before, after, change(before, after, 9.0)) == []
    busy = before | {"load_average": [0.6, 0.1, 0.1], "governors": ["powersave"]}
    found = state_warnings(busy, after, change(busy, after, 9.0))
    assert len(found) == 2 and "busy before (load 0.60 on 2 cores)" in found[0] and "powersave" in found[1]


def test_this_machine_tells_something_or_says_so():
    found = state()
    assert set(UNTOLD) <= set(found)
    assert all(value == "unavailable" or value is not None for value in found.values())
