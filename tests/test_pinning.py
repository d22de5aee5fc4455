"""Which cores are chosen, and that a process keeps to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pinning
from benchmarks.pinning import chosen_cores
from deploy.errors import BackendError, InputError

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no sched_setaffinity")


@linux
def test_auto_takes_the_fastest_cores_and_of_equal_ones_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(pinning.os, "sched_getaffinity", lambda process: {0, 1, 2, 3, 5})
    assert chosen_cores("auto", 2, tmp_path) == (3, 5)
    for core, kilohertz in ((0, 2_400_000), (1, 2_400_000), (2, 1_800_000), (3, 1_800_000), (5, 1_800_000)):
        place = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq"
        place.parent.mkdir(parents=True)
        place.write_text(f"{kilohertz}\n")
    assert chosen_cores("auto", 1, tmp_path) == (1,)
    assert chosen_cores("auto", 3, tmp_path) == (0, 1, 5)
    assert chosen_cores("auto", 9, tmp_path) == (0, 1, 2, 3, 5)
    assert chosen_cores("5, 1,1", 1, tmp_path) == (1, 5)


@linux
@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1.5", "model.tflite", "1234567", "²"])
def test_what_names_no_core_is_refused(text):
    with pytest.raises(InputError, match="cores are numbers"):
        chosen_cores(text, 1)


@linux
def test_cores_that_this_process_may_not_use_are_refused():
    with pytest.raises(InputError, match="which this process may use, not 99999"):
        chosen_cores("99999", 1)


def test_a_system_without_pinning_says_so(monkeypatch):
    monkeypatch.delattr(pinning.os, "sched_setaffinity", raising=False)
    with pytest.raises(BackendError, match="leave --pin out"):
        chosen_cores("auto", 1)


@linux
def test_a_process_keeps_to_its_cores():
    core = max(os.sched_getaffinity(0))
    code = f"import os; from benchmarks.pinning import pin; pin(({core},)); print(os.sched_getaffinity(0))"
    root = str(Path(pinning.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str({core})
