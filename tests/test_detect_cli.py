"""The command detect from end to end: exit codes, outputs, signals and full disks."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploy.detector import Detector
from deploy.picture import read_picture
from toy_detector import write_toy

ROOT = Path(__file__).parents[1]
DETECT = [sys.executable, "-m", "deploy", "detect"]
SSD = Path("tflite", "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite")

#: The same program with a stand-in for the model: in each picture one box, whose class is the grey level / 40. It takes
#: SECONDS a picture, and gives no number at all for white.
STAND_IN = """
import os, time, types
import numpy as np
import deploy.detector
from deploy.cli import main
from deploy.command_line import run
from deploy.detections import Detections

class Detector:
    def __init__(self, *arguments):
        self.contract = types.SimpleNamespace(labels=("dog", "person", os.environ.get("LABEL", "bus")))

    def preprocessor(self):
        return lambda bgr: (bgr[:1, 0, 0].copy(), None)

    def invoke(self, tensor):
        time.sleep(float(os.environ.get("SECONDS", 0)))
        return {"level": tensor}

    def postprocess(self, outputs, placement):
        level = outputs["level"]
        box = [4, 20, 44, 40] if level[0] < 250 else [np.nan] * 4
        class_id = np.rint(level / 40).astype(np.int32)
        return Detections(np.array([box], np.float32), np.array([0.5], np.float32), class_id)

