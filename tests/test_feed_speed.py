"""The benchmark of the pipeline runs on the toy detector; its figures are not asserted."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_detector import write_toy

from benchmarks.feed_speed import main
from deploy.command_line import exit_code


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for i in range(30):
        writer.write(np.full((48, 64, 3), i, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("outputs", [[], ["--outputs"]])
def test_both_are_timed_in_turns(tmp_path: Path, film: Path, outputs: list[str], capsys) -> None:
    model, result = write_toy(tmp_path / "toy.tflite"), tmp_path / "r.json"
    words = [str(model), "--video", str(film), "--rounds", "3", "--frames", "8", "--json", str(result), *outputs]
    assert exit_code(main, "feed_speed", words) == 0
    found = json.loads(result.read_text())
    assert (found["schema"], found["rounds"], found["frames"]) == ("slimdet.feed_speed/1", 3, 8)
    low, high = found["ratio_interval"]
    assert 0 < low <= found["ratio"] <= high
    assert {"preprocess", "invoke", "postprocess"} <= set(found["stages_ms"])
    assert set(found["outputs"]) == ({"jsonl", "mp4", "page"} if outputs else set())
    assert "of what the bare inference allows" in capsys.readouterr().out


def test_a_missed_limit_is_3(tmp_path: Path, film: Path) -> None:
    model = write_toy(tmp_path / "toy.tflite")
    words = [str(model), "--video", str(film), "--rounds", "2", "--frames", "4", "--fail-below", "1e9"]
    assert exit_code(main, "feed_speed", words) == 3
