"""How far two programs' detections agree; the other program is played by a script."""

import json
import stat
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_tflite

from benchmarks.client_agreement import CONF, MARGIN, agreement, as_markdown, compare, overlap, whole_pixels
from deploy import model_file
from deploy.detector import Detector
from deploy.errors import InputError


def test_partners_are_of_one_class_and_overlap_by_half() -> None:
    own = [(0.0, 0.0, 10.0, 10.0, 0.9, "cat"), (20.0, 0.0, 30.0, 10.0, 0.8, "cat"), (50.0, 0.0, 60.0, 9.0, 0.7, "dog")]
    other = [(0.0, 0.0, 10.0, 8.0, 0.85, "cat"), (26.0, 0.0, 36.0, 10.0, 0.8, "cat")]
    other.append((50.0, 0.0, 60.0, 9.0, 0.7, "cat"))
    found = compare(own, other)
    # 8 of 10 rows; then 4 of 16 columns; then the wrong class.
    assert found["pairs"] == [(pytest.approx(8 / 10), pytest.approx(0.05))]
    assert (found["slimdet_alone"], found["client_alone"]) == (2, 2)


def test_each_partner_is_taken_once_and_the_best_first() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    found = compare([(*box, 0.5, "cat"), (*box, 0.9, "cat")], [(*box, 0.9, "cat")])
    assert found["pairs"] == [(1.0, 0.0)]
    assert (found["slimdet_alone"], found["client_alone"]) == (1, 0)


def test_who_is_at_the_least_score_needs_no_partner() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    just, above = CONF + MARGIN / 2, CONF + 1.5 * MARGIN
    assert compare([(*box, just, "cat")], [])["slimdet_alone"] == 0
    assert compare([(*box, above, "cat")], [])["slimdet_alone"] == 1
    assert compare([], [(*box, just, "cat")])["client_alone"] == 0
    assert compare([], [(*box, above, "cat")])["client_alone"] == 1


def test_boxes_are_cut_to_whole_pixels() -> None:
    boxes = np.array([[1.5, 2.9, 8.4, 9.8]], np.float32)
    # Width and height 6.9.
    assert whole_pixels(boxes).tolist() == [[1.0, 2.0, 1.0 + 6, 2.0 + 6]]
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0


def script(path: Path, text: str) -> Path:
    """Plays a Python that has mediapipe."""
    path.write_text(f"#!{sys.executable}\nimport json, sys\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("resized", [False, True])
def test_files_are_compared_on_pictures(tmp_path: Path, resized: bool) -> None:
    body, contract = tiny_tflite.yolo(resize="stretch")
    own = tmp_path / "own.tflite"
    own.write_bytes(model_file.write(body, contract))
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[::16, ::16, 2] = 255
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), pixels)
    shown = pixels.repeat(4, axis=0).repeat(4, axis=1) if resized else pixels
    found = Detector(own).detect(shown)
    assert len(found) == 8 * 2
    rows = [[*box, 0.9, "red"] for box in whole_pixels(found.boxes).tolist()][:-1]
    told = json.dumps({"version": "9", "pictures": [rows]})
    note = f"open({str(tmp_path / 'seen')!r}, 'w').write(' '.join(sys.argv[1:]) + sys.stdin.read())"
    fake = script(tmp_path / "python", f"print('chatter')\nprint({told!r})\n{note}")
    result = agreement(own, "task-library", tmp_path / "client.tflite", [picture], fake, resized=resized)
    assert (result["pairs"], result["slimdet_alone"], result["client_alone"]) == (15, 1, 0)
    assert result["least_iou"] == 1.0 and result["client_version"] == "9"
    seen = (tmp_path / "seen").read_text()
    resize = "64x32x4" if resized else "0"
    assert f"task-library {tmp_path / 'client.tflite'} {CONF} {resize}" in seen and seen.endswith(f"{picture}\n")
    row = as_markdown([result]).splitlines()[-1]
    before = ", resized before" if resized else ""
    assert row.startswith(f"| own.tflite | client.tflite | 1{before} | 15 | 1.000 | 1.000 | 15 |")


def test_the_other_programs_last_words_are_told(tmp_path: Path) -> None:
    body, contract = tiny_tflite.yolo(resize="stretch")
    (tmp_path / "own.tflite").write_bytes(model_file.write(body, contract))
    fake = script(tmp_path / "python", "sys.exit('No module named mediapipe')")
    with pytest.raises(InputError, match="mediapipe ended with 1 on .*client.tflite: No module named mediapipe"):
        agreement(tmp_path / "own.tflite", "mediapipe", tmp_path / "client.tflite", [], fake, resized=False)
