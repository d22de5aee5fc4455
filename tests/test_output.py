"""JSON lines, annotated files and words: right, and never half-written."""

import io
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import output
from deploy.detections import Detections, no_detections
from deploy.errors import InputError
from deploy.output import JsonLines, Progress, VideoFile, in_words, to_json, write_picture
from deploy.source import Frame, Source

LABELS = ("dog", "person", "bench", "skis", "猫")
FOUND = Detections(
    np.array([[1, 2, 30.126, 40.5], [0, 0, 7, 8]], np.float32),
    np.array([0.75, 0.1], np.float32),
    np.array([1, 4], np.int32),
)


def frame(index: int = 0, source: str = "a.jpg", size: tuple[int, int] = (48, 64)) -> Frame:
    return Frame(Path(source), index, index / 10, np.full((*size, 3), 40 * index % 256, np.uint8))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_has_the_agreed_fields() -> None:
    assert to_json(frame(3, "v.mp4"), FOUND, LABELS) == {
        "source": "v.mp4",
        "frame": 3,
        "time": 0.3,
        "detections": [
            {"label": "person", "class_id": 1, "score": 0.75, "box": [1.0, 2.0, 30.13, 40.5]},
            {"label": "猫", "class_id": 4, "score": 0.1, "box": [0.0, 0.0, 7.0, 8.0]},
        ],
    }
    assert to_json(frame(), no_detections(), LABELS)["detections"] == []


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=20).filter(lambda b: b"\0" not in b), st.text(max_size=8))
def test_any_name_and_label_make_strict_json(name: bytes, label: str) -> None:
    made = to_json(frame(source=os.fsdecode(name)), FOUND, [label] * 5)
    # A lone surrogate, from a name that is no UTF-8, could not be encoded.
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text) == made
    assert json.loads(text)["source"].encode()


def test_words_count_the_most_frequent_first() -> None:
    assert in_words({1: 1, 0: 2}, LABELS) == "2 dogs, 1 person"
    assert in_words({2: 2, 3: 2, 4: 2, 9: 2}, LABELS) == "2 benches, 2 skis, 2 猫, 2 class 9"
    assert in_words({}, LABELS) == "nothing found"
    assert in_words({0: 5, 1: 4, 2: 3, 3: 2}, LABELS, most=2) == "5 dogs, 4 persons, 2 more classes"


def test_words_hold_no_terminal_commands() -> None:
    assert "\x1b" not in in_words({0: 1}, ["\x1b[2Jcat"])
    assert output.printable("a\nb\x07\udcff") == "a\N{REPLACEMENT CHARACTER}b" + 2 * "\N{REPLACEMENT CHARACTER}"


def test_json_lines_appear_whole_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text("old")
    with JsonLines(str(path), LABELS) as file:
        for i in range(3):
            file.write(frame(i), FOUND)
            (temporary,) = [name for name in names(tmp_path) if name != "o.jsonl"]
            assert temporary.startswith(".o.jsonl.") and temporary.endswith(".part")
            # Each line is on its way at once: a kill loses none.
            assert [line["frame"] for line in lines(tmp_path / temporary)] == list(range(i + 1))
        assert path.read_text() == "old"
    assert lines(path) == [to_json(frame(i), FOUND, LABELS) for i in range(3)]
    assert names(tmp_path) == ["o.jsonl"]


def test_json_lines_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonLines("-", LABELS) as file:
        file.write(frame(), FOUND)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == to_json(frame(), FOUND, LABELS)
    assert captured.err == ""


@pytest.mark.parametrize(
    ("error", "old", "written", "expected"),
    [
        (KeyboardInterrupt, "old", 2, "new"),
        (KeyboardInterrupt, None, 2, "new"),
        (KeyboardInterrupt, "old", 0, "old"),
        (InputError, "old", 2, "old"),
        (InputError, None, 2, "new"),
        (InputError, None, 0, None),
    ],
)
def test_json_lines_after_an_interruption_or_error(
    tmp_path: Path, error: type[BaseException], old: str | None, written: int, expected: str | None
) -> None:
    path = tmp_path / "o.jsonl"
    if old:
        path.write_text(old)
    with pytest.raises(error), JsonLines(str(path), LABELS) as file:
        for i in range(written):
            file.write(frame(i), FOUND)
        raise error
    if expected == "new":
        assert [line["frame"] for line in lines(path)] == list(range(written))
    else:
        assert (path.read_text() if path.exists() else None) == expected
    assert names(tmp_path) == (["o.jsonl"] if expected else [])


