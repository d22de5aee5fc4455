"""The benchmark of tracking on a toy detector; its figures on a real one are looked at, not tested."""

import json

import cv2
import numpy as np
import pytest
from toy_detector import write_toy

from benchmarks import tracking
from deploy.command_line import exit_code


@pytest.fixture
def film(tmp_path):
    """Twelve frames that are red all over, after which it turns blue: one "red", then one "blue", as large as it is."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for number in range(24):
        writer.write(np.full((48, 64, 3), (0, 0, 255) if number < 12 else (255, 0, 0), np.uint8))
    writer.release()
    return path


@pytest.fixture
def patient(monkeypatch):
    """Whatever this machine is busy with."""
    monkeypatch.setattr(tracking, "MOST_MS", 1e9)


def test_a_film(tmp_path, film, patient, capsys):
    model, result, sheet = write_toy(tmp_path / "toy.tflite"), tmp_path / "r.json", tmp_path / "sheet.png"
    truth = tmp_path / "gt.txt"
    truth.write_text("".join(f"{number},9,0,0,64,48,1,1,1\n" for number in range(1, 13)))
    options = ["--video", str(film), "--mot", str(truth), "--label", "red", "--sheet", str(sheet)]
    assert exit_code(tracking.main, "tracking", [str(model), *options, "--json", str(result)]) == 0
    found = json.loads(result.read_text())
    assert found["frames"] == 24 and found["detections_a_frame"] == 1
    # The first two of each twelve have no identity yet.
    assert found["identities"] == {label: {"count": 1, "median_frames": 10} for label in ("blue", "red")}
    against = found["against_truth"]
    assert (against["missed"], against["false"], against["switches"]) == (2, 0, 0) and against["mota"] == 1 - 2 / 12
    assert cv2.imread(str(sheet)).shape == (360, 4 * 480, 3)
    shown = capsys.readouterr().out
    assert "red" in shown and "IDF1" in shown and "by the clock" in shown


def test_the_drawn_scene_has_truth(tmp_path, patient, capsys):
    model = write_toy(tmp_path / "toy.tflite")
    assert exit_code(tracking.main, "tracking", [str(model), "--frames", "5", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["video"] == "pattern" and found["against_truth"]["truths"] > 0


def test_a_cost_above_the_limit_is_exit_code_3(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "MOST_MS", 0.0)
    model = write_toy(tmp_path / "toy.tflite")
    assert exit_code(tracking.main, "tracking", [str(model), "--frames", "3"]) == 3
    assert "may cost 0 ms a frame" in capsys.readouterr().err


def test_truth_needs_its_film_and_a_label(tmp_path, film, capsys):
    model, truth = write_toy(tmp_path / "toy.tflite"), tmp_path / "gt.txt"
    truth.write_text("")
    for options in (["--label", "red"], ["--video", str(film)], ["--video", str(film), "--label", "green"]):
        assert exit_code(tracking.main, "tracking", [str(model), "--mot", str(truth), *options]) == 1
        assert "--mot needs the film's --video, and a --label of the model (red, blue" in capsys.readouterr().err
