"""One command on several devices at once, and what is printed and written of it."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click

from benchmarks.device import Device
from benchmarks.device_run import Outcome, Settings, bring_home, run_task
from benchmarks.device_task import Task
from deploy.command_line import write_json
from deploy.errors import DeviceError, InputError


def run_on_devices(
    devices: Sequence[Device], task: Task, settings: Settings,
    table: Callable[[Sequence[Mapping[str, Any]]], str] | None,
) -> None:  # fmt: skip
    """Runs the task on all devices at once, and prints and writes what they found.

    --json is the result of one device, or the list of all devices' results, in which one that failed has `device` and
    `error` alone.

    Raises DeviceError where a device failed, after all have ended; of one device, click's Exit for an exit code that
    is neither 0 nor 1.
    """
    json_file = task.values.get("json_file")
    if len(devices) > 1 and (table is None or task.outputs):
        raise InputError(
            f"what writes other files than --json runs on one device: {len(devices)} were named; name one"
        )
    with tempfile.TemporaryDirectory(prefix="slimdet-device-") as folder:
        outcomes = _all(devices, task, settings, Path(folder), live=table is None)
        if len(devices) == 1:
            _one(outcomes[0], task, json_file)
            return
    results = [outcome.result or {"device": outcome.device.name, "error": outcome.error} for outcome in outcomes]
    if json_file != "-" and table is not None:
        click.echo(table(results))
    if json_file:
        write_json(json_file, results)
    if failed := [outcome.device.name for outcome in outcomes if outcome.error]:
        raise DeviceError(
            f"every device has to succeed: {len(failed)} of {len(devices)} failed, {', '.join(failed)}; see above why"
        )


def _one(outcome: Outcome, task: Task, json_file: str | None) -> None:
    bring_home(outcome, task)
    if outcome.code not in (0, 1):  # what the command itself means by it
        click.echo(f"slimdet: error: {outcome.error}", err=True)
        raise click.exceptions.Exit(outcome.code if 0 < outcome.code < 256 else 1)
    if outcome.error:
        raise DeviceError(outcome.error)
    if outcome.text and json_file != "-":
        click.echo(outcome.text)
    if outcome.result is not None and json_file:
        write_json(json_file, outcome.result)


def _all(devices: Sequence[Device], task: Task, settings: Settings, folder: Path, live: bool) -> list[Outcome]:
    """One thread a device; Ctrl-C ends every run before it goes on its way."""
    lock = threading.Lock()
    interrupts: list[Callable[[], None]] = []

    def tell(device: Device, text: str) -> None:
        with lock:
            click.echo(f"{device.name}: {text}", err=True)

    def run(index: int, device: Device) -> Outcome:
        place = folder / str(index)
        place.mkdir()
        return run_task(device, task, settings, place, lambda text: tell(device, text), interrupts.append, live)

    with ThreadPoolExecutor(len(devices)) as pool:
        running = [pool.submit(run, index, device) for index, device in enumerate(devices)]
        try:
            return [one.result() for one in running]
        except KeyboardInterrupt:
            for interrupt in interrupts:
                interrupt()
            outcomes = [one.result() for one in running]
            if len(outcomes) == 1:
                bring_home(dataclasses.replace(outcomes[0], error=""), task)
            raise
