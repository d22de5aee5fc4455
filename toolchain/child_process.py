"""Runs one dangerous step in a process of its own: values in as JSON, a value out as JSON, files beside them.

The converter can die of a signal, take all memory, or leave global state behind. In a child none of that reaches the
caller: a signal becomes a ConversionError with a sentence, an error of ours is raised again as what it was, and
everything else is told in its own last line. The child reads its standard input, which nobody writes to: when the
parent is gone, however it died, the child removes its folder and ends as well.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy import errors
from deploy.errors import ConversionError, SlimdetError

#: The child's environment: Keras 3 on TensorFlow with its own defaults whatever the user's keras.json says, and no
#: banner on standard error.
_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
#: glibc gives every large block back to the kernel and takes the next one from it, zeroed page by page, thousands of
#: times in a training step. A training keeps what it has, in huge pages where the kernel offers them. Other C libraries
#: do not look at it, and whoever has set it keeps what they set.
_KEEP_MEMORY = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in (("arena_max", 1), ("mmap_max", 0), ("trim_threshold", 2**40), ("hugetlb", 1))
    )
}
#: A conversion needs no GPU, and taking one would disturb a training beside it.
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1"}
_ERROR_CLASSES = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, SlimdetError)
}
_START = "import sys; {path}; from toolchain.child_process import main; main(sys.argv[1])"


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder for a child's files, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="slimdet-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def run(function: str, arguments: Mapping[str, Any], place: Path, *, step: str, trains: bool = False) -> Any:
    """Calls "package.module:function" with the keyword arguments (plain JSON values) in a new process; returns its JSON
    value.

    place is a folder of the caller's for this call alone; the child may write into it. step is what the user reads in
    an error: "conversion of 'tiny' to float32". trains: the child sees the GPUs that the user's environment shows, and
    keeps the memory that it has.

    Raises ConversionError when the process died of a signal or with an error that is none of ours; otherwise what it
    raised.
    """
    (place / "call.json").write_text(json.dumps({"function": function, "arguments": arguments}))
    root = str(Path(__file__).resolve().parents[1])
    # An installed package is found as it is; a checkout that is not installed must be put on the path.
    start = _START.format(path=f"root = {root!r}; root in sys.path or sys.path.insert(0, root)")
    defaults, forced = (_KEEP_MEMORY, {}) if trains else ({}, _NO_GPU)
    environment = {**defaults, **os.environ, **_ENVIRONMENT, "KERAS_HOME": str(place), **forced}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    with open(place / "stderr", "wb") as noise:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", start, str(place)],
            stdin=subprocess.PIPE,
            stdout=noise,
            stderr=noise,
            env=environment,
        )
        try:
            child.wait()
        finally:
            # Reached with the child alive on Ctrl-C only.
            child.kill()
            child.wait()
            assert child.stdin is not None
            child.stdin.close()
    return _result(child.returncode, place, step)


@contextmanager
def followed(told: Path, tell: Callable[[Any], object] | None) -> Iterator[None]:
    """Passes on, from a thread, the JSON value of each line that a child meanwhile writes into `told`."""
    if tell is None:
        yield
        return
    told.touch()
    end = threading.Event()

    def follow() -> None:
        with open(told, encoding="utf-8") as lines:
            rest = ""
            while True:
                last = end.is_set()
                rest += lines.read()
                *whole, rest = rest.split("\n")
                for line in whole:
                    tell(json.loads(line))
                if last:
                    return
                end.wait(0.2)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _result(code: int, place: Path, step: str) -> Any:
    noise = (place / "stderr").read_bytes().decode(errors="replace").strip()
    answer = place / "answer.json"
    if code == 0 and answer.is_file():
        return json.loads(answer.read_text())["value"]
    if code == 1 and answer.is_file():
        told = json.loads(answer.read_text())
        error = _ERROR_CLASSES.get(told["error"], ConversionError)
        sentence = told["text"] if told["error"] in _ERROR_CLASSES else f"the {step} failed: {told['text']}"
    else:
        last_words = noise.splitlines()[-1][:500] if noise and code > 0 else ""
        error, sentence = ConversionError, f"the {step} {_cause(code, last_words)}; nothing was written"
    raised = error(sentence)
    # For --debug, whose traceback prints notes.
    raised.add_note(noise[-8000:] or "the process wrote nothing to standard error")
    raise raised


def _cause(code: int, last_words: str) -> str:
    if code == -signal.SIGKILL:
        return "died of signal SIGKILL, mostly the kernel's answer to a lack of memory: free some or shrink the net"
    if code == -signal.SIGABRT:
        return "died of signal SIGABRT, by a check inside the library or for want of memory: --debug shows its words"
    if code < 0:
        return f"died of signal {signal.Signals(-code).name}, a fault inside the library: --debug shows its last words"
    # An error that is none of ours ends in the last line of its traceback.
    return f"failed with {last_words or f'exit code {code}'}: --debug shows all it said"


def _end_with_parent(place: Path) -> None:
    """Waits for the end of standard input, that is of the parent, then takes everything away."""
    while os.read(0, 1):
        pass
    shutil.rmtree(place, ignore_errors=True)
    os._exit(1)


def main(place_name: str) -> None:
    """What the child does: reads call.json in the folder, calls, writes answer.json. Exit code 0, or 1 with an error
    told."""
    place = Path(place_name)
    # The parent answers for Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(place,), daemon=True).start()
    call = json.loads((place / "call.json").read_text())
    module, _, name = call["function"].partition(":")
    try:
        answer, code = {"value": getattr(importlib.import_module(module), name)(**call["arguments"])}, 0
    except SlimdetError as error:
        answer, code = {"error": type(error).__name__, "text": str(error)}, 1
    except MemoryError:
        answer, code = {"error": "MemoryError", "text": "not enough memory; free some or take a smaller network"}, 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        answer, code = {"error": "OSError", "text": f"{where}{error.strerror or error}"}, 1
    (place / "answer.json").write_text(json.dumps(answer))
    sys.stderr.flush()
    # Skips the interpreter's own end, where libraries with threads take seconds or die.
    os._exit(code)
