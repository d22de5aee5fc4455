"""What runs on a device behind ssh: takes files, starts jobs, and tells what becomes of them.

The device needs nothing of ours for it: `ssh_link.py` sends the text of this module before every request,

    python3 -c 'import sys;…;exec(sys.stdin.buffer.read(LENGTH))' FOLDER VERB [JOB]  <  this text, then the request

so this is the standard library alone, in what Python 3.8 reads (an older one than slimdet needs should get as far as
to say its version). The request is a line of JSON, and files after it where the verb says so. The answer begins with
the line GREETING, because a login shell may talk before it, and goes on in lines of JSON.

    FOLDER/files/SHA256      contents, each once; SHA256.part while it comes
    FOLDER/NAME/             the package, an environment, wheels: made under another name, then renamed
    FOLDER/jobs/JOB/         a run: inputs/, results/, stdout, stderr, pid, exit; `lock` is held while it is alive

A job is a process of its own session, so it goes on when the connection is gone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from typing import IO, Any, Callable, Dict, Iterator, List, Optional

try:
    import fcntl
except ImportError:  # Windows, which a device never is; whoever asks may be
    fcntl = None  # type: ignore[assignment]

GREETING = b"slimdet device agent\n"
#: Bytes that are copied at a time, and that one line of `follow` carries at most.
BLOCK = 1 << 20
#: Seconds between two looks at a job, and how long it may take to end once it was asked to.
LOOK_SECONDS, STOP_SECONDS = 0.5, 20.0


class Refusal(Exception):
    """A request that cannot be met; its text is one clause for the user."""


# --- files on the way, in both directions -----------------------------------------------------------------------------


def write_line(stream: IO[bytes], value: Any) -> None:
    stream.write(json.dumps(value).encode() + b"\n")
    stream.flush()


def write_file(stream: IO[bytes], name: str, path: str, offset: int = 0) -> None:
    """A line {name, size, offset, sha256}, then the file's bytes from offset on."""
    with open(path, "rb") as file:
        digest = sha256(file)
        size = file.tell()
        write_line(stream, {"name": name, "size": size, "offset": min(offset, size), "sha256": digest})
        file.seek(min(offset, size))
        left = size - min(offset, size)
        while left:
            block = file.read(min(BLOCK, left))
            if not block:  # it has become shorter: the other side notices
                break
            left -= len(block)
            stream.write(block)
    stream.flush()


def sha256(file: IO[bytes]) -> str:
    """Of a file that is open at its beginning; leaves it at its end."""
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(BLOCK), b""):
        digest.update(block)
    return digest.hexdigest()


def read_files(stream: IO[bytes], final: Callable[[str], str]) -> Iterator[str]:
    """Takes files as write_file sends them up to the line {"end": true}; gives each name when the file is whole.

    final: where a file of that name belongs; it grows beside it as NAME.part, which stays when the stream ends early.
    Raises EOFError then, and Refusal where the bytes are not those that were announced.
    """
    while True:
        line = stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        head = json.loads(line)
        if head.get("end"):
            return
        path = final(head["name"])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".part", "ab+") as part:
            if fcntl is not None:
                fcntl.flock(part, fcntl.LOCK_EX)  # two at once would mix their bytes
            if part.seek(0, os.SEEK_END) < head["offset"]:
                raise Refusal(head["name"] + " was taken by another run; try again")
            part.truncate(head["offset"])
            part.seek(0, os.SEEK_END)
            left = head["size"] - part.tell()
            while left:
                block = stream.read(min(BLOCK, left))
                if not block:
                    raise EOFError
                part.write(block)
                left -= len(block)
            part.flush()
            part.seek(0)
            if sha256(part) != head["sha256"]:
                os.unlink(path + ".part")
                raise Refusal(head["name"] + " arrived damaged; try again")
            os.replace(path + ".part", path)
        yield head["name"]


# --- verbs ------------------------------------------------------------------------------------------------------------


