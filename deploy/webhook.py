"""Events, and results now and then, to an HTTP address of the user's: POST with JSON, bounded in time and tries."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import random
import re
import secrets
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.detect_settings import LinkSettings
from deploy.errors import InputError
from deploy.result import Event, Result
from deploy.result_json import event_json, result_json
from deploy.status import Snapshot

#: How often one message is tried, and seconds before the second try, doubled before each further one.
_TRIES, _FIRST_WAIT = 3, 0.5
#: Seconds for one step of a request (a name, a connection, a read), and for a whole one.
_STEP_SECONDS, _WHOLE_SECONDS = 5.0, 10.0


class Webhook:
    """Sends {"id", "event"} and {"id", "result"}; a message that is tried again keeps its id.

    Tried again: no connection, no answer in time, 429, 5xx. Not: other answers. A redirect is an error, as the secret
    would go elsewhere.
    """

    name = "webhook"

    def __init__(
        self, settings: LinkSettings, labels: Sequence[str], snapshot: Callable[[], Snapshot] | None = None
    ) -> None:
        """Raises InputError where the address is none, without repeating it."""
        self._settings, self._labels = settings, labels
        self._target = _parse(settings)
        self._last: dict[str, float] = {}

    def result(self, result: Result) -> None:
        """Raises InputError where a message could not be delivered."""
        for event in result.events:
            self.event(event)
        every, now = self._settings.results_seconds, time.monotonic()
        if every is not None and now - self._last.get(result.feed, float("-inf")) >= every:
            self._last[result.feed] = now
            self._send({"result": result_json(result, self._labels)})

    def event(self, event: Event) -> None:
        """As result."""
        self._send({"event": event_json(event)})

    def close(self) -> None:
        """Nothing to finish: each message has its own connection."""

    def _send(self, value: Mapping[str, Any]) -> None:
        body = json.dumps({"id": secrets.token_hex(8), **value}, allow_nan=False).encode()
        for trial in range(_TRIES):
            if trial:
                time.sleep(_FIRST_WAIT * 2 ** (trial - 1) * random.uniform(0.75, 1.25))
            trouble, again = _post(self._target, body)
            if not trouble:
                return
            if not again:
                break
        raise InputError(f"the webhook on {self._target.host} {trouble}; look after it, or correct the address")


@dataclasses.dataclass(frozen=True)
class _Target:
    tls: bool
    host: str
    port: int | None
    path: str = dataclasses.field(repr=False)
    headers: Mapping[str, str] = dataclasses.field(repr=False)


def _parse(settings: LinkSettings) -> _Target:
    law = "a webhook's address is http(s)://host[:port]/path"
    try:
        parts = urllib.parse.urlsplit(settings.url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InputError(f"{law}; host or port of the one given cannot be read, correct it") from None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[!-~]+", f"{host}{path}"):
        raise InputError(f"{law}; the one given begins otherwise, lacks its host or has odd letters, correct it")
    headers = {"Content-Type": "application/json", "User-Agent": "slimdet", "Connection": "close"}
    if settings.secret is not None:
        if parts.username is not None:
            raise InputError("a webhook has a secret or user:password@ in its address, not both; leave one out")
        if not re.fullmatch(r"[!-~]+", settings.secret):
            raise InputError("a webhook's secret has printable ASCII letters without spaces; choose another one")
        headers["Authorization"] = f"Bearer {settings.secret}"
    elif parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return _Target(parts.scheme == "https", host, port, path, headers)


def _post(target: _Target, body: bytes) -> tuple[str, bool]:
    """What went wrong, "" for nothing, and whether it is worth another try."""
    kind = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
    connection = kind(target.host, target.port, timeout=_STEP_SECONDS)
    watch: threading.Timer | None = None
    try:
        connection.connect()
        # A server that sends a byte now and then never exceeds the time of one step.
        watch = threading.Timer(_WHOLE_SECONDS, _hang_up, [connection.sock])
        watch.daemon = True
        watch.start()
        connection.request("POST", target.path, body, dict(target.headers))
        code = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        reason = "took too long" if isinstance(error, TimeoutError) else getattr(error, "strerror", None)
        return f"cannot be reached: {reason or type(error).__name__}", True
    finally:
        if watch is not None:
            watch.cancel()
        connection.close()
    if 200 <= code < 300:
        return "", False
    if 300 <= code < 400:
        return f"answered with a redirect ({code}), which is not followed", False
    return f"answered {code} {http.client.responses.get(code, '')}".strip(), code == 429 or code >= 500


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
