"""Copies files to a device behind ssh, runs a job there and brings home what it left; all of it survives a lost
connection, and a file goes on where it broke off."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from benchmarks import device_agent
from benchmarks.ssh_link import Link
from deploy.errors import DeviceError

#: Copying more than this is told before it begins, in bytes; then how far it is, every so many seconds.
TOLD_BYTES, TOLD_SECONDS = 1 << 20, 10.0
#: Room that a device keeps beside what is copied to it, in bytes.
SPARE_BYTES = 32 << 20
#: Longest line of an answer, in bytes: a block of output whose every byte JSON escapes.
_LINE_LIMIT = 8 * device_agent.BLOCK


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return device_agent.sha256(file)


def push(link: Link, files: Mapping[str, Path], what: str) -> None:
    """Copies the files, by their sha256, that the device lacks. Raises DeviceError where they have no room there."""
    sizes = {digest: path.stat().st_size for digest, path in files.items()}
    told = [False]

    def attempt() -> None:
        lacking: dict[str, int] = link.ask("lacking", {"files": list(sizes.items())})
        if not lacking:
            return
        total = sum(sizes[digest] - have for digest, have in lacking.items())
        free = link.ask("probe", {"modules": []})["free"]
        if total + SPARE_BYTES > free:
            raise DeviceError(
                f"{link.device.name}: {what} take {total / 1e6:.1f} MB there: {free / 1e6:.1f} MB are free in "
                f"{link.folder}; free some, or name another place by --device-folder"
            )
        if total > TOLD_BYTES and not told[0]:
            told[0] = True
            link.tell(f"copying {what}: {len(lacking)} files, {total / 1e6:.1f} MB")
        link.ask("receive", send=lambda stream: _send(link, stream, files, lacking, total))

    link.persistently(attempt)


def _send(
    link: Link, stream: IO[bytes], files: Mapping[str, Path], lacking: Mapping[str, int], total: int
) -> None:
    sent, next_told = 0, time.monotonic() + TOLD_SECONDS
    for digest, have in lacking.items():
        device_agent.write_file(stream, digest, str(files[digest]), have)
        sent += files[digest].stat().st_size - have
        if time.monotonic() > next_told and total:
            next_told = time.monotonic() + TOLD_SECONDS
            link.tell(f"{100 * sent / total:.0f} % copied")
    device_agent.write_line(stream, {"end": True})


def run_job(link: Link, job: str, request: Mapping[str, Any], hear: Callable[[str, str], None]) -> int:
    """Runs the commands of the request there and returns the last one's exit code, negative for a signal.

    Where a run of that name is there already, this goes on with it; one that had failed or died is begun anew. hear is
    given "stdout" or "stderr" and what came. Raises DeviceError where the run died without an exit code.
    """
    begun = link.persistently(lambda: link.ask("start", request, job))
    if not begun["started"]:
        since = time.strftime("%H:%M:%S", time.localtime(begun["since"]))
        link.tell(f"going on with the run that began there at {since}")
    code = _followed(link, job, hear)
    if code is None:
        link.persistently(lambda: link.ask("remove", job=job))
        raise DeviceError(
            f"{link.device.name}: the run there ended without an exit code, as when a device restarts or runs out of "
            "memory; start it again"
        )
    return code


def _followed(link: Link, job: str, hear: Callable[[str, str], None]) -> int | None:
    seen = {"stdout": 0, "stderr": 0}

    def attempt() -> int | None:
        with link.answers("follow", dict(seen), job) as stream:
            for answer in _lines(link, stream):
                for name in seen:
                    if text := answer.get(name):
                        seen[name] += len(text.encode("utf-8", "surrogateescape"))
                        hear(name, text)
                if "exit" in answer:
                    code: int | None = answer["exit"]
                    return code
            raise EOFError

    return link.persistently(attempt)


def _lines(link: Link, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    while (line := stream.readline(_LINE_LIMIT)).endswith(b"\n"):
        yield link.checked(json.loads(line))


def fetch(link: Link, job: str, folder: Path) -> None:
    """Brings what the job left in results/ into the folder. Raises DeviceError where a name leads out of it."""

    def place(name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or not all(part.isprintable() and part not in ("/", "..") for part in parts):
            raise DeviceError(f"{link.device.name}: results stay in their folder: {name[:80]!r} leads out of it")
        return str(folder.joinpath(*parts))

    def attempt() -> None:
        have = {}
        for path in folder.rglob("*"):
            if path.is_file():
                inside = path.relative_to(folder).as_posix()
                have[inside.removesuffix(".part")] = path.stat().st_size if inside.endswith(".part") else -1
        with link.answers("fetch", {"have": have}, job) as stream:
            try:
                for _ in device_agent.read_files(stream, place):
                    pass
            except device_agent.Refusal as refusal:
                raise DeviceError(f"{link.device.name}: {refusal}") from refusal

    link.persistently(attempt)


def end_job(link: Link, job: str, results: Path | None = None) -> None:
    """Ends a run after Ctrl-C, and takes what it has finished. A lost connection leaves it alone, and is told."""
    link.interrupted_is_over()
    link.tell("ending the run there")
    try:
        link.ask("stop", job=job)
        if results is not None:
            fetch(link, job, results)
        link.ask("remove", job=job)
    except DeviceError as error:
        if "its run is gone" not in str(error):  # it had not begun
            link.tell(f"the run there could not be ended in order: {error}")
