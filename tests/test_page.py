"""The page over real HTTP: what it shows, who may see it, and that no client slows another."""

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator

import cv2
import feed_values
import numpy as np
import pytest
from feed_values import LABELS
from test_metrics import parsed
from test_outbox import wait_until

from deploy import page_server
from deploy.annotate import Shape
from deploy.detect_settings import PageSettings
from deploy.errors import InputError
from deploy.page import Page

TOKEN = "let-me-in.42"


@contextlib.contextmanager
def running(snapshot=feed_values.snapshot, shapes=None, **settings) -> Iterator[Page]:
    page = Page(PageSettings(**{"port": 0, **settings}), LABELS, snapshot, shapes)
    try:
        yield page
    finally:
        page.close()


def port(page: Page) -> int:
    return int(re.search(r":(\d+)/", page.address)[1])


def ask(page: Page, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port(page), timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_the_page_and_its_parts_need_nothing_from_elsewhere() -> None:
    with running() as page:
        code, headers, html = ask(page, "/")
        assert code == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Content-Security-Policy"].startswith("default-src 'self'; img-src 'self' blob:;")
        parts = re.findall(rb'(?:src|href)="([^"]+)"', html)
        assert {b"page.css", b"page.js", b"page.svg", b"metrics"} <= set(parts)
        for part in parts:
            if b".mjpg" in part or b".jpg" in part:
                continue
            code, _, content = ask(page, f"/{part.decode()}")
            # Nothing loads from another host, and nothing is evaluated, inline scripts and styles included.
            addresses = set(re.findall(rb"https?://[a-z0-9.]+", content))
            assert code in (200, 503) and addresses <= {b"http://www.w3.org"}
            assert b"eval(" not in content and b"innerHTML" not in content
        assert b"<style" not in html and not re.search(rb"<script(?! src)", html) and b" style=" not in html


def test_the_picture_is_the_newest_one_with_boxes_on_a_copy() -> None:
    shapes = {"door": [Shape("path", ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9)), True)]}
    with running(shapes=shapes) as page:
        assert ask(page, "/frame.jpg?feed=none")[0] == 404
        one = feed_values.result(1, size=(480, 640))
        page.result(one)
        code, headers, content = ask(page, "/frame.jpg?feed=door&width=300")
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert code == 200 and headers["X-Frame"] == "1" and headers["Cache-Control"] == "no-store"
        assert picture.shape == (240, 320, 3)  # the next width that is offered
        assert picture.std() > 5 and (one.frame.pixels == 40).all()
        # Another one than the first comes at once, and wider than it is no picture gets.
        page.result(feed_values.result(2, size=(480, 640)))
        code, headers, content = ask(page, "/frame.jpg?feed=door&after=1&width=9999999999999999999")
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert headers["X-Frame"] == "2" and picture.shape == (480, 640, 3) and abs(int(picture[470, 5, 0]) - 80) < 6
        assert ask(page, "/snapshot.jpg")[2][:2] == b"\xff\xd8"


def test_without_a_new_picture_the_answer_is_204_on_the_same_connection(monkeypatch) -> None:
    monkeypatch.setattr("deploy.page._PATIENCE", 0.05)
    with running() as page:
        page.result(feed_values.result())
        connection = http.client.HTTPConnection("127.0.0.1", port(page), timeout=20)
        codes = []
        for _ in range(3):
            connection.request("GET", "/frame.jpg?after=1")
            answer = connection.getresponse()
            codes.append((answer.status, answer.read()))
        assert codes == [(204, b"")] * 3
        assert ask(page, "/snapshot.jpg?feed=yard")[0] == 503
        connection.close()


