"""Does to a live feed what networks and cameras do to it, again and again, and measures how it gets over that.

    python -m benchmarks.feed_faults --times 20 --age-seconds 300 --json -

An RTSP server on the loopback address (rtsp_server.py) is killed and started again, held with SIGSTOP, taken away so
that its port refuses, or put behind an address that swallows packets, in random order. What is read are results: frames
that a model took, which here sleeps. A result counts as new when the clock within its picture says that the picture was
made after the server's return. Then the age of results is measured, undisturbed. Exit code 3 where a bound is missed:
every fault is got over, RESUME_SECONDS after the server's return at most; memory, threads and files stay; the median
age is at most AGE_FACTOR times a frame's and the model's time together, and does not grow; a feed closes within
CLOSE_SECONDS whatever its server does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import click

from benchmarks.environment import environment
from benchmarks.rtsp_server import read_clock
from benchmarks.tables import table
from deploy.address import parse_address
from deploy.capture import CaptureOptions, Feed, open_feed
from deploy.command_line import debug_option, json_option, run, write_json
from deploy.errors import BackendError, GateError

SCHEMA = "slimdet.feed_faults/1"
FAULTS = ("kill", "stop", "refuse", "black hole")
RESUME_SECONDS = 3.0
CLOSE_SECONDS = 1.0
AGE_FACTOR = 1.3
#: How many times as much memory, threads and files there may be in the last quarter of the faults as in the second.
_GROWTH = 1.05
_FPS = 30
#: Seconds after which a fault that is not got over is given up.
_PATIENCE = 60.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """One result. Times are time.monotonic()'s."""

    #: When the picture was made, by the clock in it; when it arrived; when its result was known.
    made: float
    captured: float
    finished: float


class Results(Protocol):
    """Whatever takes frames from an address and makes results of them: here a sleeping model, or a whole program."""

    seen: list[Seen]

    def close(self) -> None:
        """Ends it."""


class SleepingModel:
    """Takes the newest frame of a feed, sleeps as long as a model would take, and notes when."""

    def __init__(self, address: str, model_seconds: float) -> None:
        self.seen: list[Seen] = []
        self._wake, self._stop = threading.Event(), threading.Event()
        self.feed: Feed = open_feed("0", parse_address(address), CaptureOptions(), self._wake, lambda _: None)
        self._seconds = model_seconds
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(0.5)
            self._wake.clear()
            while not self._stop.is_set() and (frame := self.feed.take()) is not None:
                time.sleep(self._seconds)
                now = time.monotonic()
                # The picture's clock is cut to 32 bits, which last for seven weeks.
                milliseconds = int(now * 1000)
                made = milliseconds - (milliseconds - read_clock(frame.pixels)) % 2**32
                self.seen.append(Seen(made / 1000, frame.captured, now))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.feed.close()


class Server:
    """rtsp_server.py on a port of its own, which can be ill-treated."""

    def __init__(self, python: str, clip: Path | None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        script = str(Path(__file__).with_name("rtsp_server.py"))
        self._command = [python, script, "--port", str(self.port), "--fps", str(_FPS)]
        self._command += ["--clip", str(clip.resolve())] if clip else []
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"rtsp://127.0.0.1:{self.port}/live"

    def start(self) -> None:
        """Returns when it serves. Raises BackendError where it does not."""
        for _ in range(20):
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
            )
            assert self._process.stdout is not None and self._process.stderr is not None  # pipes were asked for
            if self._process.stdout.readline():
                return
            words = self._process.stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            self.kill()
            if "taken" not in " ".join(words):
                break
            time.sleep(0.1)  # its port is still being given up
        raise BackendError(
            f"the RTSP server does not start: {' '.join(words)}; it needs the packages that rtsp_server.py names"
        )

    def signal(self, number: int) -> None:
        if self._process is not None:
            # The group, so that a clip's decoder goes too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.communicate()
            self._process = None


@contextlib.contextmanager
def swallowing(port: int) -> Iterator[None]:
    """Packets to the port get no answer: its queue of connections is full, and nobody takes one from it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        for _ in range(4):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        yield


def do_fault(server: Server, fault: str, seconds: float) -> float:
    """Does it for that long; returns the time of the server's return."""
    if fault == "stop":
        server.signal(signal.SIGSTOP)
        time.sleep(seconds)
        server.signal(signal.SIGCONT)
        return time.monotonic()
    server.kill()
    if fault == "refuse":
        time.sleep(seconds)
    elif fault == "black hole":
        with swallowing(server.port):
            time.sleep(seconds)
    server.start()
    return time.monotonic()