deploy.detector.Detector = Detector
run(main, "p")
"""


def stand_in(*arguments: object, seconds: float = 0.0, label: str = "bus") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STAND_IN, "detect", "model.tflite", *map(str, arguments)]
    environment = {**os.environ, "SECONDS": str(seconds), "LABEL": label, "PYTHONIOENCODING": "utf-8"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


def detect(*arguments: object) -> tuple[int, str, str]:
    done = subprocess.run([*DETECT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def lines(text: str) -> list[dict]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def picture(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.full((48, 64, 3), level, np.uint8))
    return path


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "toy.tflite")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, of a dog and of a person, and one that is cut."""
    picture(tmp_path / "in" / "a.png", 0)
    picture(tmp_path / "in" / "b.png", 40)
    (tmp_path / "in" / "c.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:50])
    return tmp_path / "in"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """300 frames at 10 a second."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (64, 48))
    for _ in range(300):
        writer.write(np.full((48, 64, 3), 40, np.uint8))
    writer.release()
    return path


def test_help_has_an_example_and_does_not_load_the_interpreter() -> None:
    code, out, error = detect("--help")
    assert (code, error) == (0, "") and "Example:\n    slimdet detect " in out
    for option in "source conf iou out jsonl backend threads track page variant config systemd debug".split():
        assert f"--{option}" in out
    loaded = subprocess.run(
        [sys.executable, "-c", "import deploy.cli, sys; print(*sys.modules)"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    assert {"numpy", "cv2", "ai_edge_litert", "tensorflow"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["m.tflite"],
        ["m.tflite", "--source", "a.jpg", "--conf", "1.5"],
        ["m.tflite", "--source", "a.jpg", "--conf", "nan"],
        ["m.tflite", "--source", "a.jpg", "--iou", "-1"],
        ["m.tflite", "--source", "a.jpg", "--threads", "0"],
        ["m.tflite", "--source", "a.jpg", "--nothing"],
    ],
)
def test_wrong_use_is_2(arguments: list[str]) -> None:
    code, out, error = detect(*arguments)
    assert (code, out) == (2, "") and "Usage:" in error and "Traceback" not in error


def test_a_missing_model_is_one_sentence_and_debug_a_traceback(tmp_path: Path) -> None:
    arguments = [tmp_path / "no.tflite", "--source", picture(tmp_path / "a.png")]
    code, out, error = detect(*arguments)
    assert (code, out, error.count("\n")) == (1, "", 1) and "no.tflite" in error
    code, out, error = detect(*arguments, "--debug")
    assert code == 1 and "Traceback (most recent call last)" in error and "InputError" in error


def test_a_stream_that_refuses_ends_in_time_and_its_password_stays_unsaid(toy: Path) -> None:
    begin = time.monotonic()
    code, out, error = detect(toy, "--source", "rtsp://user:secret@127.0.0.1:9/live", "--for", 1)
    assert time.monotonic() - begin < 20  # on a busy machine; it never ends by itself
    assert code == 1 and "0: waiting: " in error and "none came from rtsp://127.0.0.1:9/live in " in error
    assert "secret" not in out + error and "Traceback" not in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_feed_ends_cleanly_at_a_signal(toy: Path, tmp_path: Path, number: int) -> None:
    command = [*DETECT, str(toy), "--source", "pattern", "--source", "pattern", "--jsonl", str(tmp_path / "o.jsonl")]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, "--track"], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    wait_for(lambda: (tmp_path / "o.jsonl").exists() and (tmp_path / "o.jsonl").read_text().count("\n") > 6)
    process.send_signal(number)
    code, out, error = ended(process)
    assert (code, out) == (0, "") and "pattern, pattern: " in error and "Traceback" not in error
    found = lines((tmp_path / "o.jsonl").read_text())
    results = [line for line in found if "detections" in line]
    assert {line["feed"] for line in results} == {"0", "1"}
    assert all(line["age_ms"] > 0 and "track" in one for line in results for one in line["detections"])


def test_a_film_of_several_sources_is_read_whole(toy: Path, film: Path, tmp_path: Path) -> None:
    picture(tmp_path / "b.png", 40)
    code, out, error = detect(toy, "--source", film, "--source", tmp_path / "b.png", "--jsonl", tmp_path / "o.jsonl")
    assert (code, out) == (0, "") and "301 frames" in error
    found = [line for line in lines((tmp_path / "o.jsonl").read_text()) if "detections" in line]
    assert [line["frame"] for line in found if line["feed"] == "0"] == list(range(300))
    assert [line["source"] for line in found if line["feed"] == "1"] == [str(tmp_path / "b.png")]


def test_a_config_is_checked_run_and_read_anew(toy: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {toy.name}\nsources: {{yard: pattern}}\njsonl: o.jsonl\n")
    code, out, error = detect("--config", config, "--check")
    assert (code, out, error) == (0, "the settings can be used; feeds: yard (pattern)\n", "")
    process = subprocess.Popen(
        [*DETECT, "--config", str(config)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    written = tmp_path / "o.jsonl"
    wait_for(lambda: written.exists() and '"yard"' in written.read_text())
    config.write_text("model: [\n")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    config.write_text(f"model: {toy.name}\nsources: {{yard: pattern, door: pattern}}\njsonl: o.jsonl\n")
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: '"door"' in written.read_text())
    process.send_signal(signal.SIGTERM)
    code, out, error = ended(process)
    assert code == 0 and error.count("the settings stay as they were: ") == 1 and f"{config}:" in error
    assert error.count("the settings were read anew") == 1
    assert error.count("yard: opening") == 1  # the same feed goes on
    numbers = [line["frame"] for line in lines(written.read_text()) if line.get("feed") == "yard" and "frame" in line]
    assert numbers == sorted(set(numbers))


def test_a_password_is_told_nowhere(toy: Path, tmp_path: Path) -> None:
    """Not on standard output or error, not in the page's state, metrics and health, not in JSON lines, and not in the
    words that the processes were started with."""
    config = tmp_path / "c.yaml"
    config.write_text(
        f"model: {toy.name}\njsonl: o.jsonl\npage: {{port: 0, token: t0ken}}\nsources:\n  pattern: pattern\n  yard:\n"
        "    address: rtsp://127.0.0.1:9/live\n    user: admin\n    password: {env: YARD_PASSWORD}\n"
    )
    environment = {**os.environ, "YARD_PASSWORD": "s3cr3t-of-yard"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*DETECT, "--config", str(config)], cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stderr is not None
    told, address = "", ""
    while not (address and "yard: waiting" in told):
        line = process.stderr.readline()
        assert line, told
        told += line
        address = line.split("page: ")[1].strip() if "page: " in line else address
    wait_for(lambda: (tmp_path / "o.jsonl").exists() and "pattern" in (tmp_path / "o.jsonl").read_text())
    for path in ("state.json", "metrics", "healthz"):
        try:
            with urllib.request.urlopen(f"{address.rstrip('/')}/{path}?token=t0ken", timeout=10) as answer:
                told += answer.read().decode()
        except urllib.error.HTTPError as error:  # healthz, as one feed does not run
            told += error.read().decode()
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            told += words.read_bytes().decode(errors="replace")
    process.send_signal(signal.SIGTERM)
    code, out, error = ended(process)
    told += out + error + (tmp_path / "o.jsonl").read_text()
    assert code == 0 and "rtsp://127.0.0.1:9/live" in told and "slimdet" in told
    assert "s3cr3t" not in told and "t0ken" not in told


def test_options_do_not_go_with_a_config(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("model: m.tflite\nsources: {yard: pattern}\n")
    for extra, code, said in (
        (["--conf", "0.3"], 2, "leave --conf out"),
        (["--source", "0"], 2, "leave --source out"),
        (["--for", "-1"], 1, "--for is a number of seconds"),
        ([], 1, "m.tflite"),
    ):
        found, out, error = detect("--config", config, *extra)
        assert (found, out) == (code, "") and said in " ".join(error.split()) and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--zone", "a=0,0,1"], "--zone is NAME="),
        (["--zone", "a=0,0,1,1"], "--zone: zones have three or more points"),
        (["--line", "a=0,0,1,2"], "--line: lines have two points"),
        (["--page", "here"], "--page is PORT"),
        (["--size", "big"], "--size: size is WIDTHxHEIGHT"),
        (["--codec", "JPEG2"], "codec is four letters"),
        (["--mqtt", "user:secret@host"], "--mqtt: mqtt has a url"),
        (["--for", "0"], "--for: for is a number"),
        (["--max-age", "0"], "--max-age: age_ms is a number"),
    ],
)
def test_an_option_that_cannot_be_used_is_told_before_anything_is_opened(arguments: list[str], said: str) -> None:
    code, out, error = detect("m.tflite", "--source", "pattern", *arguments)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert said in error and "secret" not in error


def test_a_picture_is_one_line_of_words(folder: Path) -> None:
    code, out, error = ended(stand_in("--source", folder / "b.png"))
    assert (code, error) == (0, "")
    assert out.startswith(f"{folder / 'b.png'}: 1 person  ") and out.endswith(" ms\n") and out.count("\n") == 1


def test_a_folder_skips_what_it_cannot_read_and_says_so(folder: Path) -> None:
    code, out, error = ended(stand_in("--source", folder))
    assert code == 0
    told = [line.split(": ")[0] for line in out.splitlines()]
    assert told == [str(folder / "a.png"), str(folder / "b.png"), str(folder)]
    assert "2 pictures (1 skipped), 1 dog, 1 person" in out
    assert error.startswith("skipped: ") and "c.png" in error and error.count("\n") == 1


def test_a_folder_or_picture_of_which_nothing_can_be_read_is_1(folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").unlink()
    (folder / "b.png").write_bytes(b"")
    old = tmp_path / "o.jsonl"
    old.write_text("old")
    code, out, error = ended(stand_in("--source", folder, "--jsonl", old))
    assert (code, out) == (1, "") and "not one of 2 pictures" in error
    code, out, error = ended(stand_in("--source", folder / "c.png", "--jsonl", old))
    assert (code, out, error.count("\n")) == (1, "", 1) and "c.png" in error
    assert old.read_text() == "old" and names(tmp_path) == ["in", "o.jsonl"]


def test_json_lines_and_annotated_pictures(folder: Path, tmp_path: Path) -> None:
    code, out, error = ended(stand_in("--source", folder, "--jsonl", tmp_path / "o.jsonl", "--out", tmp_path / "out"))
    assert (code, out) == (0, "") and "2 pictures (1 skipped)" in error
    found = {"score": 0.5, "box": [4.0, 20.0, 44.0, 40.0]}
    assert lines((tmp_path / "o.jsonl").read_text()) == [
        {
            "source": str(folder / name),
            "frame": 0,
            "time": 0.0,
            "detections": [{"label": label, "class_id": class_id, **found}],
        }
        for name, label, class_id in [("a.png", "dog", 0), ("b.png", "person", 1)]
    ]
    assert names(tmp_path / "out") == ["a.png", "b.png"]
    drawn = read_picture(tmp_path / "out" / "b.png")
    assert (drawn[30, 4] != 40).any() and (drawn[45, 60] == 40).all()
    assert (read_picture(folder / "b.png") == 40).all()


def test_json_lines_on_standard_output_are_alone_there(film: Path) -> None:
    code, out, error = ended(stand_in("--source", film, "--jsonl", "-"))
    found = lines(out)
    assert code == 0 and "300 frames, 300 persons" in error
    assert [line["frame"] for line in found] == list(range(300))
    np.testing.assert_allclose([line["time"] for line in found], np.arange(300) / 10, atol=1e-6)


def test_a_video_is_annotated_as_mp4(film: Path, tmp_path: Path) -> None:
    code, out, error = ended(stand_in("--source", film, "--out", tmp_path / "out"))
    assert (code, out, names(tmp_path / "out")) == (0, "", ["film.mp4"])
    capture = cv2.VideoCapture(str(tmp_path / "out" / "film.mp4"), cv2.CAP_FFMPEG)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 300
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    capture.release()


def test_a_video_alone_is_summed_up_on_standard_output(film: Path) -> None:
    code, out, error = ended(stand_in("--source", film))
    assert (code, error) == (0, "") and out.startswith(f"{film}: 300 frames, 300 persons, ")


def test_a_cut_video_says_how_much_could_be_read(film: Path) -> None:
    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) // 2])
    code, out, error = ended(stand_in("--source", film, "--jsonl", "-"))
    count = len(lines(out))
    assert code == 0 and 50 < count < 200
    assert f"announces 300 frames, {count} can be read" in error


@pytest.mark.parametrize("content", [b"", b"no video at all\n" * 100])
def test_what_is_no_video_is_1(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.mp4").write_bytes(content)
    code, out, error = ended(stand_in("--source", tmp_path / "v.mp4"))
    assert (code, out, error.count("\n")) == (1, "", 1) and "is not a video" in error


def test_ffmpeg_keeps_its_words_to_itself(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom" + bytes(500))
    code, out, error = ended(stand_in("--source", path))
    assert (code, out, error.count("\n")) == (1, "", 1) and "cannot be opened as a video" in error


def test_a_model_that_gives_no_numbers_is_1(tmp_path: Path) -> None:
    for extra in (["--jsonl", tmp_path / "o.jsonl"], ["--out", tmp_path / "out"], []):
        code, out, error = ended(stand_in("--source", picture(tmp_path / "w.png", 255), *extra))
        assert (code, out, error.count("\n")) == (1, "", 1) and "finite" in error
    assert names(tmp_path) == ["out", "w.png"]


def test_labels_that_cannot_be_drawn_are_told_once(folder: Path, tmp_path: Path) -> None:
    # An Egyptian hieroglyph, which none of the fonts that are tried has.
    arguments = ["--source", folder, "--out", tmp_path / "out", "--jsonl", tmp_path / "o.jsonl"]
    code, out, error = ended(stand_in(*arguments, label="\U00013000"))
    assert code == 0 and error.count("no font of this machine has the letters of 1 label") == 1


def test_nothing_that_is_read_is_overwritten(folder: Path, film: Path) -> None:
    for source, extra in [
        (folder, ["--out", folder]),
        (folder / "a.png", ["--out", folder]),
        (film, ["--out", film.parent]),
        (folder, ["--jsonl", folder / "b.png"]),
        (film, ["--jsonl", film]),
    ]:
        before = {path: path.read_bytes() for path in [film, *folder.iterdir()]}
        code, out, error = ended(stand_in("--source", source, *extra))
        assert (code, out, error.count("\n")) == (1, "", 1) and "over" in error
        assert {path: path.read_bytes() for path in [film, *folder.iterdir()]} == before


@pytest.mark.parametrize("option", ["--out", "--jsonl"])
def test_a_place_that_cannot_be_written_to_is_1(folder: Path, option: str) -> None:
    code, out, error = ended(stand_in("--source", folder / "a.png", option, folder / "a.png" / "below"))
    assert (code, out, error.count("\n")) == (1, "", 1) and "cannot" in error and "below" in error


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this machine")
def test_a_full_disk_is_1(folder: Path) -> None:
    code, out, error = ended(stand_in("--source", folder / "a.png", "--jsonl", "/dev/full"))
    assert (code, out, error.count("\n")) == (1, "", 1) and "/dev/full: No space left on device" in error


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it never came to pass")


def growing(folder: Path) -> bool:
    """True when a temporary file of JSON lines holds some."""
    return any(path.read_text().count("\n") > 3 for path in folder.glob(".*.part"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_finished(film: Path, tmp_path: Path, number: int) -> None:
    result = tmp_path / "result"
    result.mkdir()
    (result / "o.jsonl").write_text("old")
    process = stand_in("--source", film, "--jsonl", result / "o.jsonl", "--out", result, seconds=0.05)
    wait_for(lambda: growing(result))
    process.send_signal(number)
    code, out, error = ended(process)
    assert (code, out) == (1, "") and error.endswith("interrupted; what was finished before is kept\n")
    assert "Traceback" not in error
    assert names(result) == ["film.mp4", "o.jsonl"]
    found = lines((result / "o.jsonl").read_text())
    assert [line["frame"] for line in found] == list(range(len(found))) and 3 < len(found) < 300
    capture = cv2.VideoCapture(str(result / "film.mp4"), cv2.CAP_FFMPEG)
    # The signal may fall between the two outputs of one frame.
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) - len(found) in (0, 1)
    capture.release()


def test_a_kill_leaves_the_old_files(film: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    result.mkdir()
    (result / "o.jsonl").write_text("old")
    (result / "film.mp4").write_text("old")
    process = stand_in("--source", film, "--jsonl", result / "o.jsonl", "--out", result, seconds=0.05)
    wait_for(lambda: growing(result))
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert (result / "o.jsonl").read_text() == (result / "film.mp4").read_text() == "old"
    (left,) = result.glob(".o.jsonl.*.part")
    assert len(lines(left.read_text())) > 3


def test_a_reader_that_leaves_ends_it_quietly(film: Path) -> None:
    process = stand_in("--source", film, "--jsonl", "-", seconds=0.01)
    assert process.stdout is not None and process.stderr is not None
    assert json.loads(process.stdout.readline())["frame"] == 0
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_progress_of_a_long_run(film: Path, tmp_path: Path) -> None:
    code, _, error = ended(stand_in("--source", film, "--jsonl", tmp_path / "o.jsonl", seconds=0.01))
    assert code == 0 and "/300 frames, " in error and "\r" not in error
    # A terminal gets one line that is rewritten, and wiped at the end.
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", STAND_IN, "detect", "m.tflite", "--source", str(film)]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "SECONDS": "0.01"}, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:
        pass  # how Linux says that the other end is closed
    os.close(ours)
    assert process.wait(30) == 0
    assert shown.count(b"\r") > 3 and b"/300 frames, " in shown and b"\n" not in shown


@pytest.mark.real_data
def test_a_foreign_file_on_real_pictures(real_data: Path, tmp_path: Path) -> None:
    pictures = sorted((real_data / "voc2007" / "test991" / "JPEGImages").iterdir())[:4]
    (tmp_path / "in").mkdir()
    for path in pictures:
        (tmp_path / "in" / path.name).symlink_to(path)
    code, out, error = detect(
        *[real_data / SSD, "--source", tmp_path / "in", "--conf", 0.3, "--threads", 2],
        *["--jsonl", tmp_path / "o.jsonl", "--out", tmp_path / "out"],
    )
    assert (code, out) == (0, "") and error.startswith(f"{tmp_path / 'in'}: 4 pictures, ")
    assert names(tmp_path / "out") == [path.name for path in pictures]
    detector = Detector(real_data / SSD, conf=0.3)
    found = lines((tmp_path / "o.jsonl").read_text())
    for line, path in zip(found, pictures, strict=True):
        assert line["source"] == str(tmp_path / "in" / path.name)
        read = read_picture(path)
        expected = detector.detect(read)
        assert [d["label"] for d in line["detections"]] == [detector.contract.labels[i] for i in expected.class_ids]
        # uint8 inference is exact whatever the threads; half the last decimal written is what rounding takes.
        np.testing.assert_allclose([d["score"] for d in line["detections"]], expected.scores, atol=5e-7)
        boxes = np.array([d["box"] for d in line["detections"]])
        np.testing.assert_allclose(boxes, expected.boxes, atol=0.005 + 1e-4)
        assert (boxes >= 0).all() and (boxes <= [*read.shape[1::-1]] * 2).all()
    # 000001.jpg shows a man with a dog.
    assert {"person", "dog"} <= {d["label"] for d in found[0]["detections"]}
    assert (read_picture(tmp_path / "out" / pictures[0].name) != read_picture(pictures[0])).any()


@pytest.mark.real_data
def test_an_unknown_backend_is_1(real_data: Path, tmp_path: Path) -> None:
    code, out, error = detect(real_data / SSD, "--source", picture(tmp_path / "a.png"), "--backend", "quantum")
    assert (code, out, error.count("\n")) == (1, "", 1) and "quantum" in error


@pytest.mark.real_data
def test_a_model_cut_in_half_is_1(real_data: Path, tmp_path: Path) -> None:
    content = (real_data / SSD).read_bytes()
    (tmp_path / "m.tflite").write_bytes(content[: len(content) // 2])
    code, out, error = detect(tmp_path / "m.tflite", "--source", picture(tmp_path / "a.png"))
    assert (code, out, error.count("\n")) == (1, "", 1)