def test_a_picture_is_made_once_for_all_who_ask_and_never_when_nobody_does(monkeypatch) -> None:
    made = []
    whole = cv2.imencode
    monkeypatch.setattr(cv2, "imencode", lambda *a: (made.append(1), whole(*a))[1])
    with running(fps=1000) as page:
        for index in range(20):
            page.result(feed_values.result(index))
        assert made == []
        askers = [threading.Thread(target=ask, args=(page, "/frame.jpg?width=320")) for _ in range(8)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
        assert made == [1]


def test_the_stream_has_one_jpeg_after_another() -> None:
    with running(fps=200) as page:
        page.result(feed_values.result())
        connection = http.client.HTTPConnection("127.0.0.1", port(page), timeout=20)
        connection.request("GET", "/stream.mjpg?feed=door")
        answer = connection.getresponse()
        assert answer.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=picture"
        for index in range(3):
            assert answer.readline() == b"--picture\r\n" and answer.readline() == b"Content-Type: image/jpeg\r\n"
            length = int(answer.readline().split(b":")[1])
            assert answer.readline() == b"\r\n"
            assert answer.read(length)[-2:] == b"\xff\xd9" and answer.readline() == b"\r\n"
            page.result(feed_values.result(index))
        connection.close()


def test_numbers_come_each_second_with_events_and_what_is_in_view() -> None:
    with running() as page:
        page.event(feed_values.event("opening"))
        page.result(feed_values.result(events=(feed_values.event("crossed", line="gate"),)))
        connection = http.client.HTTPConnection("127.0.0.1", port(page), timeout=20)
        connection.request("GET", "/events")
        answer = connection.getresponse()
        states = []
        for _ in range(3):  # a second apart or nearly so, and told in tenths or less
            states.append(json.loads(answer.readline().removeprefix(b"data: ")))
            assert answer.readline() == b"\n"
        connection.close()
        last = states[-1]
        assert last["at"] > states[0]["at"] and last["fps"] == 24.5 and last["age"] == {"p50": 40.0, "p95": 62.5}
        assert [event["kind"] for event in last["events"]] == ["opening", "crossed"]
        assert last["in_view"] == {"door": {"person": 1, "dog": 1}} and last["counts"]["door"]["path"]["in"] == 2
        assert last["last_result"]["door"] >= 0
        assert json.loads(ask(page, "/state.json")[2])["model"] == "yolo_int8.tflite"
        past = json.loads(ask(page, "/history.json")[2])
        assert past[-1]["fps"] == 24.5 and past[-1]["age_ms"] == 40.0 and past[-1]["in_view"] == {"person": 1, "dog": 1}
        page.event(feed_values.event("stalled"))
        wait_until(lambda: json.loads(ask(page, "/state.json")[2])["in_view"] == {})


def test_metrics_are_the_snapshot_s() -> None:
    with running() as page:
        code, headers, content = ask(page, "/metrics")
        assert code == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert parsed(content.decode())["slimdet_results_total", ()] == 280


def test_health_says_why_not() -> None:
    feeds = [feed_values.feed_status(), feed_values.feed_status("film", "ended", live=False)]
    with running(lambda: feed_values.snapshot(feeds=tuple(feeds)), healthy_seconds=0.3) as page:
        assert ask(page, "/healthz")[::2] == (503, b"door: running, no result yet\n")
        page.result(feed_values.result())
        assert ask(page, "/healthz")[::2] == (200, b"ok\n")
        feeds[0] = feed_values.feed_status(state="stalled", reason="no frame for 2 s")
        time.sleep(0.4)
        code, _, words = ask(page, "/healthz")
        assert (code, words) == (503, b"door: stalled, no result for 0 s (no frame for 2 s)\n")


def test_a_token_is_demanded_where_one_is_set() -> None:
    with running(token=TOKEN) as page:
        assert page.address.endswith(f"/?token={TOKEN}")
        for path in ("/", "/metrics", "/frame.jpg", "/events", "/nothing", f"/?token={TOKEN}x", "/?token="):
            assert ask(page, path)[0] == 401, path
        assert ask(page, "/", Authorization=f"Bearer {TOKEN[:-1]}")[0] == 401
        assert ask(page, "/", Cookie="slimdet_1=x; \x01;;=")[0] == 401
        assert ask(page, "/healthz")[::2] == (503, b"failing\n")  # for probes, without words
        code, headers, _ = ask(page, f"/?token={TOKEN}", Host="camera.lan")
        assert code == 200
        cookie = headers["Set-Cookie"]
        assert cookie == f"slimdet_{port(page)}={TOKEN}; HttpOnly; SameSite=Strict; Path=/"
        assert ask(page, "/metrics", Cookie=f"a=b; {cookie.split(';')[0]}")[0] == 200
        assert ask(page, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(page, "/healthz", Authorization=f"Bearer {TOKEN}")[2].startswith(b"door: ")
        for path in ("/", "/healthz", "/none"):
            assert TOKEN.encode() not in ask(page, path)[2]


def test_another_host_than_loopback_never_goes_without_a_token() -> None:
    with running(host="0.0.0.0") as one, running(host="0.0.0.0") as other:
        tokens = [re.search(r"\?token=(\S+)", page.address)[1] for page in (one, other)]
        assert len(set(tokens)) == 2 and all(len(token) >= 32 for token in tokens)
        assert ask(one, "/")[0] == 401 and ask(one, f"/?token={tokens[0]}")[0] == 200
    assert TOKEN not in repr(PageSettings(token=TOKEN))
    for token in ("", "a b", "é", "a;b", "x\n"):
        with pytest.raises(InputError, match="a token has"):
            Page(PageSettings(port=0, token=token), LABELS, feed_values.snapshot)


def test_the_loopback_address_of_ipv6_is_one_too() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running(host="::1") as page:
        assert page.address == f"http://[::1]:{port(page)}/"
        connection = http.client.HTTPConnection("::1", port(page), timeout=20)
        connection.request("GET", "/page.css")
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "", "127.0.0.1@evil.example", "127.0.0.1.evil.example"]
)
def test_another_name_is_refused_on_loopback(host: str) -> None:
    with running() as page:
        assert ask(page, "/state.json", Host=host)[0] == 421
        for right in ("localhost", "localhost:9", "127.0.0.1:8080", "[::1]:8080"):
            assert ask(page, "/page.css", Host=right)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/page.py", "/.", "/page.html", "/%00", "/x.css/"],
)
def test_only_the_page_s_own_paths_exist(path: str) -> None:
    with running() as page:
        assert ask(page, path)[0] == 404