def test_a_line_that_a_full_disk_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    length = len(json.dumps(to_json(frame(0), FOUND, LABELS))) + 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length * 2 + 5, hard))
    try:
        with pytest.raises(InputError, match="cannot write .*o.jsonl"), JsonLines(str(path), LABELS) as file:
            for i in range(5):
                file.write(frame(i), FOUND)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line["frame"] for line in lines(path)] == [0, 1]
    assert names(tmp_path) == ["o.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full on this machine")
def test_json_lines_to_a_full_device() -> None:
    with pytest.raises(InputError, match="/dev/full: No space left"), JsonLines("/dev/full", LABELS) as file:
        file.write(frame(), FOUND)
    assert Path("/dev/full").is_char_device()


def test_json_lines_go_into_a_pipe_and_do_not_replace_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with JsonLines(str(pipe), LABELS) as file:
        file.write(frame(), FOUND)
    reader.join()
    assert json.loads(read[0]) == to_json(frame(), FOUND, LABELS)
    assert pipe.is_fifo() and names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["file/o.jsonl", "missing/o.jsonl", "folder", "", "x" * 300])
def test_json_lines_where_no_file_can_be(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        JsonLines(name, LABELS)
    assert names(tmp_path) == ["file", "folder"]


def test_json_lines_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with JsonLines(str(tmp_path / "link"), LABELS) as file:
        file.write(frame(), FOUND)
    assert (tmp_path / "link").is_symlink() and len(lines(tmp_path / "real")) == 1


def test_the_output_folder_is_made_and_never_the_sources_own(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), frame().pixels)
    one = Source("picture", picture, (picture,))
    output.output_folder(tmp_path / "new" / "out", one)
    assert (tmp_path / "new" / "out").is_dir()
    (tmp_path / "link").symlink_to(tmp_path)
    for same in (tmp_path, tmp_path / "new" / "..", tmp_path / "link"):
        with pytest.raises(InputError, match="source's folder"):
            output.output_folder(same, one)
        with pytest.raises(InputError, match="source's folder"):
            output.output_folder(same, Source("folder", tmp_path, (picture,)))
    with pytest.raises(InputError, match="cannot make the folder"):
        output.output_folder(picture / "out", one)


def test_a_linked_source_is_not_overwritten_through_its_real_folder(tmp_path: Path) -> None:
    real, links = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    links.mkdir()
    cv2.imwrite(str(real / "a.png"), frame(1).pixels)
    (links / "a.png").symlink_to(real / "a.png")
    before = (real / "a.png").read_bytes()
    with pytest.raises(InputError, match="source itself"):
        write_picture(real, links / "a.png", frame(2).pixels)
    assert (real / "a.png").read_bytes() == before
    # A link in the output folder is replaced, not written through.
    cv2.imwrite(str(tmp_path / "b.png"), frame(1).pixels)
    (links / "b.png").symlink_to(real / "a.png")
    write_picture(links, tmp_path / "b.png", frame(2).pixels)
    assert (real / "a.png").read_bytes() == before
    np.testing.assert_array_equal(cv2.imread(str(links / "b.png")), frame(2).pixels)


@pytest.mark.parametrize(
    ("name", "written"), [("a.jpg", "a.jpg"), ("A.PNG", "A.PNG"), ("a.gif", "a.gif.png"), ("a", "a.png")]
)
def test_annotated_pictures_keep_their_name(tmp_path: Path, name: str, written: str) -> None:
    write_picture(tmp_path, Path(name), frame(2).pixels)
    assert names(tmp_path) == [written]
    # JPEG keeps a plain grey to within a level or two.
    np.testing.assert_allclose(cv2.imread(str(tmp_path / written)), frame(2).pixels, atol=2)


