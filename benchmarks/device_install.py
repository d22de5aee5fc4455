"""Makes a device behind ssh ready: the package, and an environment with what it requires.

The device side of the package is copied as it is here, under a name that holds its version and a hash of its contents,
so a device always runs the code of the one who asks. What it requires is installed once by the device's own pip, from
the index that the device uses; where that has none, wheels are fetched here for its processor and Python and copied.
Without slimdet's being installed here nobody knows what it requires, so a checkout alone needs --device-python.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import benchmarks
import deploy
from benchmarks.ssh_link import Interrupted, Link, printable
from benchmarks.ssh_run import end_job, push, run_job, sha256_of
from deploy.errors import DeviceError

#: The oldest Python that the package runs on: setup.cfg's python_requires.
LEAST_PYTHON = (3, 11)
#: Processors and systems that the interpreter's wheels are made for.
MACHINES = {"Linux": ("x86_64", "aarch64"), "Darwin": ("arm64",)}
#: What an interpreter named by --device-python has to have.
MODULES = ("numpy", "cv2", "PIL", "ai_edge_litert", "click")
#: What pip says where it has no index, or one that lacks something.
_NO_INDEX = re.compile(
    r"No matching distribution|Could not find a version|new connection|Temporary failure|Name or service|"
    r"Connection (refused|reset|timed out|to \S+ timed out)|Network is unreachable|timed out|"
    r"SSLError|ProxyError"
)


@dataclasses.dataclass(frozen=True)
class Ready:
    """Where things are on a device."""

    #: Absolute paths there.
    folder: str
    python: str
    package: str


def make_ready(link: Link) -> Ready:
    """Copies the package, and installs what it requires where no interpreter was named.

    Raises DeviceError where the device lacks something, and as Link does.
    """
    named = link.ready_python
    if named is not None and "/" in named and not named.startswith("/"):
        raise DeviceError(f"--device-python is an absolute path or a plain name: it is {named!r}; write it from / on")
    found = link.ask("probe", {"modules": MODULES})
    link.folder = found["folder"]
    name = link.device.name
    check_machine(name, found, link.ready_python)
    package = _package(link)
    if link.ready_python is not None:  # it may be a script that sets paths, so what it runs is not asked
        return Ready(link.folder, link.ready_python, package)
    # A name such as "python3" may mean another interpreter in another place.
    link.python = found["executable"] or link.python
    return Ready(link.folder, _environment(link, found), package)


def check_machine(name: str, found: Mapping[str, Any], named: str | None) -> None:
    """Raises DeviceError where the device cannot run the package. found: the agent's probe."""
    version = ".".join(map(str, found["python"]))
    if tuple(found["python"][:2]) < LEAST_PYTHON:
        raise DeviceError(
            f"{name}: a device needs Python 3.11 or newer: {printable(found['executable'])} there is {version}; "
            "install a newer one and name it by --device-python"
        )
    machines = MACHINES.get(found["system"], ())
    if found["machine"] not in machines and named is None:
        told = "; ".join(f"{system} on {' or '.join(names)}" for system, names in MACHINES.items())
        raise DeviceError(
            f"{name}: ai-edge-litert has wheels for {told}: it is {printable(found['system'])} on "
            f"{printable(found['machine'])}; install a 64-bit system, or name by --device-python an interpreter that "
            "has ai-edge-litert"
        )
    if named is not None and found["missing"]:
        raise DeviceError(
            f"{name}: an interpreter named by --device-python has {', '.join(MODULES)}: {printable(named)} lacks "
            f"{', '.join(map(printable, found['missing']))}; install slimdet's requirements there"
        )
    if named is None and not found["venv"]:
        raise DeviceError(
            f"{name}: a device makes itself an environment by Python's venv: it lacks it or ensurepip; run "
            "`apt install python3-venv` there, or name by --device-python an interpreter that has all"
        )
    if found["system"] == "Linux" and named is None and not found["libc"].startswith("glibc"):
        raise DeviceError(
            f"{name}: ai-edge-litert's wheels need glibc: the Python there has another C library; use a system with "
            "glibc, such as Debian"
        )


def version() -> str:
    """slimdet's version, or "0" in a checkout that is not installed."""
    try:
        return metadata.version("slimdet")
    except metadata.PackageNotFoundError:
        return "0"


