"""An RTSP server on the loopback address whose pictures tell when they were made: for feed_faults.py and by hand.

/usr/bin/python3 benchmarks/rtsp_server.py --port 8554 [--clip street.mp4] [--size 640x480] [--fps 30]

It serves rtsp://127.0.0.1:PORT/live, H.264 without B-frames, a key frame a second, and needs Debian's python3-gi,
gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-ugly and, for a clip, ffmpeg. Python's own library is all else, because
the Python that has gi seldom has more. Each picture's top left corner holds the monotonic clock, which all processes of
a machine share, in milliseconds: 32 squares of BLOCK pixels, eight in a row, the highest bit first, white is 1.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import time
from typing import IO, Any

#: Pixels of a square's side: large enough that compression leaves it black or white.
BLOCK = 16
_WHITE, _BLACK = b"\xeb", b"\x10"


def clock_rows(milliseconds: int) -> list[bytes]:
    """The four rows of eight squares, each as one line of luma of 8 * BLOCK pixels."""
    bits = f"{milliseconds % 2**32:032b}"
    squares = [(_WHITE if bit == "1" else _BLACK) * BLOCK for bit in bits]
    return [b"".join(squares[row : row + 8]) for row in (0, 8, 16, 24)]


def read_clock(corner: Any) -> int:
    """Milliseconds that the squares in `corner`, (>= 4 * BLOCK, >= 8 * BLOCK, 3) or without channels, tell."""
    value = 0
    for bit in range(32):
        y, x = (bit // 8) * BLOCK + BLOCK // 2, (bit % 8) * BLOCK + BLOCK // 2
        value = value * 2 + int(corner[y - 2 : y + 2, x - 2 : x + 2].mean() > 127)
    return value


def stamp(picture: bytearray, width: int) -> None:
    """Draws the time now into a picture in I420."""
    for row, line in enumerate(clock_rows(time.monotonic_ns() // 1_000_000)):
        for y in range(row * BLOCK, (row + 1) * BLOCK):
            picture[y * width : y * width + len(line)] = line


class _Pictures:
    """I420 pictures for all connections: a clip's, over and over, or a bar that moves."""

    def __init__(self, clip: str | None, width: int, height: int, fps: int) -> None:
        self._width, self._height, self._number = width, height, 0
        self._size = width * height * 3 // 2
        self._pipe: IO[bytes] | None = None
        if clip:
            scale = f"fps={fps},scale={width}:{height}"
            command = ["ffmpeg", "-v", "error", "-stream_loop", "-1", "-i", clip, "-vf", scale, "-pix_fmt", "yuv420p"]
            decoder = subprocess.Popen([*command, "-f", "rawvideo", "-"], stdout=subprocess.PIPE, bufsize=self._size)
            self._pipe = decoder.stdout  # its end ends the decoder too

    def next(self) -> bytearray:
        self._number += 1
        if self._pipe is not None:
            picture = bytearray(self._pipe.read(self._size))
        else:
            bar = self._number * 4 % self._width
            line = bytearray(b"\x60" * self._width)
            line[bar : bar + 24] = b"\xc0" * len(line[bar : bar + 24])
            picture = bytearray(bytes(line) * self._height + b"\x80" * (self._size - self._width * self._height))
        stamp(picture, self._width)
        return picture


def main() -> None:
    gi = importlib.import_module("gi")
    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    GLib, Gst, GstRtspServer = (
        importlib.import_module(f"gi.repository.{name}") for name in ("GLib", "Gst", "GstRtspServer")
    )
    parser = argparse.ArgumentParser(description="an RTSP server whose pictures tell when they were made")
    parser.add_argument("--port", type=int, default=8554)
    parser.add_argument("--clip")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--fps", type=int, default=30)
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    Gst.init(None)
    pictures = _Pictures(given.clip, width, height, given.fps)

    def configure(_: Any, media: Any) -> None:
        source = media.get_element().get_child_by_name("source")

        def push() -> bool:
            buffer = Gst.Buffer.new_wrapped(bytes(pictures.next()))
            return bool(source.emit("push-buffer", buffer) == Gst.FlowReturn.OK)

        timer = GLib.timeout_add(1000 // given.fps, push)
        media.connect("unprepared", lambda _: GLib.source_remove(timer))

    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        "( appsrc name=source is-live=true do-timestamp=true format=time max-buffers=2 leaky-type=downstream "
        f"caps=video/x-raw,format=I420,width={width},height={height},framerate={given.fps}/1 "
        "! queue max-size-buffers=2 leaky=downstream "
        f"! x264enc tune=zerolatency speed-preset=ultrafast bitrate=4000 key-int-max={given.fps} bframes=0 threads=1 "
        "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    factory.set_shared(True)
    factory.connect("media-configure", configure)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(given.port))
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        raise SystemExit(f"port {given.port} is taken; give another")
    print("serving", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