def test_a_picture_that_its_format_cannot_hold_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="70000x1 pixels"):  # JPEG ends at 65,535
        write_picture(tmp_path, Path("a.jpg"), np.zeros((1, 70_000, 3), np.uint8))
    assert names(tmp_path) == []


def read_video(path: Path) -> list[float]:
    """Mean grey of each frame."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    means = []
    while (read := capture.read())[0]:
        means.append(float(read[1].mean()))
    capture.release()
    return means


def test_a_video_appears_whole_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_text("old")
    with VideoFile(path, 10.0, (48, 64)) as film:
        for i in range(6):
            film.write(frame(i).pixels)
        assert path.read_text() == "old"
    assert names(tmp_path) == ["v.mp4"]
    # MPEG-4 keeps a plain grey to within a few levels; the frames are 40 levels apart.
    np.testing.assert_allclose(read_video(path), 40 * np.arange(6), atol=6)


@pytest.mark.parametrize(("error", "frames"), [(KeyboardInterrupt, 4), (InputError, 4), (KeyboardInterrupt, 0)])
def test_a_video_after_an_interruption_or_error(tmp_path: Path, error: type[BaseException], frames: int) -> None:
    path = tmp_path / "v.mp4"
    path.write_text("old")
    with pytest.raises(error), VideoFile(path, 10.0, (48, 64)) as film:
        for i in range(frames):
            film.write(frame(i).pixels)
        raise error
    if error is KeyboardInterrupt and frames:
        assert len(read_video(path)) == frames
    else:
        assert path.read_text() == "old"
    assert names(tmp_path) == ["v.mp4"]


def test_frames_of_another_size_are_not_lost_in_silence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frame 1 has 32x24, not 64x48"):
        with VideoFile(tmp_path / "v.mp4", 0.0, (48, 64)) as film:
            film.write(frame(0).pixels)
            film.write(np.zeros((24, 32, 3), np.uint8))
    assert names(tmp_path) == []


@pytest.mark.parametrize("place", ["file/v.mp4", "missing/v.mp4"])
def test_a_video_where_no_file_can_be(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write a video"):
        VideoFile(tmp_path / place, 10.0, (48, 64))


def test_a_video_that_fills_the_disk_is_an_error(tmp_path: Path) -> None:
    # In a process of its own, as OpenCV logs each failed write.
    code = f"""
import resource, numpy as np
from pathlib import Path
from deploy.errors import InputError
from deploy.output import VideoFile
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0)
try:
    with VideoFile(Path({str(tmp_path)!r}) / "v.mp4", 10.0, (240, 320)) as film:
        for _ in range(20):
            film.write(noise.integers(0, 255, (240, 320, 3), np.uint8))
except InputError as error:
    print(error)
"""
    (tmp_path / "v.mp4").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=60
    )
    assert "of 20 frames 0 can be read back" in done.stdout
    assert (names(tmp_path), (tmp_path / "v.mp4").read_text()) == (["v.mp4"], "old")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "least", "most"), [(io.StringIO(), 2, 2), (Terminal(), 120, 150)])
def test_progress_starts_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, least: int, most: int
) -> None:
    clock = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    with Progress(400, "frames", stream) as progress:
        for _ in range(39):
            clock[0] += 0.05
            progress.step()
        assert stream.getvalue() == ""
        for _ in range(261):  # to second 15: a line at 2 and at 12, or one every tenth of a second from 2 on
            clock[0] += 0.05
            progress.step()
    shown = stream.getvalue()
    assert least <= shown.count("frames, 20.0/s") <= most
    assert "/400 frames" in shown and "s left" in shown
    assert ("\r" in shown) == stream.isatty()
    assert shown.endswith("\r" if stream.isatty() else "\n")


def test_progress_without_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Progress(0, "frames", stream) as progress:
        clock[0] = 4.0
        progress.step()
    assert stream.getvalue() == "1 frames, 0.2/s\n"
