"""Lines that stay, and one on a terminal that is rewritten."""

import io

import pytest

from deploy.result import Event
from deploy.run_log import RunLog


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")


def test_an_event_is_one_plain_line() -> None:
    stream = io.StringIO()
    log = RunLog(stream)
    log.event(Event("door", "waiting", 0.0, "it\nwas \x1b[31mrefused"))
    log.event(Event("", "model", 0.0, "b instead of a"))
    log.status("not on a file")
    log.close()
    assert stream.getvalue() == "door: waiting: it was \N{REPLACEMENT CHARACTER}[31mrefused\nmodel: b instead of a\n"


def test_the_status_stays_below_the_lines() -> None:
    stream = Terminal()
    log = RunLog(stream)
    log.status("12 fps")
    log.status("9 fps")
    log.line("door: running")
    log.close()
    wipe, short = "\r" + " " * 6 + "\r", "\r" + " " * 5 + "\r"
    assert stream.getvalue() == f"12 fps{wipe}9 fps{short}door: running\n9 fps{short}"


def test_outside_of_a_journal_lines_have_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM")
    stream = io.StringIO()
    RunLog(stream).line("x")
    date, clock, word = stream.getvalue().split()
    assert (len(date), len(clock), word) == (10, 8, "x")


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    stream = io.StringIO()
    log = RunLog(stream)
    stream.close()
    log.line("x")
