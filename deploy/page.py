"""A page in the browser: the live picture with boxes, the run in numbers, and its last ten minutes.

| path | what |
|---|---|
| / | the page; page.css, page.js and page.svg are its own |
| /frame.jpg?feed=&width=&after= | the newest picture, once it is not number `after` (X-Frame); else 204 |
| /snapshot.jpg?feed=&width= | the newest picture at once |
| /stream.mjpg?feed=&width= | the same without end, as multipart/x-mixed-replace |
| /state.json, /history.json, /events | the state, the last ten minutes, the state each second (text/event-stream) |
| /healthz | 200, or 503 and why |
| /metrics | for Prometheus |
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources

from deploy import metrics
from deploy.annotate import Shape
from deploy.detect_settings import PageSettings
from deploy.errors import InputError
from deploy.page_pictures import WIDTHS, Pictures
from deploy.page_server import Access, Handler, PageServer, Route, is_loopback
from deploy.page_state import State
from deploy.result import Event, Result
from deploy.status import Snapshot

#: Seconds that a request for another picture or state waits for one.
_PATIENCE = 5.0
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class Page:
    """Serves from its construction to close; a connection has its own thread, so that none slows another."""

    name = "page"

    def __init__(
        self,
        settings: PageSettings,
        labels: Sequence[str],
        snapshot: Callable[[], Snapshot],
        shapes: Mapping[str, Sequence[Shape]] | None = None,
    ) -> None:
        """snapshot is called in other threads, from now on. shapes: by feed. Raises InputError where it cannot listen,
        or for a token that is empty or has other letters than A-Z a-z 0-9 - _ . ~"""
        token = settings.token
        if token is not None and not (token and all(c.isascii() and (c.isalnum() or c in "-_.~") for c in token)):
            raise InputError("a token has one or more of the letters A-Z a-z 0-9 - _ . ~; choose another token")
        if token is None and not is_loopback(settings.host):
            token = secrets.token_urlsafe(24)
        self._settings, self._snapshot = settings, snapshot
        routes: dict[str, Route] = {
            "/": _file("page.html"),
            "/page.css": _file("page.css"),
            "/page.js": _file("page.js"),
            "/page.svg": _file("page.svg"),
            "/frame.jpg": self._frame,
            "/snapshot.jpg": self._still,
            "/stream.mjpg": self._stream,
            "/state.json": self._state_once,
            "/history.json": lambda handler, _: handler.send_text(200, self._state.history(), "application/json"),
            "/events": self._events,
            "/healthz": self._health,
            "/metrics": lambda handler, _: handler.send_text(200, metrics.as_text(snapshot()), metrics.CONTENT_TYPE),
        }
        access = Access(settings.host, token)
        self._server = PageServer(settings.host, settings.port, settings.clients, access, routes)
        self._pictures = Pictures(labels, shapes or {}, settings.fps)
        self._state = State(labels, snapshot)
        self._closed = False
        #: Address for people, with the token: to be printed once and never logged.
        self.address = _address(settings.host, access.port, token)
        self._server.start()

    def result(self, result: Result) -> None:
        self._pictures.put(result)
        self._state.put(result)

    def event(self, event: Event) -> None:
        self._state.event(event)

    def close(self) -> None:
        self._closed = True
        self._pictures.close()
        self._state.close()
        self._server.close()

    def _frame(self, handler: Handler, query: Mapping[str, str]) -> None:
        feed = self._feed(handler, query)
        if feed is None:
            return
        jpeg = self._pictures.wait(feed, _number(query, "after", 0), _number(query, "width", WIDTHS[-1]), _PATIENCE)
        if jpeg is None:
            handler.begin(204, "image/jpeg", {})
        else:
            handler.send_content(200, jpeg.content, "image/jpeg", {"X-Frame": str(jpeg.number)})

    def _still(self, handler: Handler, query: Mapping[str, str]) -> None:
        feed = self._feed(handler, query)
        if feed is None:
            return
        jpeg = self._pictures.wait(feed, 0, _number(query, "width", WIDTHS[-1]), _PATIENCE)
        if jpeg is None:
            handler.send_text(503, "there is no picture yet; try again\n")
        else:
            handler.send_content(200, jpeg.content, "image/jpeg")

    def _stream(self, handler: Handler, query: Mapping[str, str]) -> None:
        feed = self._feed(handler, query)
        if feed is None:
            return
        handler.begin(200, "multipart/x-mixed-replace; boundary=picture", {})
        number, width = 0, _number(query, "width", WIDTHS[-1])
        while not self._closed and handler.command != "HEAD":
            jpeg = self._pictures.wait(feed, number, width, _PATIENCE)
            if jpeg is not None:
                head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg.content)}\r\n\r\n"
                handler.wfile.write(head.encode() + jpeg.content + b"\r\n")
                number = jpeg.number
                time.sleep(1 / self._settings.fps / 2)  # what comes meanwhile is skipped

    def _state_once(self, handler: Handler, _: Mapping[str, str]) -> None:
        state = self._state.wait(0, _PATIENCE)
        handler.send_text(*((503, "{}") if state is None else (200, state[1])), "application/json")

    def _events(self, handler: Handler, _: Mapping[str, str]) -> None:
        handler.begin(200, "text/event-stream; charset=utf-8", {})
        number = 0
        while not self._closed and handler.command != "HEAD":
            state = self._state.wait(number, _PATIENCE)
            if state is not None:
                number, text = state
                handler.wfile.write(f"data: {text}\n\n".encode())

    def _health(self, handler: Handler, _: Mapping[str, str]) -> None:
        ill = self._state.health(self._settings.healthy_seconds)
        words = "\n".join(ill or ["ok"]) if handler.allowed else ("failing" if ill else "ok")
        handler.send_text(503 if ill else 200, f"{words}\n")

    def _feed(self, handler: Handler, query: Mapping[str, str]) -> str | None:
        """The feed that is asked for, by default the first one; None when there is none, which has been answered."""
        known = [feed.name for feed in self._snapshot().feeds] or self._pictures.feeds()
        feed = query.get("feed", known[0] if known else "")
        if feed not in known:
            handler.send_text(404, "there is no such feed\n")
            return None
        return feed


def _file(name: str) -> Route:
    content = resources.files("deploy").joinpath(name).read_bytes()
    kind = f"{_KINDS[name.rpartition('.')[2]]}; charset=utf-8"
    return lambda handler, _: handler.send_content(200, content, kind)


def _number(query: Mapping[str, str], name: str, otherwise: int) -> int:
    text = query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else otherwise


def _address(host: str, port: int, token: str | None) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/" + (f"?token={token}" if token else "")
