"""Signals as words; each test sends them to this very process."""

import os
import signal
import threading
import time

import pytest

from deploy.signals import Signals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_is_told_again_and_again(number: int) -> None:
    before = signal.getsignal(number)
    with Signals(reload=True) as signals:
        assert signals.wait(0.0) is None
        send(number)
        assert signals.wait(5.0) == signals.wait(5.0) == "stop"
    assert signal.getsignal(number) is before


def test_reload_is_told_once() -> None:
    with Signals(reload=True) as signals:
        send(signal.SIGHUP)
        assert signals.wait(5.0) == "reload"
        assert signals.wait(0.0) is None
        send(signal.SIGHUP)
        send(signal.SIGTERM)
        assert signals.wait(5.0) == "stop"


def test_a_signal_ends_the_wait() -> None:
    with Signals(reload=False) as signals:
        threading.Timer(0.05, send, (signal.SIGTERM,)).start()
        begin = time.monotonic()
        assert signals.wait(30.0) == "stop"
        assert time.monotonic() - begin < 25  # it would be 30 without


def test_a_second_ctrl_c_does_not_wait() -> None:
    with Signals(reload=False):
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
            time.sleep(5)
