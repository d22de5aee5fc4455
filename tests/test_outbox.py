"""A slow, failing or hanging output never slows the feed, and what it missed is counted."""

import threading
import time

import feed_values
import pytest

from deploy.errors import InputError
from deploy.outbox import Outbox, Written
from deploy.output import JsonLines
from deploy.result import Event, Result


class Recorder:
    """Keeps what it was given; waits before each result until it is let go, and raises what is set."""

    name = "recorder"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.busy = threading.Event()
        self.taken: list[int | str] = []
        self.error: Exception | None = None
        self.closed = False

    def result(self, result: Result) -> None:
        self.busy.set()
        self.go.wait(20)
        if self.error:
            raise self.error
        self.taken.append(result.frame.index)

    def event(self, event: Event) -> None:
        self.taken.append(event.kind)

    def close(self) -> None:
        self.closed = True


def test_the_newest_results_win_and_the_rest_is_counted() -> None:
    output = Recorder()
    outbox = Outbox(output, capacity=2)
    outbox.offer(feed_values.result(0))
    assert output.busy.wait(20)
    for index in range(1, 10):
        outbox.offer(feed_values.result(index))
    status = outbox.status()
    assert (status.waiting, status.dropped, status.sent) == (2, 9 - 2, 0)
    output.go.set()
    outbox.close(20)
    assert output.taken == [0, 8, 9] and output.closed
    assert (outbox.status().sent, outbox.status().dropped, outbox.status().waiting) == (3, 7, 0)


def test_results_and_events_keep_their_order_and_a_flood_of_results_drops_no_event() -> None:
    output = Recorder()
    outbox = Outbox(output, capacity=1)
    outbox.offer(feed_values.result(0))
    assert output.busy.wait(20)
    outbox.offer_event(feed_values.event("stalled"))
    for index in range(1, 5):
        outbox.offer(feed_values.result(index))
    outbox.offer_event(feed_values.event("running"))
    output.go.set()
    outbox.close(20)
    assert output.taken == [0, "stalled", 4, "running"]


def test_events_are_bounded_too() -> None:
    output = Recorder()
    outbox = Outbox(output)
    outbox.offer(feed_values.result(0))
    assert output.busy.wait(20)
    for _ in range(300):
        outbox.offer_event(feed_values.event())
    assert (outbox.status().waiting, outbox.status().dropped) == (256, 300 - 256)
    output.go.set()
    outbox.close(20)


def test_lossless_waits_instead_of_dropping() -> None:
    output = Recorder()
    outbox = Outbox(output, capacity=1, lossless=True)

    def offer_all() -> None:
        for index in range(20):
            outbox.offer(feed_values.result(index))

    feeder = threading.Thread(target=offer_all)
    feeder.start()
    assert output.busy.wait(20)
    feeder.join(0.05)
    assert feeder.is_alive()  # one is with the output, one waits, and there is no room for a third
    output.go.set()
    feeder.join(20)
    outbox.close(None)
    assert output.taken == list(range(20)) and outbox.status().dropped == 0


def test_a_failing_output_is_told_once_counted_and_tried_again() -> None:
    output, told = Recorder(), []
    output.go.set()
    outbox = Outbox(output, capacity=8, warn=told.append)
    output.error = OSError(28, "No space left on device")
    for index in range(3):
        outbox.offer(feed_values.result(index))
    wait_until(lambda: outbox.status().failed == 3)
    assert outbox.status().error == "No space left on device"
    output.error = None
    outbox.offer(feed_values.result(3))
    outbox.close(20)
    assert output.taken == [3]
    assert outbox.status().error == "" and outbox.status().failed == 3
    assert told == ["output recorder: No space left on device"]


def test_the_text_of_a_foreign_error_is_not_told() -> None:
    output, told = Recorder(), []
    output.go.set()
    output.error = ValueError("mqtt://user:hunter2@broker is odd")
    outbox = Outbox(output, warn=told.append)
    outbox.offer(feed_values.result())
    outbox.close(20)
    assert told == ["output recorder: ValueError"] and outbox.status().error == "ValueError"


def test_lossless_raises_what_the_output_raised() -> None:
    output = Recorder()
    output.go.set()
    output.error = InputError("cannot write seen.jsonl: disk full; free some place")
    outbox = Outbox(output, capacity=1, lossless=True)
    with pytest.raises(InputError, match="disk full"):
        for index in range(50):
            outbox.offer(feed_values.result(index))
            time.sleep(0.01)
    with pytest.raises(InputError, match="disk full"):
        outbox.close()
    assert output.closed


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_output() -> None:
    output = Recorder()
    output.go.set()
    output.error = InputError("disk full")
    with pytest.raises(KeyboardInterrupt), Outbox(output, lossless=True) as outbox:
        outbox.offer(feed_values.result())
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="disk full"), Outbox(output, lossless=True) as outbox:
        outbox.offer(feed_values.result())


def test_close_lets_go_of_an_output_that_hangs() -> None:
    output = Recorder()
    outbox = Outbox(output)
    outbox.offer(feed_values.result(0))
    assert output.busy.wait(20)
    outbox.offer(feed_values.result(1))
    outbox.close(0.05)
    outbox.offer(feed_values.result(2))
    outbox.offer_event(feed_values.event())
    assert outbox.status().dropped == 3 and not output.closed
    output.go.set()
    wait_until(lambda: output.closed)
    assert output.taken == [0]


def test_a_failure_at_the_end_is_told_too() -> None:
    output, told = Recorder(), []

    def fail() -> None:
        raise InputError("cannot finish o.mp4; free some place")

    output.close = fail
    outbox = Outbox(output, warn=told.append)
    outbox.close(20)
    assert told == ["output recorder: cannot finish o.mp4; free some place"] and outbox.status().failed == 1


def test_a_function_is_an_output(tmp_path) -> None:
    taken: list[int] = []
    with JsonLines(str(tmp_path / "o.jsonl"), feed_values.LABELS) as lines:
        with Outbox(Written("jsonl", lambda one: lines.write(one.frame, one.found)), lossless=True) as outbox:
            for index in range(3):
                outbox.offer(feed_values.result(index))
                outbox.offer_event(feed_values.event())
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
    with Outbox(Written("w", lambda one: taken.append(one.frame.index), lambda one: taken.append(-1))) as outbox:
        outbox.offer(feed_values.result(5))
        outbox.offer_event(feed_values.event())
    assert taken == [5, -1]


def wait_until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)
