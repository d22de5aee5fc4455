"""What a long run shows; detect is stood in for by small programs."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.process_usage import Usage
from benchmarks.soak import Sample, as_text, summary, verdicts
from deploy.command_line import exit_code
from deploy.errors import InputError

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="only Linux has /proc")


def samples(memory: float = 0.0, descriptors: int = 0, threads: int = 0, stop_at: int = 100) -> list[Sample]:
    """A hundred, one a second, that begin with 100 MB, 10 descriptors, 5 threads, and grow linearly by so much; 4
    results a second until stop_at."""
    told = []
    for k in range(100):
        usage = Usage(100 + memory * k / 100, 10 + descriptors * k // 100, 5 + threads * k // 100, 1)
        told.append(Sample(k, usage, 4 * min(k, stop_at)))
    return told


def test_flat() -> None:
    found = summary(samples())
    assert verdicts(found) == [] and len(found["parts"]) == 10
    assert found["memory_growth"] == 0 and found["results"] == 4 * 99
    assert all(part["results_per_s"] == 4 for part in found["parts"])
    assert "+0.0% at the end" in as_text(found)


@pytest.mark.parametrize(
    ("grown", "told"),
    [
        # From the median of the second tenth to that of the last are eight tenths.
        ({"memory": 10.0}, "memory stays within 5%, it went 7.9% apart"),
        ({"memory": -20.0}, "memory stays within 5%"),
        ({"descriptors": 10}, "file descriptors stay as many, 8 more came"),
        ({"threads": 10}, "threads stay as many, 8 more came"),
        ({"stop_at": 85}, "in a tenth of the run none did"),
    ],
)
def test_what_is_not(grown: dict, told: str) -> None:
    (only,) = verdicts(summary(samples(**grown)))
    assert told in only


def test_a_little_more_memory_is_flat() -> None:
    assert verdicts(summary(samples(memory=5))) == []


def test_too_few_samples() -> None:
    with pytest.raises(InputError, match="at least 30 samples, not 29"):
        summary(samples()[:29])


def _stand_in(monkeypatch, program: str) -> None:
    monkeypatch.setattr(soak, "detect_command", lambda model, source, options: [sys.executable, "-c", program])


def test_a_process_that_runs_is_sampled_and_ended(monkeypatch, tmp_path) -> None:
    _stand_in(monkeypatch, "import time\nwhile True:\n print('{}', flush=True)\n time.sleep(0.005)")
    result = tmp_path / "soak.json"
    options = ["m.tflite", "--source", "0", "--minutes", "0.04", "--every", "0.03", "--json", str(result)]
    # What so short a run shows is how a process starts; exit code 0 or 3, and the figures are there.
    assert exit_code(soak.main, "soak", options) in (0, 3)
    found = json.loads(result.read_text())
    assert found["results"] > 0 and all(part["memory_mb"] > 1 for part in found["parts"])


def test_one_that_ends_is_an_error_with_its_last_words(monkeypatch, capsys) -> None:
    _stand_in(monkeypatch, "import sys\nsys.exit('slimdet: error: there is no camera 7')")
    options = ["m.tflite", "--source", "7", "--minutes", "1", "--every", "0.02"]
    assert exit_code(soak.main, "soak", options) == 1
    told = capsys.readouterr().err
    assert "it ended after" in told and "there is no camera 7" in told and told.count("\n") == 1
