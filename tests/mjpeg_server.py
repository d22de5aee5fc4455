"""A camera that speaks HTTP, and misbehaves when it is told to: what live feeds are tested against."""

from __future__ import annotations

import base64
import http.server
import socket
import threading
import time
from typing import Any

import cv2
import numpy as np


def jpeg(level: int, size: tuple[int, int]) -> bytes:
    """A plain grey picture; size: (height, width)."""
    return cv2.imencode(".jpg", np.full((*size, 3), level, np.uint8))[1].tobytes()


class MjpegServer:
    """Serves http://127.0.0.1:PORT/cam, one picture after the other, each 4 levels of grey brighter, modulo 256."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.fps = 50.0
        self.size = (48, 64)
        #: Sends nothing more, and leaves connections open.
        self.stalled = False
        #: Answers with this status instead of pictures.
        self.status = 200
        #: Cuts every picture in its middle.
        self.cut = False
        #: Cuts one picture of so many; 0 none.
        self.cut_every = 0
        #: "user:password" that is asked for.
        self.login: str | None = None
        self.connections = 0
        self._sent = 0
        self._server: http.server.ThreadingHTTPServer | None = None
        self._generation = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/cam"

    def start(self) -> None:
        camera, generation = self, self._generation

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                camera.connections += 1
                camera._serve(self, generation)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass  # a client that has gone

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuses new connections and ends those that there are."""
        self._generation += 1
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def drop(self) -> None:
        """Ends the connections that there are, and takes new ones."""
        self.stop()
        self.start()

    def _serve(self, handler: http.server.BaseHTTPRequestHandler, generation: int) -> None:
        if self.login is not None:
            given = handler.headers.get("Authorization", "")
            if given != "Basic " + base64.b64encode(self.login.encode()).decode():
                handler.send_response(401)
                handler.send_header("WWW-Authenticate", 'Basic realm="cam"')
                handler.end_headers()
                return
        handler.send_response(self.status)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        while self._generation == generation and self.status == 200:
            if not self.stalled:
                cut = self.cut or (self.cut_every and self._sent % self.cut_every == 0)
                content = jpeg(self._sent * 4 % 256, self.size)
                content = content[: len(content) // 2] if cut else content
                self._sent += 1
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                handler.wfile.write(head.encode() + content + b"\r\n")
            time.sleep(1 / self.fps)