def wait_for_result(results: Results, made_after: float) -> float | None:
    """When the first result of a picture made after that moment was known; None when none comes."""
    limit = time.monotonic() + _PATIENCE
    position = max(len(results.seen) - 1, 0)
    while time.monotonic() < limit:
        for seen in results.seen[position:]:
            if seen.made >= made_after:
                return seen.finished
        position = max(len(results.seen) - 1, 0)
        time.sleep(0.01)
    return None


def resources() -> dict[str, int]:
    """Of this process and its children; all of the process where the machine tells them in /proc."""
    own = Path("/proc/self")
    children = [int(pid) for one in own.glob("task/*/children") for pid in one.read_text().split()]
    captures = [pid for pid in children if b"capture_child" in _content(Path(f"/proc/{pid}/cmdline"))]
    return {
        "memory": _memory(own),
        "capture_memory": sum(_memory(Path(f"/proc/{pid}")) for pid in captures),
        "captures": len(captures),
        "threads": len(list((own / "task").iterdir())),
        "files": len(list((own / "fd").iterdir())),
    }


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _memory(process: Path) -> int:
    """Bytes that are resident; 0 where the process has gone."""
    for line in _content(process / "status").decode().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def faults(
    server: Server, results: Results, times: int, seed: int, progress: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Each fault, how long it lasted, and how long after the server's return (None: never) a new result was there."""
    chance = random.Random(seed)
    order = [FAULTS[number % len(FAULTS)] for number in range(times)]
    chance.shuffle(order)
    rows = []
    for fault in order:
        # Some come soon after the last one.
        time.sleep(chance.uniform(0.2, 4))
        lasts = chance.uniform(0.5, 9)
        returned = do_fault(server, fault, lasts)
        done = wait_for_result(results, returned)
        seconds = None if done is None else done - returned
        rows.append({"fault": fault, "lasted": round(lasts, 2), "resumed_after": seconds, **resources()})
        progress(rows[-1])
    return rows


def ages(results: Results, seconds: float, model_seconds: float) -> dict[str, Any]:
    """Median milliseconds from a picture's arrival, and from its making, to its result: all, first and last minute."""
    begin = len(results.seen)
    time.sleep(seconds)
    seen = results.seen[begin:]
    share = min(60.0, seconds / 3)
    parts = {
        "all": seen,
        "first": [one for one in seen if one.finished < seen[0].finished + share],
        "last": [one for one in seen if one.finished > seen[-1].finished - share],
    }
    found: dict[str, Any] = {"seconds": seconds, "results": len(seen), "model_ms": model_seconds * 1000}
    for name, part in parts.items():
        found[name] = {
            "since_arrival_ms": statistics.median(1000 * (one.finished - one.captured) for one in part),
            "since_made_ms": statistics.median(1000 * (one.finished - one.made) for one in part),
        }
    found["bound_ms"] = AGE_FACTOR * 1000 * (1 / _FPS + model_seconds)
    return found


def closings(server: Server) -> dict[str, float]:
    """Seconds that a feed takes to close, by what its server does at that time."""
    found = {}
    for fault in ("none", *FAULTS[1:]):
        feed = open_feed("0", parse_address(server.address), CaptureOptions(), threading.Event(), lambda _: None)
        with contextlib.ExitStack() as stack:
            wait_for_state(feed, {"running"})
            if fault == "stop":
                server.signal(signal.SIGSTOP)
            elif fault != "none":
                server.kill()
            if fault == "black hole":
                stack.enter_context(swallowing(server.port))
            wait_for_state(feed, {"running"} if fault == "none" else {"stalled", "waiting"})
            time.sleep(1)
            begin = time.monotonic()
            feed.close()
            found[fault] = time.monotonic() - begin
        server.kill()
        server.start()
    return found


def wait_for_state(feed: Feed, states: Set[str]) -> None:
    """Raises BackendError when it does not come."""
    limit = time.monotonic() + _PATIENCE
    while feed.status().state not in states:
        if time.monotonic() > limit:
            reason = feed.status().reason
            raise BackendError(f"the feed is not {' or '.join(states)} within {_PATIENCE:g} s: {reason}; look at it")
        time.sleep(0.01)


def verdicts(
    rows: Sequence[dict[str, Any]], age: dict[str, Any] | None, closed_after: Mapping[str, float]
) -> list[str]:
    """What misses its bound, in words."""
    failed = [
        f"closing took {seconds:.2f} s with fault {fault}, {CLOSE_SECONDS:g} s are the most"
        for fault, seconds in closed_after.items()
        if seconds > CLOSE_SECONDS
    ]
    for row in rows:
        if row["resumed_after"] is None or row["resumed_after"] > RESUME_SECONDS:
            took = "never" if row["resumed_after"] is None else f"after {row['resumed_after']:.2f} s"
            failed.append(f"results resumed {took} from {row['fault']}, {RESUME_SECONDS:g} s are the most")
    quarter = len(rows) // 4
    if quarter:
        for key in ("memory", "threads", "files"):
            early = max(row[key] for row in rows[quarter : 2 * quarter])
            late = max(row[key] for row in rows[-quarter:])
            if late > early * _GROWTH:
                failed.append(f"{key} grew from {early} to {late}")
    if age is not None:
        for key in ("since_arrival_ms", "since_made_ms"):
            # Where in a frame's time the model asks for one shifts slowly, so up to a frame's time is no growth.
            if age["last"][key] > age["first"][key] + 1000 / _FPS:
                failed.append(f"age {key} grew from {age['first'][key]:.1f} to {age['last'][key]:.1f} ms")
        if age["all"]["since_arrival_ms"] > age["bound_ms"]:
            median = age["all"]["since_arrival_ms"]
            failed.append(f"the median age of results is {median:.1f} ms, {age['bound_ms']:.1f} at most")
    return failed


def as_text(found: dict[str, Any]) -> str:
    """The figures for a reader."""
    rows = []
    for fault in FAULTS:
        seconds = [row["resumed_after"] for row in found["faults"] if row["fault"] == fault]
        good = [one for one in seconds if one is not None]
        spread = f"{statistics.median(good):.2f}" if good else "-", f"{max(good):.2f}" if good else "-"
        rows.append((fault, f"{len(good)} of {len(seconds)}", *spread))
    parts = [table(("fault", "got over", "median s", "longest s"), rows)]
    if found["faults"]:
        first, last = found["faults"][min(1, len(found["faults"]) - 1)], found["faults"][-1]
        told = [(key, f"{first[key]:,}", f"{last[key]:,}") for key in ("memory", "capture_memory", "threads", "files")]
        parts.append(table(("of the process", "after two faults", "after the last"), told))
    if found["age"]:
        age = found["age"]
        keys = ("since_arrival_ms", "since_made_ms")
        told = [(part, f"{age[part][keys[0]]:.1f}", f"{age[part][keys[1]]:.1f}") for part in ("all", "first", "last")]
        parts.append(table(("age, ms", "since arrival", "since made"), told))
        parts.append(f"at most {found['age']['bound_ms']:.1f} ms since arrival")
    closed = ", ".join(f"{seconds:.2f} ({fault})" for fault, seconds in found["close_s"].items())
    parts.append(f"seconds to close, by the fault that there is: {closed}")
    return "\n\n".join(parts)


@click.command(epilog="Example: python -m benchmarks.feed_faults --times 20 --age-seconds 300")
@click.option("--times", type=click.IntRange(0), default=20, show_default=True, help="Faults.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of their order and length.")
@click.option("--age-seconds", type=click.FloatRange(0), default=300.0, show_default=True, help="0: no age.")
@click.option("--model-ms", type=click.FloatRange(0), default=100.0, show_default=True, help="The model's time.")
@click.option("--clip", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="To serve.")
@click.option("--python", default="/usr/bin/python3", show_default=True, help="One that has gi, for the server.")
@json_option("Write the result here as JSON; - is standard output.")
@debug_option
def main(
    times: int, seed: int, age_seconds: float, model_ms: float, clip: Path | None, python: str, json_file: str | None
) -> None:
    """Ill-treats a live feed's server, and measures how results resume and how old they are.

    Exit code 3 where a bound is missed.
    """
    server = Server(python, clip)
    server.start()
    begin = time.monotonic()
    results = SleepingModel(server.address, model_ms / 1000)
    try:
        first = wait_for_result(results, begin)
        if first is None:
            reason = results.feed.status().reason
            raise BackendError(f"no result came within {_PATIENCE:g} s: {reason}; look at the server")
        rows = faults(server, results, times, seed, _tell)
        age = ages(results, age_seconds, model_ms / 1000) if age_seconds else None
        results.close()
        closed_after = closings(server)
    finally:
        results.close()
        server.kill()
    found: dict[str, Any] = {"schema": SCHEMA, "seed": seed, "first_result_s": first - begin}
    found |= {"faults": rows, "age": age, "close_s": closed_after, "left": resources()}
    found["environment"] = environment()
    if json_file != "-":
        click.echo(as_text(found))
    if json_file:
        write_json(json_file, found)
    failed = verdicts(rows, age, closed_after)
    if failed:
        raise GateError(f"{'; '.join(failed)}; look at the machine's load, then at the feed")


def _tell(row: dict[str, Any]) -> None:
    after = "never" if row["resumed_after"] is None else f"{row['resumed_after']:.2f} s after its return"
    click.echo(f"{row['fault']} for {row['lasted']:.1f} s: results {after}", err=True)


if __name__ == "__main__":
    run(main, "python -m benchmarks.feed_faults")
