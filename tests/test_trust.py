"""What is held against itself and against LiteRT's benchmark; the processes are stood in for."""

import json
import subprocess

import pytest
from tiny_tflite import yolo

from benchmarks import trust
from deploy.command_line import exit_code
from deploy.errors import BackendError


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(yolo()[0])
    return path


def _stand_in(monkeypatch, outside: int, theirs: float) -> None:
    count = iter(range(100))

    def compare(models, **settings):
        low = 1.01 if next(count) < outside else 0.99
        assert models[0] != models[1] and models[0].read_bytes() == models[1].read_bytes()
        row = {"speedup": 1.02, "speedup_interval": [low, 1.03]}
        return {"models": [{}, row], "rounds": 30, "machine": {"change": {"others_cores": 0.1}}}

    monkeypatch.setattr(trust, "compare", compare)
    monkeypatch.setattr(trust, "measure_latency", lambda model, **settings: {"p50_ms": 10.0})
    monkeypatch.setattr(trust, "_theirs", lambda model, threads, runs: theirs)


@pytest.mark.parametrize(
    ("outside", "theirs", "code", "words"),
    [
        (1, 10.4, 0, ""),
        (2, 10.4, 3, "18 of 20 intervals hold 1, and 95% must"),
        (0, 11.0, 3, "against LiteRT's benchmark: 0.909, and 1 within 5% is wanted"),
    ],
)
def test_what_is_shown_and_what_is_not(model, tmp_path, monkeypatch, capsys, outside, theirs, code, words):
    _stand_in(monkeypatch, outside, theirs)
    result = tmp_path / "result.json"
    assert exit_code(trust.main, "trust", [str(model), "--json", str(result)]) == code
    shown = capsys.readouterr()
    assert words in shown.err and f"{20 - outside} of 20" in shown.out
    found = json.loads(result.read_text())["models"][str(model)]
    assert len(found["itself"]) == 20 and len(found["theirs"]) == 20


def test_their_benchmark_is_read_and_its_absence_said(model, monkeypatch):
    def run(command, **options):
        destination = command[command.index("--result_json") + 1]
        with open(destination, "w", encoding="utf-8") as file:
            json.dump(answer, file)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(trust.subprocess, "run", run)
    answer = {"latency": {"median_ms": 1.25}}
    assert trust._theirs(model, 1, 5) == 1.25
    answer = {"latency": {}}
    with pytest.raises(BackendError, match="tells latency.median_ms"):
        trust._theirs(model, 1, 5)
    monkeypatch.setattr(
        trust.subprocess, "run", lambda command, **options: subprocess.CompletedProcess(command, 1, "", "no module x\n")
    )
    with pytest.raises(BackendError, match=r"left no result \(no module x\)"):
        trust._theirs(model, 1, 5)
    monkeypatch.setattr(trust.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="lacks; give --pairs 0"):
        trust.against_theirs(model, pairs=1, threads=1, runs=1)
