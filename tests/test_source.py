"""Pictures, folders and videos as frames, and everything that only looks like one."""

import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy import source
from deploy.errors import InputError
from deploy.source import Video, locate, read_pictures

GREY = np.full((24, 32, 3), 90, np.uint8)


def write_video(path: Path, frames: int = 12, fps: float = 10.0, fourcc: str = "MJPG") -> Path:
    """Frame i is one plain grey of level 20 * i, modulo 256."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*fourcc), fps, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((48, 64, 3), 20 * i % 256, np.uint8))
    writer.release()
    return path


def never_skip(path: Path, reason: str) -> None:
    raise AssertionError(f"{path} was skipped: {reason}")


def test_a_picture_is_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "one.PNG"
    cv2.imwrite(str(path), GREY)
    found = locate(str(path))
    assert (found.kind, found.path, found.files) == ("picture", path, (path,))
    (frame,) = read_pictures(found, never_skip)
    assert (frame.source, frame.index, frame.time) == (path, 0, 0.0)
    np.testing.assert_array_equal(frame.pixels, GREY)


def test_a_picture_needs_no_known_ending(tmp_path: Path) -> None:
    path = tmp_path / "photo"
    path.write_bytes(cv2.imencode(".png", GREY)[1].tobytes())
    (frame,) = read_pictures(locate(str(path)), never_skip)
    np.testing.assert_array_equal(frame.pixels, GREY)


def test_a_folder_gives_its_own_pictures_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.JPEG", "C.png", ".hidden.png", "._c.png"):
        (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix, GREY)[1].tobytes())
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    cv2.imwrite(str(tmp_path / "folder.jpg" / "below.png"), GREY)
    found = locate(str(tmp_path))
    assert found.kind == "folder"
    assert [path.name for path in found.files] == ["C.png", "a.JPEG", "b.jpg"]
    assert [frame.source for frame in read_pictures(found, never_skip)] == list(found.files)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"no pictures in .*\.png"):
        locate(str(tmp_path))


def test_bad_pictures_of_a_folder_are_told_and_left_out(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cv2.imwrite(str(elsewhere / "real.png"), GREY)
    folder = tmp_path / "folder"
    folder.mkdir()
    content = cv2.imencode(".png", GREY)[1].tobytes()
    (folder / "a_zero.png").touch()
    (folder / "b_text.jpg").write_text("no picture")
    (folder / "c_cut.png").write_bytes(content[: len(content) // 2])
    (folder / "d_gone.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "e_pipe.png")  # reading it would wait for ever
    (folder / "f_zeros.png").symlink_to("/dev/zero")  # reading it would never end
    (folder / "g_link.png").symlink_to(elsewhere / "real.png")
    skipped: dict[str, str] = {}
    frames = list(read_pictures(locate(str(folder)), lambda path, reason: skipped.update({path.name: reason})))
    assert [frame.source.name for frame in frames] == ["g_link.png"]
    assert [name[0] for name in sorted(skipped)] == list("abcdef")
    assert all(str(folder / name) in reason for name, reason in skipped.items())


@pytest.mark.parametrize("content", [b"", b"no picture", cv2.imencode(".png", GREY)[1].tobytes()[:40]])
def test_a_single_bad_picture_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="bad.png"):
        list(read_pictures(locate(str(path)), never_skip))


@pytest.mark.parametrize(
    "address", ["rtsp://user:secret@10.0.0.1/live", "http://user:secret@host/", "0", "12", "/dev/video7"]
)
def test_streams_and_cameras_are_refused_without_their_password(address: str) -> None:
    with pytest.raises(InputError, match="no stream and no camera") as error:
        locate(address)
    assert "secret" not in str(error.value)


def test_a_file_with_a_number_for_a_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("0").write_bytes(cv2.imencode(".png", GREY)[1].tobytes())
    assert locate("0").kind == "picture"


@pytest.mark.parametrize("name", ["", "nothing.png", "a\0b", "x" * 5000, "/dev/null"])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        locate(name)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        locate(str(tmp_path / "pipe.mp4"))


@pytest.mark.parametrize(
    ("name", "fourcc"), [("v.avi", "MJPG"), ("v.avi", "XVID"), ("v.mp4", "mp4v"), ("v.mkv", "MJPG"), ("v.mov", "mp4v")]
)
def test_a_video_gives_every_frame_with_its_own_time(tmp_path: Path, name: str, fourcc: str) -> None:
    path = write_video(tmp_path / name, frames=12, fps=10.0, fourcc=fourcc)
    found = locate(str(path))
    assert found.kind == "video"
    with Video(found.path) as video:
        assert (video.announced, video.size) == (12, (48, 64))
        assert video.fps == pytest.approx(10)
        frames = list(video.frames())
    assert [frame.index for frame in frames] == list(range(12))
    # mkv keeps times in whole milliseconds.
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(12) / 10, atol=0.001)
    # Lossy codecs keep a plain grey to within a few levels; the frames are 20 levels apart.
    np.testing.assert_allclose([frame.pixels.mean() for frame in frames], 20 * np.arange(12), atol=6)


def test_a_transport_stream_is_a_video(tmp_path: Path) -> None:
    # The writer for .ts wants MPEG-2 video; its first packet begins with the sync byte, as every 188th byte does.
    path = write_video(tmp_path / "v.ts", fourcc="mpg2")
    assert locate(str(path)).kind == "video"
    with Video(path) as video:
        assert len(list(video.frames())) == 12
    on_disc = tmp_path / "v.m2ts"
    on_disc.write_bytes(b"".join(b"\0\0\0\0" + b"G" + bytes(187) for _ in range(8)))
    assert locate(str(on_disc)).kind == "video"


@pytest.mark.parametrize("ahead", [True, False])
def test_frames_are_the_same_whoever_decodes_ahead(tmp_path: Path, ahead: bool) -> None:
    before = time.monotonic()
    with Video(write_video(tmp_path / "v.avi", frames=5)) as video:
        frames = list(video.frames(ahead))
    assert [frame.index for frame in frames] == list(range(5))
    assert [round(frame.pixels.mean() / 20) for frame in frames] == list(range(5))
    assert all(before <= frame.captured <= time.monotonic() for frame in frames)


def test_the_content_tells_a_video_not_the_ending(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi").rename(tmp_path / "clip")
    assert locate(str(tmp_path / "clip")).kind == "video"


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv", ".ts"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video\n" * 400,
        cv2.imencode(".png", GREY)[1].tobytes(),
        # What FFmpeg would take for a film, and open the file that it names.
        b"ffconcat version 1.0\nfile secret.avi\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.avi\n#EXT-X-ENDLIST\n",
        b"v=0\nm=video 5004 RTP/AVP 96\n",
    ],
)
def test_what_is_no_video_never_reaches_ffmpeg(
    tmp_path: Path, ending: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", None)
    path = tmp_path / f"clip{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a video"):
        locate(str(path))


@pytest.mark.parametrize("ending", ["", ".txt", ".m3u8", ".ffconcat"])
def test_a_playlist_is_no_picture_either(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"list{ending}"
    path.write_bytes(b"ffconcat version 1.0\nfile secret.avi\n")
    with pytest.raises(InputError):
        list(read_pictures(locate(str(path)), never_skip))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"", b"RIFF\0\0\0\0AVI LIST", b"\0\0\0\x18ftypisom", b"\x1a\x45\xdf\xa3", b"OggS", b"FLV\x01"]),
    st.binary(max_size=300),
)
def test_any_bytes_are_frames_or_an_input_error(tmp_path: Path, head: bytes, rest: bytes) -> None:
    path = tmp_path / "any.mp4"
    path.write_bytes(head + rest)
    try:
        found = locate(str(path))
        with Video(found.path) as video:
            list(video.frames())
    except InputError as error:
        assert "any.mp4" in str(error)
        assert "\n" not in str(error)


def test_a_cut_video_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.avi", frames=30).read_bytes()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with Video(cut) as video:
        frames = list(video.frames())
    assert 5 < len(frames) < 30
    assert [frame.index for frame in frames] == list(range(len(frames)))


def test_an_mp4_without_its_index_is_an_error(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", fourcc="mp4v").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be opened as a video"):
        Video(cut)


def test_a_video_without_a_frame_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Video(write_video(tmp_path / "v.avi")) as video:
        monkeypatch.setattr(video, "_read", lambda: (0.0, None, 0.0))
        with pytest.raises(InputError, match="not one frame"):
            list(video.frames())


def test_frames_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.avi")
    monkeypatch.setattr(source, "MOST_PIXELS", 64 * 48 - 1)
    with pytest.raises(InputError, match="64x48"):
        Video(path)


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([0.0, 0.5, 0.7], [0.0, 0.5, 0.7]),  # a variable rate is kept
        ([0.0, 0.0, 0.0], [0.0, 0.1, 0.2]),  # no clock: index / fps
        ([float("nan"), float("-inf"), float("nan")], [0.0, 0.1, 0.2]),
        ([-5.0, -4.9, -4.8], [0.0, 0.1, 0.2]),
    ],
)
def test_times_that_do_not_grow_are_counted_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stamps: list[float], times: list[float]
) -> None:
    with Video(write_video(tmp_path / "v.avi", fps=10.0)) as video:
        reads = iter([(stamp, GREY, 0.0) for stamp in stamps] + [(9.0, None, 0.0)])
        monkeypatch.setattr(video, "_read", lambda: next(reads))
        assert [frame.time for frame in video.frames()] == times


def test_a_video_left_early_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with Video(write_video(tmp_path / "v.avi")) as video:
        next(iter(video.frames()))
        reader = set(threading.enumerate()) - before
        # A daemon thread that is still inside FFmpeg when the program ends aborts it.
        assert len(reader) == 1 and not any(thread.daemon for thread in reader)
    assert set(threading.enumerate()) == before


@pytest.mark.real_data
def test_a_real_film(real_data: Path) -> None:
    with Video(real_data / "video" / "vtest.avi") as video:
        assert (video.announced, video.size, video.fps) == (795, (576, 768), 10.0)
        frames = [(frame.index, frame.time) for frame in video.frames()]
    assert [index for index, _ in frames] == list(range(795))
    np.testing.assert_allclose([time for _, time in frames], np.arange(795) / 10, atol=1e-6)