def test_only_get_and_head_and_only_small_requests() -> None:
    with running() as page:
        code, headers, content = ask(page, "/page.css", "HEAD")
        assert code == 200 and int(headers["Content-Length"]) > 1000 and content == b""
        assert ask(page, "/", "POST")[0] == 501
        assert ask(page, "/", "<script>")[0] == 501 and b"script" not in ask(page, "/", "<script>")[2]
        assert ask(page, "/?" + "&".join(f"a{i}=1" for i in range(200)))[0] == 200
        long = b"GET /" + b"a" * 70_000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000
        for request in (*long, b"\x16\x03\x01\x02\r\n\r\n"):
            with contextlib.suppress(ConnectionError):
                with socket.create_connection(("127.0.0.1", port(page)), timeout=20) as raw:
                    raw.sendall(request)
                    assert b"200 OK" not in raw.recv(1000)
        # A body that nobody reads is not taken for a request.
        with socket.create_connection(("127.0.0.1", port(page)), timeout=20) as raw:
            head = b"GET /page.svg HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\n"
            raw.sendall(head + b"GET /state.json HTTP/1.1\r\n\r\n")
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
            assert answer.count(b"HTTP/1.1") == 1 and b"Connection: close" in answer


def test_too_many_clients_are_turned_away_and_room_is_made_again() -> None:
    with running(clients=3) as page:
        held = [socket.create_connection(("127.0.0.1", port(page)), timeout=20) for _ in range(3)]
        wait_until(lambda: len(page._server._open) == 3)
        with socket.create_connection(("127.0.0.1", port(page)), timeout=20) as more:
            assert more.recv(1000).startswith(b"HTTP/1.1 503 ")
        for one in held:
            one.close()
        wait_until(lambda: len(page._server._open) == 0)
        assert ask(page, "/")[0] == 200


def test_who_sends_a_byte_now_and_then_is_cut_off(monkeypatch) -> None:
    monkeypatch.setattr(page_server, "_HEAD_SECONDS", 0.5)
    with running() as page:
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", port(page)), timeout=20) as slow:
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - begin < 15:
                    slow.send(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - begin < 15


def test_a_client_that_does_not_read_slows_nobody(monkeypatch) -> None:
    monkeypatch.setattr(page_server.Handler, "timeout", 0.5)
    with running(fps=500) as page:
        page.result(feed_values.result(0, size=(720, 1280)))
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port(page)))
            deaf.sendall(b"GET /stream.mjpg?width=1280 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
            for index in range(40):
                one = feed_values.result(index, size=(8, 8))
                object.__setattr__(one.frame, "pixels", noise)
                page.result(one)
                assert ask(page, f"/frame.jpg?width=320&after={index}")[0] == 200
            wait_until(lambda: len(page._server._open) == 0)  # it was hung up on


def test_close_ends_every_connection_and_thread_at_once() -> None:
    before = threading.active_count()
    with running() as page:
        page.result(feed_values.result())
        streams = []
        for path in ("/events", "/stream.mjpg", "/frame.jpg?after=1"):
            raw = socket.create_connection(("127.0.0.1", port(page)), timeout=20)
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            streams.append(raw)
        streams.append(socket.create_connection(("127.0.0.1", port(page)), timeout=20))
        wait_until(lambda: len(page._server._open) == 4)
    for raw in streams:
        with contextlib.suppress(ConnectionError):
            while raw.recv(65536):
                pass
        raw.close()
    wait_until(lambda: threading.active_count() == before)


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with running() as page:
        with pytest.raises(InputError, match="cannot listen on 127.0.0.1, port .*: Address already in use; choose"):
            Page(PageSettings(port=port(page)), LABELS, feed_values.snapshot)
