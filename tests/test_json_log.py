"""Lines that stay readable while they are written, rotated, cut by a full disk and by a kill."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import feed_values
import numpy as np
import pytest

from deploy.errors import InputError
from deploy.json_log import JsonLog
from deploy.output import to_json
from deploy.result_json import plain, result_json, snapshot_json


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_that_of_files_with_what_a_feed_adds() -> None:
    crossed = feed_values.event("crossed", line="path", track=7)
    one = feed_values.result(3, events=(crossed,))
    line = result_json(one, feed_values.LABELS)
    old = to_json(one.frame, one.found, feed_values.LABELS)
    assert all(line[name] == old[name] for name in ("source", "frame", "time"))
    assert line["detections"] == [
        {**detection, "track": track} for detection, track in zip(old["detections"], (7, 0), strict=True)
    ]
    assert line["feed"] == "door" and line["counts"] == {"path": {"in": 2, "out": 1}}
    assert line["age_ms"] == pytest.approx(20, abs=0.01)
    assert line["events"] == [
        {
            "kind": "crossed",
            "feed": "door",
            "at": 1_700_000_000.062,
            "text": "door is crossed",
            "facts": {"line": "path", "track": 7},
        }
    ]
    assert "track" not in result_json(feed_values.result(tracks=None), feed_values.LABELS)["detections"][0]


def test_what_json_lacks_becomes_null_or_text() -> None:
    odd = {1: np.int64(3), "a": (np.float32(0.5), float("nan")), "b": np.arange(2), "p": Path("x")}
    assert plain(odd) == {"1": 3, "a": [0.5, None], "b": [0, 1], "p": "x"}
    whole = snapshot_json(feed_values.snapshot(temperature=None, age=None))
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    assert whole["temperature"] is None and whole["milliseconds"]["invoke"] == {"p50": 18.0, "p95": 21.5}
    assert whole["feeds"][0]["name"] == "door" and whole["feeds"][0]["size"] == [480, 640]


def test_each_line_is_there_at_once_and_an_older_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    path.write_text('{"frame": -1}\n{"frame": 0, "cut by a ki')
    log = JsonLog(str(path), feed_values.LABELS)
    log.result(feed_values.result(1))
    log.event(feed_values.event("stalled"))
    kept = path.read_text().splitlines()
    assert json.loads(kept[0]) == {"frame": -1} and json.loads(kept[2])["frame"] == 1
    assert json.loads(kept[3])["event"]["kind"] == "stalled"
    log.close()


def test_a_rotated_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    log = JsonLog(str(path), feed_values.LABELS)
    log.result(feed_values.result(0))
    path.rename(tmp_path / "seen.jsonl.1")
    log.result(feed_values.result(1))
    path.unlink()
    log.result(feed_values.result(2))
    log.close()
    assert [line["frame"] for line in lines(tmp_path / "seen.jsonl.1")] == [0]
    assert [line["frame"] for line in lines(path)] == [2]


def test_a_line_that_a_full_disk_cut_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "seen.jsonl"
    log = JsonLog(str(path), feed_values.LABELS)
    log.result(feed_values.result(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, hard))
    try:
        with pytest.raises(InputError, match="cannot write .*seen.jsonl: File too large; choose another place"):
            log.result(feed_values.result(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.result(feed_values.result(2))
    log.close()
    assert [line["frame"] for line in lines(path)] == [0, 2]


def test_standard_output_and_pipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = JsonLog("-", feed_values.LABELS)
    log.result(feed_values.result(4))
    log.close()
    assert json.loads(capsys.readouterr().out)["frame"] == 4
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = JsonLog(str(pipe), feed_values.LABELS)
    log.result(feed_values.result(5))
    log.close()
    assert json.loads(os.read(reader, 65536))["frame"] == 5
    os.close(reader)


def test_when_the_reader_of_standard_output_leaves_the_run_ends_quietly() -> None:
    script = (
        "import sys, time; sys.path[:0] = ['tests', '.']\n"
        "import feed_values; from deploy.json_log import JsonLog; from deploy.outbox import Outbox\n"
        "try:\n"
        "    with Outbox(JsonLog('-', feed_values.LABELS)) as outbox:\n"
        "        for index in range(3000):\n"
        "            outbox.offer(feed_values.result(index)); time.sleep(0.01)\n"
        "except KeyboardInterrupt: sys.exit(7)"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", script]
    child = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert json.loads(child.stdout.readline())["feed"] == "door"
    child.stdout.close()
    assert child.wait(60) == 7 and child.stderr.read() == b""
    child.stderr.close()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory; choose another place"):
        JsonLog(str(tmp_path), feed_values.LABELS)
    with pytest.raises(InputError, match="No such file or directory"):
        JsonLog(str(tmp_path / "none" / "o.jsonl"), feed_values.LABELS)
