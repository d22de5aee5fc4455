"""What a webhook's server gets, and what refusals, redirects and silence cost: bounded time, one line, no secret."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import feed_values
import pytest
from feed_values import LABELS

from deploy import webhook
from deploy.detect_settings import LinkSettings
from deploy.errors import InputError
from deploy.outbox import Outbox
from deploy.webhook import Webhook

SECRET = "hunter2"


@contextlib.contextmanager
def server(*codes: int) -> Iterator[tuple[str, list]]:
    """Answers with the codes in turn, the last one for ever; gives its address and the requests that came."""
    came: list[tuple[str, dict, dict]] = []
    left = list(codes)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            came.append((self.path, dict(self.headers), body))
            self.send_response(left.pop(0) if len(left) > 1 else left[0])
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{http.server_port}/hook?key={SECRET}", came
        finally:
            http.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(webhook, "_FIRST_WAIT", 0.01)


def test_an_event_is_posted_as_json_with_the_secret_in_a_header() -> None:
    with server(200) as (url, came):
        output = Webhook(LinkSettings(url, SECRET), LABELS)
        output.event(feed_values.event("stalled"))
        output.result(feed_values.result(events=(feed_values.event("crossed", line="gate"),)))
        output.close()
    assert [body["event"]["kind"] for _, _, body in came] == ["stalled", "crossed"]
    path, headers, body = came[0]
    assert path == f"/hook?key={SECRET}" and headers["Authorization"] == f"Bearer {SECRET}"
    assert headers["Content-Type"] == "application/json" and set(body) == {"id", "event"}
    assert came[0][2]["id"] != came[1][2]["id"]


def test_results_are_sent_every_so_often_for_each_feed() -> None:
    with server(204) as (url, came):
        output = Webhook(LinkSettings(url, results_seconds=60), LABELS)
        for index in range(3):
            output.result(feed_values.result(index))
            output.result(feed_values.result(index, "yard"))
    assert [(body["result"]["feed"], body["result"]["frame"]) for _, _, body in came] == [("door", 0), ("yard", 0)]
    assert came[0][2]["result"]["detections"][0]["track"] == 7


def test_user_and_password_in_the_address_become_a_header() -> None:
    with server(200) as (url, came):
        Webhook(LinkSettings(url.replace("//", "//me:a%3Ab@")), LABELS).event(feed_values.event())
    assert came[0][1]["Authorization"] == "Basic bWU6YTpi"


@pytest.mark.parametrize(
    ("codes", "tries", "error"),
    [
        ((500, 503, 200), 3, None),
        ((429, 200), 2, None),
        ((502,), 3, "answered 502 Bad Gateway"),
        ((404,), 1, "answered 404 Not Found"),
        ((401,), 1, "answered 401 Unauthorized"),
        ((302,), 1, r"answered with a redirect \(302\), which is not followed"),
        ((307,), 1, r"answered with a redirect \(307\), which is not followed"),
    ],
)
def test_only_what_may_get_better_is_tried_again(codes: tuple[int, ...], tries: int, error: str | None) -> None:
    with server(*codes) as (url, came):
        output = Webhook(LinkSettings(url, SECRET), LABELS)
        if error is None:
            output.event(feed_values.event())
        else:
            with pytest.raises(InputError, match=f"the webhook on 127.0.0.1 {error}; look after it") as caught:
                output.event(feed_values.event())
            assert SECRET not in str(caught.value)
    assert len(came) == tries and len({body["id"] for _, _, body in came}) == 1


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(InputError, match="127.0.0.1 cannot be reached: Connection refused"):
        Webhook(LinkSettings(f"http://127.0.0.1:{port}/{SECRET}"), LABELS).event(feed_values.event())


def test_a_server_that_is_silent_or_dripping_costs_bounded_time_and_never_slows_the_feed(monkeypatch) -> None:
    monkeypatch.setattr(webhook, "_STEP_SECONDS", 0.2)
    monkeypatch.setattr(webhook, "_WHOLE_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        output = Webhook(LinkSettings(url), LABELS)
        with pytest.raises(InputError, match="cannot be reached: took too long"):
            output.event(feed_values.event())  # the backlog takes the connection, nobody answers
        for _ in range(3):
            listener.accept()[0].close()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        for _ in range(100):
                            client.send(b"H")
                            time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        outbox = Outbox(output, warn=lambda _: None)
        begin = time.monotonic()
        for index in range(50):
            outbox.offer(feed_values.result(index, events=(feed_values.event("crossed"),)))
        outbox.close(0.3)
        assert time.monotonic() - begin < 5
        assert outbox.status().dropped >= 50 - 4 - 1 - 3


@pytest.mark.parametrize(
    "url",
    ["", "hook", "ftp://h/hunter2", "http:///hunter2", "http://h:x/hunter2", "http://h/hunter2 x", "http://[h/hunter2"],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Webhook(LinkSettings(url), LABELS)
    assert SECRET not in str(caught.value)


def test_secrets_are_checked_and_never_shown() -> None:
    with pytest.raises(InputError, match="not both"):
        Webhook(LinkSettings("http://me:pw@h/", SECRET), LABELS)
    with pytest.raises(InputError, match="printable ASCII"):
        Webhook(LinkSettings("http://h/", f"{SECRET}\r\nX: y"), LABELS)
    assert SECRET not in repr(LinkSettings(f"http://h/{SECRET}", SECRET))
