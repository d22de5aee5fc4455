"""The page's HTTP server: few clients, small requests, deadlines, and only for those who may.

Bound to a loopback address it answers only requests that name one (a page elsewhere could otherwise reach it by a
name of its own, DNS rebinding). Bound to another, it demands a token: as ?token= once, which a cookie then keeps, or as
"Authorization: Bearer".
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import http.cookies
import io
import ipaddress
import socket
import socketserver
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from deploy.errors import InputError

#: Bytes of a request's line and headers together, and seconds that they may take, idle time before them included.
_MOST_HEAD, _HEAD_SECONDS = 16 << 10, 20.0
#: Seconds that a client may leave a write waiting.
_WRITE_SECONDS = 10.0
_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 17\r\nConnection: close\r\n\r\ntoo many clients\n"

#: Answers a request: the handler, and the query's values by name.
Route = Callable[["Handler", Mapping[str, str]], None]


class Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "slimdet", ""
    timeout = _WRITE_SECONDS

    def setup(self) -> None:
        super().setup()
        self._head = _Head(self.rfile)
        self.rfile = cast(io.BufferedReader, self._head)

    @property
    def page_server(self) -> PageServer:
        return cast(PageServer, self.server)

    def handle_one_request(self) -> None:
        self._head.left = _MOST_HEAD
        self.page_server.expect(self.connection)
        try:
            super().handle_one_request()
        except (OSError, http.client.HTTPException):  # the client has gone, was too slow or said too much
            self.close_connection = True

    def do_GET(self) -> None:
        self.page_server.has_come(self.connection)
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads would pass for the next request
        path, _, query = self.path.partition("?")
        try:
            values = dict(urllib.parse.parse_qsl(query, keep_blank_values=True, max_num_fields=16))
        except ValueError:
            values = {}
        if not self.page_server.access.names_us(self.headers.get("Host", "")):
            return self.send_text(421, "this page is asked for by the name it listens on, such as 127.0.0.1\n")
        self.allowed = self.page_server.access.allows(self.headers, values)
        route = self.page_server.routes.get(path)
        if not self.allowed and path != "/healthz":
            return self.send_text(401, "a token is needed: add ?token=… to the address, as printed at the start\n")
        if route is None:
            return self.send_text(404, "there is no such page\n")
        route(self, values)

    do_HEAD = do_GET

    def send_text(self, code: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_content(code, text.encode(), kind)

    def send_content(self, code: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.begin(code, kind, {"Content-Length": str(len(content)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(content)

    def begin(self, code: int, kind: str, headers: Mapping[str, str]) -> None:
        """Sends the head of an answer; without Content-Length the connection ends with it."""
        self.send_response(code)
        if "Content-Length" not in headers and code != 204:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in {"Content-Type": kind, **_SECURITY, **headers}.items():
            self.send_header(name, value)
        cookie = self.page_server.access.cookie() if getattr(self, "allowed", False) else None
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Of the base class's own: a request that is none. What it said is not repeated."""
        self.close_connection = True
        self.request_version = "HTTP/1.1"
        self.send_text(int(code), f"{http.client.responses.get(int(code), 'error')}\n")

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the token would stand there."""


class _Head:
    """Reads a request's head, and no more than was granted."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.left = _MOST_HEAD

    def readline(self, limit: int = -1) -> bytes:
        line: bytes = self._file.readline(min(limit, self.left + 1) if limit >= 0 else self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise http.client.LineTooLong("head")
        return line

    def close(self) -> None:
        self._file.close()


class Access:
    """Who may see the page."""

    def __init__(self, host: str, token: str | None) -> None:
        """token: None where everyone may who reaches the loopback address."""
        self._host, self._token = host, token
        self.port = 0

    def names_us(self, host_header: str) -> bool:
        if self._token is not None:
            return True  # who knows the token may use any name
        name = urllib.parse.urlsplit(f"//{host_header}").hostname if _is_plain(host_header) else None
        return name is not None and (name == self._host.lower() or is_loopback(name))

    def allows(self, headers: Any, query: Mapping[str, str]) -> bool:
        if self._token is None:
            return True
        given = [query.get("token", ""), headers.get("Authorization", "").removeprefix("Bearer ")]
        with contextlib.suppress(http.cookies.CookieError):
            cookies = http.cookies.SimpleCookie(headers.get("Cookie", ""))
            given += [cookies[self._cookie_name].value] if self._cookie_name in cookies else []
        # Each is compared, in a time that does not tell how much of it was right.
        return any([hmac.compare_digest(one.encode("utf-8", "replace"), self._token.encode()) for one in given])

    def cookie(self) -> str | None:
        if self._token is None:
            return None
        return f"{self._cookie_name}={urllib.parse.quote(self._token)}; HttpOnly; SameSite=Strict; Path=/"

    @property
    def _cookie_name(self) -> str:
        return f"slimdet_{self.port}"  # browsers do not tell ports apart


def _is_plain(host_header: str) -> bool:
    return bool(host_header) and not set(host_header) & set("/?#@\\ ")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine alone, by its name or address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class PageServer(ThreadingHTTPServer):
    """Listens from its construction on, serves from start to close."""

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, host: str, port: int, clients: int, access: Access, routes: Mapping[str, Route]) -> None:
        """port: 0 takes a free one. clients: connections at once; more are turned away. Raises InputError where it
        cannot listen."""
        self.access, self.routes, self._clients = access, routes, clients
        self._lock = threading.Lock()
        #: Open connections, each with its thread; and those that a request is expected from, until when.
        self._open: dict[socket.socket, threading.Thread | None] = {}
        self._expected: dict[socket.socket, float] = {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot listen on {host}, port {port}: {reason}; choose another host or port") from error
        access.port = self.server_address[1]
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.25,), name="page server", daemon=True
        )

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks DNS for our name, which may take long

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends all connections and threads, within a second."""
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()
        with self._lock:
            still_open = dict(self._open)
        for connection in still_open:
            _hang_up(connection)
        end = time.monotonic() + 0.7
        for thread in still_open.values():
            if thread is not None:
                thread.join(max(end - time.monotonic(), 0))
        self._thread.join(0.2)

    def expect(self, connection: socket.socket) -> None:
        """From now on the connection's next request has to come in time."""
        with self._lock:
            self._expected[connection] = time.monotonic() + _HEAD_SECONDS

    def has_come(self, connection: socket.socket) -> None:
        with self._lock:
            self._expected.pop(connection, None)

    def service_actions(self) -> None:
        """Several times a second: who sends a byte now and then, to hold a connection, is cut off."""
        now = time.monotonic()
        with self._lock:
            late = [connection for connection, end in self._expected.items() if now > end]
            for connection in late:
                del self._expected[connection]
        for connection in late:
            _hang_up(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._open) >= self._clients
            if not full:
                self._open[request] = None
        if full:
            request.settimeout(0)
            with contextlib.suppress(OSError):
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)
                self._expected.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