def probe(folder: str, request: Dict[str, Any]) -> Dict[str, Any]:
    """What kind of machine this is, and what it has. request: modules, those to look for."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError, AttributeError):
        libc = ""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal("the folder " + folder + " is not writable; name another by --device-folder")
    return {
        "folder": folder,
        "free": shutil.disk_usage(folder).free,
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        # A 64-bit kernel may carry a 32-bit Python, whose wheels are others.
        "machine": platform.machine() + ("" if sys.maxsize > 2**32 else " with a 32-bit Python"),
        "system": platform.system(),
        "libc": libc,
        "venv": all(importlib.util.find_spec(name) is not None for name in ("venv", "ensurepip")),
        "missing": [name for name in request["modules"] if importlib.util.find_spec(name) is None],
    }


def lacking(folder: str, request: Dict[str, Any]) -> Dict[str, int]:
    """Of request's files, [sha256, size] each, those that are not here, and how many of their bytes are."""
    found = {}
    for digest, size in request["files"]:
        path = _stored(folder, digest)
        if not os.path.isfile(path) or os.path.getsize(path) != size:
            part = path + ".part"
            found[digest] = min(os.path.getsize(part), size) if os.path.isfile(part) else 0
    return found


def receive(folder: str, request: Dict[str, Any]) -> Dict[str, int]:
    """Takes the files that follow the request, named by their sha256."""
    try:
        return {"files": sum(1 for _ in read_files(sys.stdin.buffer, lambda name: _stored(folder, name)))}
    except EOFError:
        raise Refusal("the files did not come whole")


def place(folder: str, request: Dict[str, Any]) -> Dict[str, bool]:
    """Makes the folder request.name of request.links, [path, sha256] each, unless it is there."""
    final = os.path.join(folder, request["name"])
    if not os.path.isdir(final):
        temporary = _laid(folder, final, request["links"])
        _renamed(temporary, final)
    return {"placed": True}


def exists(folder: str, request: Dict[str, Any]) -> Dict[str, bool]:
    return {"exists": os.path.exists(os.path.join(folder, request["name"]))}


def start(folder: str, request: Dict[str, Any], job: str) -> Dict[str, Any]:
    """Starts request.commands, one after the other until one fails, unless the job runs there or has succeeded.

    request: links of its inputs, environment, commands. A command that cannot be started counts as exit code 127.
    """
    final = os.path.join(folder, "jobs", job)
    if os.path.isdir(final) and not _alive(final) and _read(os.path.join(final, "exit")) != "0":
        remove(folder, {}, job)
    if os.path.isdir(final):
        return {"started": False, "since": os.path.getmtime(os.path.join(final, "lock"))}
    temporary = _laid(folder, final, [["inputs/" + path, digest] for path, digest in request["links"]])
    os.mkdir(os.path.join(temporary, "results"))
    for name in ("stdout", "stderr"):
        open(os.path.join(temporary, name), "wb").close()
    lock = open(os.path.join(temporary, "lock"), "wb")
    fcntl.flock(lock, fcntl.LOCK_EX)  # the child that inherits it holds it on
    if not _renamed(temporary, final):
        return {"started": False, "since": os.path.getmtime(os.path.join(final, "lock"))}
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):  # or the connection would wait for this process
                os.dup2(nothing, descriptor)
            _supervise(final, request)
        finally:
            os._exit(0)
    return {"started": True, "since": time.time()}


def _supervise(final: str, request: Dict[str, Any]) -> None:
    code = 0
    with open(os.path.join(final, "stdout"), "ab") as out, open(os.path.join(final, "stderr"), "ab") as error:
        for command in request["commands"]:
            if code or os.path.exists(os.path.join(final, "stop")):
                break
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=error, cwd=final, start_new_session=True,
                    env={**os.environ, **request["environment"]},
                )  # fmt: skip
            except OSError as failure:
                error.write(("slimdet: error: " + command[0] + " cannot be run: " + str(failure) + "\n").encode())
                code = 127
                break
            _write(os.path.join(final, "pid"), str(process.pid))
            code = process.wait()
    _write(os.path.join(final, "exit"), str(code))


def follow(folder: str, request: Dict[str, Any], job: str) -> Optional[Dict[str, Any]]:
    """Tells what the job writes from request.stdout and request.stderr (bytes) on, until it ends.

    Each line may hold stdout and stderr, text whose undecodable bytes are surrogates; the last holds exit, the code,
    None where the job died without one. A line comes at least every second, so that a lost connection is noticed.
    """
    final = _job(folder, job)
    seen = {name: request[name] for name in ("stdout", "stderr")}
    while True:
        code = _read(os.path.join(final, "exit"))  # before the output: nothing comes after it
        alive = _alive(final) if code is None else False
        line = {}
        for name in seen:
            with open(os.path.join(final, name), "rb") as file:
                file.seek(seen[name])
                block = file.read(BLOCK)
            if block:
                line[name] = block.decode("utf-8", "surrogateescape")
                seen[name] += len(block)
        write_line(sys.stdout.buffer, line)
        if line:
            continue
        if code is not None or not alive:
            code = code if code is not None else _read(os.path.join(final, "exit"))
            return {"exit": None if code is None else int(code)}
        time.sleep(LOOK_SECONDS)


