"""A step in a process of its own: values, errors, signals, and an end when the parent ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.errors import ConversionError, InputError
from toolchain import child_process

_ROOT = Path(__file__).parents[1]


def test_the_value_comes_back_and_the_folder_goes() -> None:
    with child_process.folder() as place:
        assert child_process.run("json:dumps", {"obj": [1, 2]}, place, step="sum") == "[1, 2]"
    assert not place.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        ("ctypes:string_at", {"ptr": 0}, "signal SIGSEGV"),
        ("os:abort", {}, "signal SIGABRT"),
        ("subprocess:call", {"args": "kill -9 $PPID", "shell": True}, "lack of memory"),
        ("numpy:zeros", {"shape": [2**50]}, "not enough memory"),
        ("json:loads", {"s": "{"}, "JSONDecodeError"),
        ("os:mkdir", {"path": "/proc/none"}, "/proc/none"),
        ("os:_exit", {"status": 3}, "exit code 3"),
    ],
)
def test_every_death_is_a_sentence(tmp_path: Path, function: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        child_process.run(function, arguments, tmp_path, step="conversion of 'toy'")
    assert str(caught.value).startswith("the conversion of 'toy' ")
    assert "\n" not in str(caught.value)


def test_an_error_of_ours_is_raised_again_as_what_it_was(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere.png") as caught:
        child_process.run("deploy.picture:read_picture", {"path": "nowhere.png"}, tmp_path, step="step")
    assert "the step" not in str(caught.value)


def test_the_child_sees_neither_the_callers_keras_settings_nor_its_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    for key, value in (("KERAS_BACKEND", "tensorflow"), ("TF_USE_LEGACY_KERAS", None)):
        assert child_process.run("os:getenv", {"key": key}, tmp_path, step="look") == value


def test_a_training_keeps_its_memory_unless_the_user_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seen(trains: bool) -> str | None:
        found: str | None = child_process.run(
            "os:getenv", {"key": "GLIBC_TUNABLES"}, tmp_path, step="look", trains=trains
        )
        return found

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert seen(True) == child_process._KEEP_MEMORY["GLIBC_TUNABLES"] and seen(False) is None
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert seen(True) == seen(False) == "glibc.malloc.check=0"


_WAITING_PARENT = """
import sys
sys.path.insert(0, {root!r})
from toolchain import child_process
with child_process.folder() as place:
    print(place, flush=True)
    child_process.run("signal:pause", {{}}, place, step="wait")
"""


def _waiting_parent() -> tuple[subprocess.Popen[str], Path]:
    """A process whose child has started and waits for ever."""
    code = _WAITING_PARENT.format(root=str(_ROOT))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    place = Path(parent.stdout.readline().strip())
    _wait(lambda: bool(_processes_of(place)), "the child starts")
    # Its watcher runs once its imports are done.
    time.sleep(1.0)
    return parent, place


def _processes_of(place: Path) -> list[int]:
    """Ids of the processes that were started with that folder as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(place).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _wait(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_child_and_folder_go_with_the_parent(how: signal.Signals) -> None:
    parent, place = _waiting_parent()
    os.kill(parent.pid, how)
    parent.communicate(timeout=60)
    assert parent.returncode == -how
    _wait(lambda: not _processes_of(place) and not place.exists(), "the child has ended and its folder is gone")
