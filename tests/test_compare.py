"""`bench compare`: its process, the gate and the command. No test asserts a time."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_tflite import yolo

from benchmarks import child, cli, compare_child
from benchmarks.compare import compare
from benchmarks.tables import _file_names
from deploy.command_line import exit_code
from deploy.errors import BackendError, GateError, InputError

QUICK = {"runs": 12, "min_secs": 0.0, "max_secs": 60.0, "warmup_secs": 0.0}


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = tmp_path / "whole.tflite", tmp_path / "int8.tflite"
    for path, dtype in zip(paths, ("float32", "int8")):
        path.write_bytes(yolo(dtype)[0])
    return str(paths[0]), str(paths[1])


COMMAND = ["--runs", "12", "--min-secs", "0", "--warmup-secs", "0"]


def run(*arguments: str) -> int:
    return exit_code(cli.main, "python -m benchmarks", ["bench", "compare", *arguments])


def answered(monkeypatch: pytest.MonkeyPatch, ratio: float, full: bool = True) -> list[dict[str, Any]]:
    """Processes that answer at once: of the second model, inference takes 1 ms, of the first so many times as long,
    alternately a little more and less. Gives the settings that they got."""
    got: list[dict[str, Any]] = []

    def answer(module: str, settings: dict[str, Any], remedy: str) -> dict[str, Any]:
        got.append(settings)
        first, second = settings["models"] if len(settings["models"]) > 1 else settings["models"] * 2
        factor = ratio * (1.05 if len(got) % 2 else 1 / 1.05)
        times = {first: [round(1e6 * factor)] * settings["runs"], second: [1_000_000] * settings["runs"]}
        return {"times_ns": times, "full": full, "measured_s": 0.01, "peak_memory_mb": 50.0, "processor_s": 0.01}

    monkeypatch.setattr("benchmarks.compare.run_child", answer)
    return got


def test_command_prints_a_table(files, capsys):
    assert run(*files, *COMMAND) == 0
    head, first, second, _, how, over, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "p50", "ms", "speed-up", "from", "to"]
    names = [Path(file).name for file in files]
    assert first.split()[0] == names[0] and first.split()[2:] == ["1.000"] * 3
    assert second.split()[0] == names[1] and len(second.split()) == 5
    assert how.startswith("12 rounds in 6 processes and ") and "ended by runs; cpu, 1 thread" in how
    assert over == names[0]


def test_command_writes_json(files, tmp_path, capsys):
    assert run(*files, *COMMAND, "--json", "-") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["rounds"], shown["stopped_by"]) == ("slimdet.compare/1", 12, "runs")
    assert shown["rounds_of_processes"] == [2] * 6
    assert [row["model"] for row in shown["models"]] == list(files)
    for row in shown["models"]:
        low, high = row["speedup_interval"]
        assert 0 < low <= row["speedup"] <= high
        assert row["size_mb"] == Path(row["model"]).stat().st_size / 1e6
        assert set(row["intervals"]) == {"p50_ms", "p90_ms", "p95_ms", "p99_ms"}
    assert shown["settings"]["threads"] == 1 and shown["gate"] == []
    assert {"cpu", "load_average_before"} <= shown["environment"].keys()
    assert {"before", "after", "change"} == shown["machine"].keys()
    target = tmp_path / "found.json"
    assert run(*files, *COMMAND, "--json", str(target)) == 0
    assert json.loads(target.read_text()).keys() == shown.keys()


def test_command_refuses_in_one_sentence(files, tmp_path, capsys):
    budget = tmp_path / "budget.toml"
    budget.write_text('["other*"]\np50_ms = 5\n')
    for arguments, words in (
        ([files[0]], "different files are compared, two at least, not"),
        ([files[0], files[1], files[0]], "different files are compared"),
        ([files[0], "lost.tflite"], "cannot read lost.tflite"),
        ([*files, "--json", files[1]], "--json"),
        ([*files, "--budget", str(budget), "--json", str(budget)], "would overwrite"),
        ([*files, "--budget", str(budget)], "of other* none matches whole.tflite"),
        ([*files, "--budget", "lost.toml"], "cannot read lost.toml"),
        ([*files, "--pin", "x"], "cores are numbers"),
        ([*files, "--backend", "abacus"], "a backend is one of"),
    ):
        assert run(*arguments) == 1
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
    assert Path(files[1]).read_bytes() == yolo("int8")[0]
    for option in (["--fail-below", "nan"], ["--fail-below", "0"], ["--min-secs", "nan"], ["--seed", "-1"]):
        assert run(*files, *option) == 2


def test_compare_keeps_the_order_of_files(files, monkeypatch):
    answered(monkeypatch, 2.0)
    backwards = [Path(name) for name in reversed(files)]
    assert [row["model"] for row in compare(backwards, **QUICK)["models"]] == [str(path) for path in backwards]


def test_a_gate_that_is_met_and_one_that_is_missed(files, monkeypatch, capsys):
    answered(monkeypatch, 2.0)
    # No file is a millionth or a million times as fast.
    assert run(*files, *COMMAND, "--fail-below", "1e-6") == 0
    shown = capsys.readouterr()
    assert "at least 1e-06: met" in shown.out and "ended by decided" in shown.out
    assert run(*files, *COMMAND, "--fail-below", "1e6") == 3
    shown = capsys.readouterr()
    # What was told of the progress stands before, where it took long.
    last = shown.err.splitlines()[-1]
    assert last.startswith(f"slimdet: error: a limit is kept by the whole interval: {files[1]} speedup")
    assert f"{files[0]} speedup" not in last


def test_what_every_process_gets(files, monkeypatch):
    got = answered(monkeypatch, 2.0)
    settings = {**QUICK, "runs": 13, "min_secs": 3.0, "warmup_secs": 0.6}
    compare([Path(name) for name in files], **settings, seed=4)
    assert len(got) == 6
    assert {(one["runs"], one["min_secs"], round(one["warmup_secs"], 9)) for one in got} == {(3, 0.5, 0.1)}
    assert [one["seed"] for one in got] == [4_000_000 + number for number in range(6)]


@pytest.mark.parametrize(
    ("limit", "verdict", "stopped_by"),
    [(1.5, "met", "decided"), (2.5, "missed", "decided"), (2.0, "undecided", "max_secs")],
)
def test_limits_are_decided_by_the_interval(files, monkeypatch, limit, verdict, stopped_by):
    got = answered(monkeypatch, 2.0)
    settings = {**QUICK, "max_secs": 2.0}
    result = compare([Path(name) for name in files], **settings, fail_below=limit)
    (row,) = result["gate"]
    assert (row["verdict"], result["stopped_by"]) == (verdict, stopped_by)
    assert row["confidence"] == pytest.approx(1 - 0.05 / (result["looks"] * (result["looks"] + 1)))
    if verdict == "undecided":
        # At first 6 processes, then ceil of 1.5 times as many, until two seconds have passed.
        assert result["looks"] > 1 and len(got) == len(result["rounds_of_processes"]) > 6
    else:
        assert (result["looks"], len(got)) == (1, 6)


def test_rounds_that_end_early_are_said(files, monkeypatch):
    answered(monkeypatch, 2.0, full=False)
    result = compare([Path(name) for name in files], **QUICK)
    assert (result["stopped_by"], len(result["rounds_of_processes"])) == ("max_secs", 6)
    result = compare([Path(name) for name in files], **QUICK, fail_below=2.0)
    assert (result["stopped_by"], result["gate"][0]["verdict"], result["looks"]) == ("max_secs", "undecided", 1)


def test_a_budget_of_all_measures(files, tmp_path, monkeypatch, capsys):
    answered(monkeypatch, 2.0)
    budget, result = tmp_path / "budget.toml", tmp_path / "result.json"
    budget.write_text(
        '["*.tflite"]\np50_ms = 1e5\np95_ms = 1e5\nsize_mb = 1e-9\npeak_memory_mb = 1e6\n["int8*"]\nspeedup = 1e-6\n'
    )
    assert run(*files, *COMMAND, "--budget", str(budget), "--json", str(result)) == 3
    gate = json.loads(result.read_text())["gate"]
    found = {(Path(row["model"]).stem, row["measure"]): row["verdict"] for row in gate}
    timed = {(name, measure): "met" for name in ("whole", "int8") for measure in ("p50_ms", "p95_ms", "peak_memory_mb")}
    assert found == timed | {("whole", "size_mb"): "missed", ("int8", "size_mb"): "missed", ("int8", "speedup"): "met"}
    assert capsys.readouterr().err.count("size_mb") == 2


def test_a_process_that_dies_is_one_sentence(files, monkeypatch):
    real = subprocess.Popen
    dies = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    monkeypatch.setattr(child.subprocess, "Popen", lambda command, **options: real(dies, **options))
    with pytest.raises(BackendError, match="was ended by SIGSEGV; try another --backend"):
        compare([Path(name) for name in files], **QUICK)


def test_a_process_opens_its_models_in_a_drawn_order(files, monkeypatch):
    opened = []
    monkeypatch.setattr(
        compare_child, "inference", lambda name, *_, **settings: opened.append(name) or (lambda: time.sleep(1e-4))
    )
    settings = {"backend": "cpu", "threads": 1, "cores": [], "models": list(files), **QUICK}
    for seed in range(20):
        found = compare_child.measure(settings | {"seed": seed}, lambda value: None)
        assert found["full"] and {len(times) for times in found["times_ns"].values()} == {12}
    # That one file comes first in all 20 has a chance of 2 in a million, and the seeds are fixed.
    assert set(opened[::2]) == set(files)


def test_gate_error_is_no_input_error():
    assert not issubclass(GateError, InputError)


def test_files_of_one_name_are_told_apart_by_their_paths():
    assert _file_names(["a/x.tflite", "b/y.tflite"]) == {"a/x.tflite": "x.tflite", "b/y.tflite": "y.tflite"}
    assert _file_names(["a/x.tflite", "b/x.tflite"]) == {"a/x.tflite": "a/x.tflite", "b/x.tflite": "b/x.tflite"}
