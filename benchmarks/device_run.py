"""One command on one device of whichever kind, from the start to what comes home."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks import adb_device, ssh_device
from benchmarks.device import Device
from benchmarks.device_inputs import Input
from benchmarks.device_program import Programs
from benchmarks.device_table import devices_text
from benchmarks.device_task import Task
from benchmarks.ssh_device import Done, Result
from benchmarks.ssh_link import Interrupted, Link
from deploy.command_line import write_atomically
from deploy.errors import DeviceError, InputError, SlimdetError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options that belong to --device."""

    device_python: str | None = None
    device_folder: str | None = None
    ssh_config: Path | None = None
    benchmark_model: Path | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of it; error is "" where it succeeded, one sentence else."""

    device: Device
    code: int
    error: str
    text: str = ""
    result: dict[str, Any] | None = None
    #: Where the results lie, and what they call by the device's paths.
    results: Path | None = None
    done: Done | None = None


def run_task(
    device: Device, task: Task, settings: Settings, results: Path, tell: Callable[[str], None],
    interruptible: Callable[[Callable[[], None]], None], live: bool,
) -> Outcome:  # fmt: skip
    """Runs the task. A failure is an Outcome too, so that other devices' are not lost.

    results: an empty folder. interruptible is given what ends the run from another thread. live: what it prints is
    shown as it comes.
    """
    try:
        if device.kind == "adb":
            return _on_android(device, task, settings, interruptible)
        out = click.echo if live else None
        if device.kind == "ssh":
            folder = settings.device_folder or ""
            with Link(device, settings.device_python, folder, settings.ssh_config, tell) as link:
                interruptible(link.interrupt)
                done = ssh_device.run_on(link, task.words, results, out)
        else:
            done = _here(task, results, tell, interruptible, out)
        result = None
        if done.code == 0 and "json_file" in task.values:
            result = ssh_device.read_result(device.name, done, results / "result.json")
        error = "" if done.code == 0 else f"{device.name}: {done.error or _ended(done.code)}"
        return Outcome(device, done.code, error, done.text, result, results, done)
    except Interrupted:
        return Outcome(device, 1, f"{device.name}: interrupted", results=results)
    except SlimdetError as failure:
        text = str(failure)
        return Outcome(device, 1, text if text.startswith(device.name) else f"{device.name}: {text}")


def bring_home(outcome: Outcome, task: Task) -> None:
    """Puts the files that the command wrote where the user wants them. Raises InputError where that fails."""
    if outcome.results is None:
        return
    for name, destination in task.outputs.items():
        came, target = outcome.results / name, Path(destination)
        if came.is_dir():
            try:
                shutil.copytree(came, target, dirs_exist_ok=True)
            except (OSError, shutil.Error) as error:
                raise InputError(f"cannot write to {target}: {error}; choose another place or free some") from error
        elif came.is_file() and not outcome.error:
            content = came.read_bytes()
            if name == "jsonl" and outcome.done is not None:
                lines = [outcome.done.at_home(json.loads(line)) for line in content.splitlines()]
                content = "".join(json.dumps(line) + "\n" for line in lines).encode()
            write_atomically(Path(os.path.realpath(target)), content)


def _here(
    task: Task, results: Path, tell: Callable[[str], None], interruptible: Callable[[Callable[[], None]], None],
    out: Callable[[str], None] | None,
) -> Done:  # fmt: skip
    """The same command in a process of this machine."""
    programs = Programs()
    interruptible(programs.interrupt)
    words = [
        word.text if isinstance(word, Input) else str(results / word.name) if isinstance(word, Result) else word
        for word in task.words.words
    ]
    root = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = programs.run(
        [sys.executable, "-P", "-m", task.words.module, task.words.command, *words],
        {**os.environ, "PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
    )
    *notes, last = [line for line in done.stderr.splitlines() if line.strip()] or [""]
    for line in notes if done.returncode else [*notes, *filter(None, [last])]:
        tell(line)
    if out is not None and done.stdout:
        out(done.stdout.rstrip("\n"))
    error = last.removeprefix("slimdet: error: ").removeprefix("Error: ") if done.returncode else ""
    return Done(done.returncode, "" if out else done.stdout.rstrip("\n"), error, {})


def _on_android(
    device: Device, task: Task, settings: Settings, interruptible: Callable[[Callable[[], None]], None]
) -> Outcome:
    if task.words.command != "latency":
        raise DeviceError(
            f"{device.name}: {task.words.command} needs Python on the device, which Android has none of for us: only "
            "latency is measured there; use a device behind ssh, or --device local"
        )
    if settings.benchmark_model is None or not settings.benchmark_model.is_file():
        told = "no file" if settings.benchmark_model else "none"
        raise DeviceError(
            f"{device.name}: latency on Android is measured by TensorFlow Lite's benchmark_model: {told} was named; "
            "name one for its processor by --benchmark-model FILE"
        )
    values = task.values
    threads = values["threads"] if not isinstance(values["threads"], list | tuple) else (*values["threads"], 0)[0]
    several = isinstance(values["threads"], list | tuple) and len(values["threads"]) != 1
    if other := sorted(task.given & set(values) - {"model", "backend", "json_file", *adb_device.KNOWN}):
        options = ", ".join(name.replace("_", "-") for name in other)
        raise DeviceError(f"{device.name}: benchmark_model has nothing for {options}; leave it out for this device")
    if several:
        raise DeviceError(f"{device.name}: benchmark_model takes one number of threads at a time; name one")
    programs = Programs()
    interruptible(programs.interrupt)
    found = adb_device.measure_latency(
        programs, device, Path(values["model"]), settings.benchmark_model, values["backend"],
        {name: threads if name == "threads" else values[name] for name in adb_device.KNOWN},
    )  # fmt: skip
    return Outcome(device, 0, "", devices_text([found]), found)


def _ended(code: int) -> str:
    return f"it ended with exit code {code} and no word" if code >= 0 else f"it was ended there by signal {-code}"