def stop(folder: str, request: Dict[str, Any], job: str) -> Dict[str, bool]:
    """Interrupts the job as Ctrl-C does; kills it where that does not help."""
    final = _job(folder, job)
    _write(os.path.join(final, "stop"), "")
    begun = time.monotonic()
    for number, seconds in ((signal.SIGINT, STOP_SECONDS), (signal.SIGKILL, 2.0)):
        pid = _read(os.path.join(final, "pid"))
        if pid is not None and _read(os.path.join(final, "exit")) is None:
            try:
                os.killpg(int(pid), number)
            except ProcessLookupError:
                pass
        begun = time.monotonic()
        while _alive(final) and time.monotonic() - begun < seconds:
            time.sleep(0.05)
    return {"stopped": not _alive(final)}


def fetch(folder: str, request: Dict[str, Any], job: str) -> Dict[str, bool]:
    """Sends what the job left in results/, each from request.have[name] bytes on; -1 stands for all of it."""
    top = os.path.join(_job(folder, job), "results")
    for base, _, names in sorted(os.walk(top)):
        for name in sorted(names):
            path = os.path.join(base, name)
            inside = os.path.relpath(path, top)
            have = request["have"].get(inside, 0)
            if have >= 0:
                write_file(sys.stdout.buffer, inside, path, have)
    return {"end": True}


def remove(folder: str, request: Dict[str, Any], job: str) -> Dict[str, bool]:
    """Forgets a job; nothing happens where there is none."""
    final = os.path.join(folder, "jobs", job)
    trash = final + "." + str(os.getpid()) + ".trash"
    if os.path.isdir(final):
        os.rename(final, trash)
        shutil.rmtree(trash, ignore_errors=True)
    return {"removed": True}


# --- what they share --------------------------------------------------------------------------------------------------


def _stored(folder: str, digest: str) -> str:
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise Refusal("a stored file is named by its sha256, not by " + repr(digest[:80]))
    return os.path.join(folder, "files", digest)


def _laid(folder: str, final: str, links: List[List[str]]) -> str:
    """A new folder beside `final` with the stored files under their names."""
    temporary = final + "." + str(os.getpid()) + ".part"
    shutil.rmtree(temporary, ignore_errors=True)
    os.makedirs(temporary)
    for path, digest in links:
        target = os.path.normpath(os.path.join(temporary, path))
        if not target.startswith(temporary + os.sep):
            raise Refusal("a file stays in its folder, " + repr(path[:80]) + " does not")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.link(_stored(folder, digest), target)
        except FileNotFoundError:
            raise Refusal(path + " is no longer on the device; try again")
        except OSError:  # FAT has no links
            shutil.copyfile(_stored(folder, digest), target)
    return temporary


def _renamed(temporary: str, final: str) -> bool:
    """Gives a folder its name; False where another was quicker."""
    try:
        os.rename(temporary, final)
        return True
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not os.path.isdir(final):
            raise
        return False


def _job(folder: str, job: str) -> str:
    final = os.path.join(folder, "jobs", job)
    if not os.path.isdir(final):
        raise Refusal("its run is gone, fetched or removed by someone else; start it again")
    return final


def _alive(final: str) -> bool:
    with open(os.path.join(final, "lock"), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def _write(path: str, text: str) -> None:
    with open(path + ".part", "w") as file:
        file.write(text)
    os.replace(path + ".part", path)


def _read(path: str) -> Optional[str]:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return None


_VERBS = {
    verb.__name__: verb for verb in (probe, lacking, receive, place, exists, start, follow, stop, fetch, remove)
}  # type: Dict[str, Callable[..., Any]]


def main(arguments: List[str]) -> None:
    folder, verb, *job = arguments
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = os.path.abspath(os.path.expanduser(folder or os.path.join(home, "slimdet-device")))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the connection may go before the answer: what was begun is finished
    out = sys.stdout.buffer
    out.write(GREETING)
    out.flush()
    try:
        request = json.loads(sys.stdin.buffer.readline())
        write_line(out, _VERBS[verb](folder, request, *job))
    except Refusal as refusal:
        write_line(out, {"refusal": str(refusal)})
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        reason = (str(error.filename) + ": " if error.filename else "") + (error.strerror or str(error))
        write_line(out, {"refusal": reason + "; free some room or name another place by --device-folder"})


if __name__ == "__main__":
    main(sys.argv[1:])