def package_files() -> dict[str, Path]:
    """The files of the device side by their path within the package."""
    found = {}
    for module in (deploy, benchmarks):
        top = Path(module.__path__[0])
        for path in sorted(top.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                found[f"{top.name}/{path.relative_to(top).as_posix()}"] = path
    return found


def _package(link: Link) -> str:
    """Copies the package where it is missing, and returns its folder there."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "METADATA")
        note.write_text(f"Metadata-Version: 2.1\nName: slimdet\nVersion: {version()}\n")
        files = {**package_files(), f"slimdet-{version()}.dist-info/METADATA": note}
        links = [(path, sha256_of(file)) for path, file in files.items()]
        name = f"{version()}-{hashlib.sha256(repr(links).encode()).hexdigest()[:16]}"
        if not link.persistently(lambda: link.ask("exists", {"name": name}))["exists"]:
            push(link, dict(zip((digest for _, digest in links), files.values(), strict=True)), "slimdet itself")
            link.persistently(lambda: link.ask("place", {"name": name, "links": links}))
    return f"{link.folder}/{name}"


def requirements() -> list[str]:
    """What the device side requires, as pip reads it. Raises DeviceError where slimdet is not installed here."""
    try:
        required = metadata.requires("slimdet") or []
    except metadata.PackageNotFoundError as error:
        raise DeviceError(
            "a device is given what the slimdet installed here requires: it runs from a checkout that is not "
            "installed; run `pip install .` here, or name by --device-python an interpreter that has all"
        ) from error
    return sorted(line for line in required if "extra ==" not in line)


def _environment(link: Link, found: Mapping[str, Any]) -> str:
    """The Python of the environment there, which is made where it is missing."""
    wanted = requirements()
    key = hashlib.sha256(repr((wanted, found["python"][:2], link.python)).encode()).hexdigest()[:16]
    name = f"env-{key}"
    place = f"{link.folder}/{name}"
    python = f"{place}/bin/python"
    if link.persistently(lambda: link.ask("exists", {"name": f"{name}/complete"}))["exists"]:
        return python
    link.tell(f"first use: installing {', '.join(re.split('[<>=!~ ]', line)[0] for line in wanted)} in {place}")
    pip = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--retries", "1"]
    ready = [python, "-c", f"open({place + '/complete'!r}, 'w').close()"]
    steps = [[link.python, "-m", "venv", "--clear", place], [*pip, "--timeout", "15", *wanted], ready]
    code, said = _job(link, f"install-{key}", steps)
    if code and _NO_INDEX.search(said):
        link.tell("it has no package index of its own that has all of this: fetching wheels here")
        wheels = _wheels(link, found, wanted)
        code, said = _job(link, f"wheels-{key}", [[*pip, "--no-index", "--find-links", wheels, *wanted], ready])
    if code:
        raise DeviceError(
            f"{link.device.name}: what slimdet requires cannot be installed there: {_reason(said)}; install it by hand "
            "and name the interpreter by --device-python"
        )
    return python


def _job(link: Link, job: str, steps: list[list[str]]) -> tuple[int, str]:
    """Runs the steps there; returns the exit code and the last of what they said."""
    said = [""]

    def hear(_: str, text: str) -> None:
        said[0] = (said[0] + text)[-(1 << 16) :]
        for line in text.splitlines():
            if line.startswith(("Collecting", "Downloading", "Installing", "Processing")):
                link.tell(printable(line)[:100])

    try:
        code = run_job(link, job, {"links": [], "environment": {"PYTHONUNBUFFERED": "1"}, "commands": steps}, hear)
    except Interrupted:
        end_job(link, job)
        raise
    link.persistently(lambda: link.ask("remove", job=job))
    return code, said[0]


def _reason(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return printable((errors or lines or ["pip said nothing"])[-1].strip())


def platforms(found: Mapping[str, Any]) -> list[str]:
    """pip's names of what a Linux device's glibc can load, newest first. found: the agent's probe."""
    match = re.search(r"(\d+)\.(\d+)", found["libc"])
    newest = int(match[2]) if match and match[1] == "2" else 17
    return [f"manylinux_2_{minor}_{found['machine']}" for minor in range(newest, 16, -1)] + [
        f"manylinux2014_{found['machine']}"
    ]


def _wheels(link: Link, found: Mapping[str, Any], wanted: list[str]) -> str:
    """Fetches wheels for the device here and copies them; returns their folder there."""
    major, minor = found["python"][:2]
    names = [word for name in platforms(found) for word in ("--platform", name)]
    abis = [word for abi in (f"cp{major}{minor}", "abi3", "none") for word in ("--abi", abi)]
    with tempfile.TemporaryDirectory(prefix="slimdet-wheels-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", f"{major}.{minor}"]
        done = subprocess.run(
            [*command, *abis, *names, "--dest", folder, *wanted], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            raise DeviceError(
                f"{link.device.name}: wheels for it cannot be fetched here either: {_reason(done.stderr)}; connect one "
                "of the two to an index, or name by --device-python an interpreter there that has all"
            )
        files = {path.name: path for path in sorted(Path(folder).iterdir())}
        links = [(path, sha256_of(file)) for path, file in files.items()]
        push(link, dict(zip((digest for _, digest in links), files.values(), strict=True)), "wheels")
        name = f"wheels-{hashlib.sha256(repr(links).encode()).hexdigest()[:16]}"
        link.persistently(lambda: link.ask("place", {"name": name, "links": links}))
    return f"{link.folder}/{name}"
