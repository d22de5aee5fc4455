"""Latency of a toy in its own process; no test asserts how long anything takes."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_detector import write_toy

from benchmarks import child, latency, latency_child, machine_state
from benchmarks.environment import environment
from benchmarks.latency import measure_latency, time_statistics
from deploy.errors import BackendError, ContractError, InputError

QUICK = {"runs": 5, "min_secs": 0.0, "warmup_runs": 2, "warmup_min_secs": 0.0}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("model") / "toy.tflite")


@pytest.fixture(scope="module")
def measured(toy):
    return measure_latency(toy, threads=2, backend="cpu", **QUICK)


def test_all_fields(measured):
    statistics = {"p5_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms", "mean_ms", "std_ms"}
    once = {
        "threads",
        "backend",
        "runs",
        "load_ms",
        "allocate_ms",
        "first_ms",
        "warmup_runs",
        "warmup_s",
        "cpu_ms",
        "peak_memory_mb",
        "delegated_nodes",
        "nodes",
        "parts",
        "environment",
        "warnings",
    }
    assert statistics | once <= set(measured)
    assert set(measured["parts"]) == {"preprocess", "invoke", "postprocess", "total"}
    assert all(set(times) == statistics for times in measured["parts"].values())
    assert (measured["runs"], measured["warmup_runs"], measured["stopped_by"]) == (5, 2, "runs")
    assert (measured["threads"], measured["backend"], measured["nodes"]) == (2, "cpu", 5)
    json.dumps(measured, allow_nan=False)


def test_the_first_figures_are_those_of_invoke_alone(measured):
    assert {key: measured[key] for key in measured["parts"]["invoke"]} == measured["parts"]["invoke"]
    parts, total = measured["parts"], measured["parts"]["total"]
    assert total["mean_ms"] == pytest.approx(
        sum(parts[name]["mean_ms"] for name in ("preprocess", "invoke", "postprocess"))
    )
    assert (
        total["min_ms"] <= total["p50_ms"] <= total["p90_ms"] <= total["p95_ms"] <= total["p99_ms"] <= total["max_ms"]
    )


def test_backends_delegate_differently(toy):
    assert measure_latency(toy, **QUICK)["delegated_nodes"] == 5
    assert measure_latency(toy, backend="cpu-reference", **QUICK)["delegated_nodes"] == 0


def test_runs_go_on_until_the_least_seconds_have_passed(toy):
    result = measure_latency(toy, **{**QUICK, "runs": 1, "min_secs": 0.2})
    assert result["runs"] > 1 and result["measured_s"] >= 0.2


def test_max_secs_ends_it_and_says_so(toy):
    result = measure_latency(toy, **{**QUICK, "runs": 10**9 - 1, "max_secs": 0.1})
    assert result["stopped_by"] == "max_secs"
    assert any("max_secs ended it" in text for text in result["warnings"])


def test_a_picture_of_ones_own_and_one_that_is_none(toy, tmp_path):
    import cv2

    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.zeros((30, 70, 3), np.uint8))
    assert measure_latency(toy, picture=path, **QUICK)["picture_size"] == [30, 70]
    path.write_bytes(b"")
    with pytest.raises(InputError, match="picture.png"):
        measure_latency(toy, picture=path, **QUICK)


def test_errors_of_the_child_come_out_as_they_are(toy, tmp_path):
    half = tmp_path / "half.tflite"
    half.write_bytes(toy.read_bytes()[: toy.stat().st_size // 2])
    with pytest.raises((InputError, ContractError)):
        measure_latency(half, **QUICK)
    with pytest.raises(InputError, match="none.tflite"):
        measure_latency(tmp_path / "none.tflite", **QUICK)
    with pytest.raises(BackendError, match="abacus"):
        measure_latency(toy, backend="abacus", **QUICK)
    with pytest.raises(InputError, match="threads"):
        measure_latency(toy, threads=0, **QUICK)


@pytest.mark.parametrize("name", ["min_secs", "max_secs", "warmup_min_secs", "runs", "warmup_runs"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_settings_out_of_range(toy, name, value):
    with pytest.raises(InputError, match=f"{name} is a number from"):
        measure_latency(toy, **{**QUICK, name: value})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("import sys; print('kernel missing', file=sys.stderr); sys.exit(3)", r"exit code 3 .*\(kernel missing\)"),
        ("import os; os.write(1, b'{\"measured\": {'); os.abort()", "was ended by SIGABRT"),
        ("print('{\"progress\": [1, 2]}')", "exit code 0 and no result"),
    ],
)
def test_the_death_of_the_child_is_one_sentence(toy, monkeypatch, code, words):
    real = subprocess.Popen
    monkeypatch.setattr(
        child.subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", code], **options)
    )
    with pytest.raises(BackendError, match=words):
        measure_latency(toy, **QUICK)


def test_an_interrupt_ends_the_child(toy, monkeypatch):
    children = []
    real = subprocess.Popen

    def remembered(*arguments, **options):
        children.append(real(*arguments, **options))
        return children[-1]

    def interrupt(done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(child.subprocess, "Popen", remembered)
    with pytest.raises(KeyboardInterrupt):
        measure_latency(toy, **{**QUICK, "min_secs": 100.0}, progress=interrupt)
    assert children[0].returncode == -signal.SIGKILL


def test_a_module_of_the_current_folder_never_gets_into_the_child(toy, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(tmp_path)
    assert measure_latency(toy, **QUICK)["runs"] == 5


def test_progress_tells_runs_and_their_expected_number(toy):
    told = []
    measure_latency(toy, **{**QUICK, "min_secs": 1.2}, progress=lambda done, total: told.append((done, total)))
    assert told and all(0 < done < total for done, total in told)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50))
def test_statistics_leave_nothing_out(times):
    found = time_statistics(times)
    assert found["min_ms"] == min(times) / 1e6 and found["max_ms"] == max(times) / 1e6
    # Sums of up to 50 numbers: some 50 roundings of 2**-53 each.
    assert found["mean_ms"] == pytest.approx(sum(times) / len(times) / 1e6, rel=1e-13, abs=1e-13)
    assert found["p50_ms"] == pytest.approx(float(np.median(times)) / 1e6, rel=1e-13)


def test_statistics_of_known_numbers():
    found = time_statistics([1_000_000 * value for value in range(1, 101)])
    # Linear between ranks: p of 1..100 is 1 + 99 * p / 100. The sample's variance of 1..n is n * (n + 1) / 12.
    assert found["p50_ms"] == pytest.approx(1 + 99 * 0.50)
    assert found["p99_ms"] == pytest.approx(1 + 99 * 0.99)
    assert found["std_ms"] == pytest.approx(math.sqrt(100 * 101 / 12))
    assert time_statistics([5])["std_ms"] == 0.0


def test_peak_memory_is_the_childs_own_not_its_parents():
    ballast = np.ones(60 << 20, np.uint8)  # 60 MB in this process
    code = "from benchmarks.latency_child import peak_memory_mb; print(peak_memory_mb())"
    root = str(Path(latency.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    own = latency_child.peak_memory_mb()
    assert ballast.nbytes / 2**20 < own
    if sys.platform == "linux":
        assert 5 < float(done.stdout) < own - 30


def test_the_drawn_scene_is_always_the_same():
    first, second = latency_child.scene(), latency_child.scene()
    assert first.shape == (480, 640, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    assert first.std() > 20  # no plain surface


def test_a_busy_machine_and_too_many_threads_are_said(toy, monkeypatch):
    monkeypatch.setattr(machine_state, "load_average", lambda: [99.0, 1.0, 1.0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    warnings = measure_latency(toy, **QUICK, threads=min(cores + 1, 256))["warnings"]
    assert any("busy before (load 99.00" in text for text in warnings)
    assert any(f"{cores + 1} threads on {cores} cores" in text for text in warnings)


def test_what_the_machine_does_not_tell_is_unavailable(tmp_path):
    found = environment(tmp_path)
    assert {found[key] for key in ("governor", "frequency_mhz", "temperature_c", "memory_mb")} == {"unavailable"}
    assert found["cpu"]


def test_what_a_raspberry_pi_tells(tmp_path):
    for name, text in {
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\n\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
        "proc/meminfo": "MemTotal:        3884000 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
        "sys/class/thermal/thermal_zone0/temp": "48200\n",
        "sys/class/thermal/thermal_zone1/temp": "broken\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = environment(tmp_path)
    expected = {
        "cpu": "Raspberry Pi 4 Model B Rev 1.4",
        "memory_mb": 3884000 // 1024,
        "governor": "ondemand",
        "frequency_mhz": 1500.0,
        "temperature_c": 48.2,
    }
    assert {key: found[key] for key in expected} == expected
