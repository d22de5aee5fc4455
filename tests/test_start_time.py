import json
import sys

import cv2
import numpy as np
import pytest
from toy_detector import write_toy

from benchmarks import start_time
from benchmarks.start_time import first_result
from deploy.command_line import exit_code
from deploy.errors import InputError


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_the_first_line_counts_and_the_process_is_ended() -> None:
    assert 0.2 < first_result(program("import time\ntime.sleep(0.2)\nprint('{}', flush=True)\ntime.sleep(100)")) < 100


def test_one_that_fails_is_an_error_with_its_last_words() -> None:
    with pytest.raises(InputError, match=r"was b'' after .*there is no camera"):
        first_result(program("import sys\nsys.exit('there is no camera')"))


def test_one_that_says_nothing_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(start_time, "_PATIENCE", 0.3)
    with pytest.raises(InputError, match="no word"):
        first_result(program("import time\ntime.sleep(100)"))


def test_detect_itself(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(start_time, "MOST_SECONDS", 1e9)
    model, picture = write_toy(tmp_path / "toy.tflite"), tmp_path / "red.png"
    cv2.imwrite(str(picture), np.full((8, 8, 3), (0, 0, 255), np.uint8))
    options = [str(model), "--source", str(picture), "--runs", "1", "--json", "-", "--", "--conf", "0.5"]
    assert exit_code(start_time.main, "start_time", options) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["seconds"]) == 1 and found["p50_s"] == found["seconds"][0] > 0


def test_a_late_one_is_exit_code_3(monkeypatch, capsys) -> None:
    monkeypatch.setattr(start_time, "first_result", lambda command: 2.5)
    assert exit_code(start_time.main, "start_time", ["m.tflite", "--source", "0"]) == 3
    assert "may take 1.5 s, it took 2.50" in capsys.readouterr().err
