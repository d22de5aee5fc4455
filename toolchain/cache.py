"""Each stage's result, kept under the hash of all that it depends on.

    CACHE/<job>/<key>/record.json     what it depended on, why it ran, how long it took, its facts, its files' digests
    CACHE/<job>/<key>/files/…         what it made
    CACHE/<job>/.resume-<key>/…       what a long job, not yet complete, goes on from

The key is the SHA-256 of: the job's settings, the digests of its inputs, the digest of its code and its libraries'
versions (code_version.py), and what else the caller says that it depends on (the machine, for a measurement). Inputs
are digested so: an earlier result by the content of its files, as recorded; a file by its content; several files by
their paths and contents; a folder by its files' names, sizes and modification times in nanoseconds.

A result is made in a folder of another name and renamed when it is complete, so at every moment it is whole or not
there. A kept result is used only after its files' contents have been compared with their digests.

A long job writes what it has reached into a folder of its own, which no kill removes: the next run of the same key
finds it there. It goes when a result is complete, whatever its key; a job whose settings were changed and changed back
in between still goes on. Such a job can also be ended early: the result is then what it had reached, under a key of its
own, and the folder stays, so that a later run goes on as if nothing had been.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.errors import InputError

_PART = ".part-"
_RESUME = ".resume-"
#: Longer values are not repeated in the reason for a rerun.
_LONGEST_VALUES = 100


@dataclasses.dataclass(frozen=True)
class Result:
    """What a job left in the cache."""

    #: The folder with its files, and them relative to it.
    folder: Path
    files: tuple[str, ...]
    #: Of all files' names and contents.
    digest: str
    #: What the stage's function returned: plain JSON.
    facts: Mapping[str, Any]
    #: How long it took when it ran.
    seconds: float
    #: Whether it ran in this build, and why it ran last.
    ran: bool
    reason: str
    key: str

    def file(self, name: str) -> Path:
        return self.folder / name


#: What a job reads: an earlier result, a file, several files, or a folder.
Source = Result | Path | tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Where a long job keeps what it has reached."""

    #: Made by the job when it has something to keep.
    folder: Path
    #: Whether the job is to end at once with what the folder holds.
    end: bool = False


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps every other build out of the folder until the end of the block or of the process, however it ends.

    Raises InputError at once when another process works in it, or when it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "a+")
    except OSError as error:
        raise InputError(
            f"cannot write into {folder.parent}: {error.strerror or error}; choose another --out"
        ) from error
    with file:
        try:
            # A record lock: a child process that outlives a killed build does not go on holding it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            who = file.read(32).strip()
            owner = f" (process {who})" if who.isdecimal() else ""
            raise InputError(
                f"one build at a time works in {folder.parent}: another{owner} does now; wait for it or choose "
                "another --out"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def remove_leftovers(cache: Path) -> None:
    """Removes what a killed build left half-made. Only under the lock."""
    for path in cache.glob(f"*/{_PART}*"):
        shutil.rmtree(path, ignore_errors=True)


def find_or_make(
    cache: Path,
    job: str,
    depends_on: Mapping[str, Any],
    inputs: Mapping[str, Source],
    make: Callable[[Path, Checkpoint], Mapping[str, Any]],
    *,
    end_early: bool = False,
) -> Result:
    """The job's result: the kept one, if it is whole and everything it depends on is as it was, else a new one of
    make(folder, checkpoint).

    depends_on is plain JSON: settings, code, libraries and so on. The older result is removed when the new one is
    complete.
    end_early: where no complete result is kept but a checkpoint is, the result is made of that.
    Raises what make raises, InputError for an input that is missing and for a full disk.
    """
    described = {**depends_on, "input": {name: digest(source) for name, source in inputs.items()}}
    described = json.loads(json.dumps(described, allow_nan=False))
    key, folder, record, damage = _kept(cache, job, described)
    if record is not None and not damage:
        return _result(folder, record, ran=False)
    checkpoint = Checkpoint(folder.with_name(f"{_RESUME}{folder.name}"))
    if end_early and checkpoint.folder.is_dir():
        checkpoint = dataclasses.replace(checkpoint, end=True)
        described["checkpoint"] = digest(checkpoint.folder)
        key, folder, record, damage = _kept(cache, job, described)
        if record is not None and not damage:
            return _result(folder, record, ran=False)
    reason = damage or _reason(cache / job, described)
    part = folder.with_name(f"{_PART}{os.getpid()}")
    try:
        shutil.rmtree(part, ignore_errors=True)
        (part / "files").mkdir(parents=True)
        start = time.perf_counter()
        facts = make(part / "files", checkpoint)
        seconds = time.perf_counter() - start
        record = {"key": key, "depends_on": described, "reason": reason, "seconds": round(seconds, 3)}
        facts = json.loads(json.dumps(facts, allow_nan=False))
        record |= {"facts": facts, "files": _file_digests(part / "files")}
        (part / "record.json").write_text(json.dumps({"sha256": _hash_json(record), "record": record}, indent=1))
        if folder.exists():
            os.rename(folder, folder.with_name(f"{_PART}old-{os.getpid()}"))
        os.rename(part, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the disk is full: {cache} took no more; free some space and build again, it goes on from here"
            ) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for older in folder.parent.iterdir():
        if older != folder and not (checkpoint.end and older == checkpoint.folder):
            shutil.rmtree(older, ignore_errors=True)
    return _result(folder, record, ran=True)


def _kept(cache: Path, job: str, described: Mapping[str, Any]) -> tuple[str, Path, dict[str, Any] | None, str]:
    """The key of what a job depends on, its folder, the record in it, and what is wrong with the files."""
    key = _hash_json([job, described])
    folder = cache / job / key[:20]
    record = _read_record(folder)
    return key, folder, record, "" if record is None else _damage(folder, record)


def digest(source: Source) -> str:
    """SHA-256 (hex) of an input as the module's text says. Raises InputError when it is missing or cannot be read."""
    if isinstance(source, Result):
        return source.digest
    try:
        if isinstance(source, tuple):
            return _hash_json([[str(path), file_digest(path)] for path in source])
        if source.is_dir():
            return _hash_json(sorted(_listing(source, "")))
        return file_digest(source)
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename or source}: {error.strerror or error}; correct the path"
        ) from error


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listing(folder: Path | os.DirEntry[str], prefix: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            found = entry.stat()
            if stat.S_ISREG(found.st_mode):
                yield prefix + entry.name, found.st_size, found.st_mtime_ns
            elif entry.is_dir(follow_symlinks=False):
                yield from _listing(entry, f"{prefix}{entry.name}/")


def _file_digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a result's folder; None when it is missing or damaged."""
    try:
        stored = json.loads((folder / "record.json").read_bytes())
    except (OSError, ValueError):
        return None
    whole = (
        isinstance(stored, dict)
        and isinstance(stored.get("record"), dict)
        and stored.get("sha256") == _hash_json(stored["record"])
    )
    return stored["record"] if whole else None


def _damage(folder: Path, record: Mapping[str, Any]) -> str:
    """What is wrong with the kept files, in words; "" when they are whole."""
    for name, expected in record["files"].items():
        try:
            found = file_digest(folder / "files" / name)
        except OSError:
            return f"the kept file {name} was missing"
        if found != expected:
            return f"the kept file {name} was damaged"
    return ""


def _reason(job_folder: Path, described: Mapping[str, Any]) -> str:
    """Why the job must run, from the record of its last result."""
    records = [_read_record(folder) for folder in sorted(job_folder.glob("[!.]*"))]
    older = next((record for record in records if record is not None), None)
    if older is None:
        return "its kept record was damaged" if records else "first build"
    before, now = _flat(older["depends_on"]), _flat(described)
    changes = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old == new:
            continue
        kind, _, rest = name.partition(".")
        if kind == "checkpoint":
            ended = "what was reached is taken, as --use-best asks"
            changes.append("it goes on after an early end" if new == "nothing" else ended)
        elif kind in ("input", "code"):
            changes.append(f"input {rest} changed" if kind == "input" else "this stage's code changed")
        else:
            values = f" from {old} to {new}"
            changes.append(f"{kind} {rest} changed{values if len(values) <= _LONGEST_VALUES else ''}")
    return "; ".join(changes) or "its kept record was damaged"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _result(folder: Path, record: Mapping[str, Any], *, ran: bool) -> Result:
    return Result(
        folder=folder / "files",
        files=tuple(record["files"]),
        digest=_hash_json(record["files"]),
        facts=record["facts"],
        seconds=record["seconds"],
        ran=ran,
        reason=record["reason"],
        key=record["key"],
    )
