import sys
import tempfile
from pathlib import Path

from benchmarks import detect_process
from benchmarks.detect_process import detect_command, last_words, running


def test_lines_go_to_standard_output_unless_told_otherwise() -> None:
    command = detect_command(Path("m.tflite"), "pattern", ["--track"])
    assert command[-5:] == ["--source", "pattern", "--track", "--jsonl", "-"]
    assert detect_command(Path("m.tflite"), "0", ["--jsonl", "a.jsonl"])[-2:] == ["--jsonl", "a.jsonl"]


def test_a_process_that_does_not_end_is_killed(monkeypatch) -> None:
    monkeypatch.setattr(detect_process, "PATIENCE", 0.2)
    deaf = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(100)"
    with tempfile.TemporaryFile() as noise:
        with running([sys.executable, "-c", deaf], noise) as process:
            assert process.stdout is not None and process.stdout.readline() == b"1\n"
        assert process.returncode == -9
        assert last_words(noise) == "no word"


def test_one_that_writes_much_and_ends_when_told() -> None:
    """More than a pipe holds is waiting to be read when it is told to end."""
    loud = "while True: print('x' * 1000)"
    with tempfile.TemporaryFile() as noise:
        with running([sys.executable, "-c", loud], noise) as process:
            assert process.stdout is not None and process.stdout.readline()
        assert process.returncode == -15


def test_the_last_words() -> None:
    with tempfile.TemporaryFile() as noise:
        with running([sys.executable, "-c", "import sys\nprint('a', file=sys.stderr)\nsys.exit('last')"], noise) as one:
            one.wait()
        assert last_words(noise) == "last"
