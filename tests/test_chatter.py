import os
import subprocess
import sys
import threading

import pytest

from deploy.chatter import caught_stderr, without_chatter

LINE = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"


def test_only_the_known_line_is_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    with without_chatter():
        os.write(2, b"WARNING: first\n" + LINE + b"ERROR: second\nno end of line")
    os.write(2, b"; after\n")
    assert capfd.readouterr().err == "WARNING: first\nERROR: second\nno end of line; after\n"


def test_an_exception_passes_and_loses_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="reason"), without_chatter():
        os.write(2, b"ERROR: told\n" + LINE)
        raise ValueError("reason")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "ERROR: told\nafter\n"


def test_threads_at_once_leave_standard_error_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    def write(number: int) -> None:
        for _ in range(20):
            with without_chatter():
                os.write(2, LINE + b"%d\n" % number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"after\n")
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines[:-1]) == sorted(f"{number}" for number in range(4) for _ in range(20))
    assert lines[-1] == "after"


def test_all_is_caught_and_none_of_it_seen(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="reason"), caught_stderr() as caught:
        os.write(2, b"one\n" + LINE + b"\xff")
        raise ValueError("reason")
    os.write(2, b"after\n")
    assert caught.text == f"one\n{LINE.decode()}\N{REPLACEMENT CHARACTER}"
    assert capfd.readouterr().err == "after\n"


def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with without_chatter():
            pass
        with caught_stderr():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_standard_error_is_no_fault() -> None:
    lines = ["import os; os.close(2)", "from deploy.chatter import caught_stderr, silence_stderr, without_chatter"]
    lines += ["with without_chatter(): print('ran')"]
    lines += ["with caught_stderr() as caught: os.write(2, b'told')", "print(caught.text); silence_stderr()"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout == "ran\ntold\n"


def test_silence_keeps_what_was_written_before() -> None:
    lines = ["import os, sys", "from deploy.chatter import silence_stderr", "print('before', file=sys.stderr)"]
    lines += ["silence_stderr()", "print('after', file=sys.stderr, flush=True)", "os.write(2, b'after')"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stderr == "before\n"
