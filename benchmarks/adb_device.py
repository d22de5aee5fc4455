"""Measures latency on an Android device by adb, with a `benchmark_model` that the user names.

Android has no Python for us: accuracy and detect need one, and are refused. Model and program lie under their hashes in
/data/local/tmp/slimdet, where a shell may run programs, and are not copied twice.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import benchmark_model
from benchmarks.device import Device
from benchmarks.device_program import Programs
from benchmarks.environment import LIBRARIES, UNAVAILABLE
from benchmarks.ssh_link import printable
from benchmarks.ssh_run import sha256_of
from deploy.errors import DeviceError

FOLDER = "/data/local/tmp/slimdet"
#: What benchmark_model is told for each backend.
BACKENDS = {
    "cpu": ("--use_xnnpack=true",),
    "cpu-builtin": ("--use_xnnpack=false",),
    "gpu": ("--use_gpu=true",),
    "gpu:fp32": ("--use_gpu=true", "--gpu_precision_loss_allowed=false"),
}
#: Options of `bench latency` that benchmark_model has too.
KNOWN = ("threads", "runs", "min_secs", "max_secs", "warmup_runs", "warmup_min_secs")
#: What adb says, the law, and what helps. The first that matches counts.
_FAILURES = (
    (r"device unauthorized|unauthorized", "it has not allowed this machine; unlock it and accept the question there"),
    (r"device offline|\boffline\b", "it is offline; plug it in again, or run `adb reconnect`"),
    (r"more than one device", "several devices are connected; name one as adb:SERIAL, `adb devices` lists them"),
    (r"no devices/emulators found|no devices found", "no device is connected; plug one in that allows USB debugging"),
    (r"device '.*' not found|device not found", "no device of that serial is connected; `adb devices` lists them"),
    (r"no permissions|insufficient permissions", "this user may not open its USB port; add a udev rule for it"),
    (r"cannot connect to daemon|failed to start daemon", "adb's server does not start; run `adb start-server`"),
    (r"No space left", "it has no room for the files; free some in /data/local/tmp"),
    (r"Permission denied", "it refuses to run or write files in /data/local/tmp; check what runs there"),
)
#: What is asked of the device in one go, a marker before each answer.
_QUESTIONS = {
    "soc": "getprop ro.soc.model",
    "model": "getprop ro.product.model",
    "release": "getprop ro.build.version.release",
    "abi": "getprop ro.product.cpu.abi",
    "kernel": "uname -r",
    "cores": "grep -c ^processor /proc/cpuinfo",
    "memory": "grep MemTotal /proc/meminfo",
    "governor": "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
    "frequency": "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
    "load": "cat /proc/loadavg",
    "temperature": "cat /sys/class/thermal/thermal_zone*/temp",
}


def measure_latency(
    programs: Programs, device: Device, model: Path, program: Path, backend: str, settings: Mapping[str, float]
) -> dict[str, Any]:
    """Latency on the device in the fields of benchmarks.latency, those that it cannot tell "unavailable".

    program: a benchmark_model for the device. settings: values of KNOWN.

    Raises DeviceError for a device that is not to be had, a backend that benchmark_model lacks, and whatever fails.
    """
    if backend not in BACKENDS:
        raise DeviceError(
            f"{device.name}: benchmark_model runs {', '.join(BACKENDS)}, not {backend}; choose one of these"
        )
    adb = Adb(programs, device)
    adb.shell("mkdir", "-p", FOLDER)
    graph, runner = adb.push(model, "tflite"), adb.push(program, "benchmark_model")
    adb.shell("chmod", "755", runner)
    before = adb.environment()
    options = [f"--{name.replace('threads', 'num_threads')}={value:g}" for name, value in settings.items()]
    options = [option.replace("--runs=", "--num_runs=") for option in options]
    command = [runner, f"--graph={graph}", *options, *BACKENDS[backend], "--report_peak_memory_footprint=true"]
    said = adb.shell(*command)
    found = benchmark_model.parse(said, device.name)
    state = found["delegation"]["state"] if isinstance(found["delegation"], dict) else UNAVAILABLE
    if backend.startswith("gpu") and state != "all":
        raise DeviceError(
            f"{device.name}: a latency of {backend} is one of a model that runs on the GPU whole: of this one "
            f"{'a part' if state == 'part' else 'nothing that is known of'} does; use --backend cpu"
        )
    return {
        "device": device.name,
        **found,
        "threads": int(settings["threads"]),
        "backend": backend,
        "model": str(model),
        "measured_by": "benchmark_model",
        "environment": before,
        "warnings": [],
    }


class Adb:
    """adb for one device."""

    def __init__(self, programs: Programs, device: Device) -> None:
        self._programs, self._device = programs, device

    def run(self, *words: str) -> str:
        """What adb printed. Raises DeviceError where it failed."""
        select = ["-s", self._device.address] if self._device.address else []
        try:
            done = self._programs.run(["adb", *select, *words])
        except OSError as error:
            raise DeviceError(
                f"{self._device.name}: an Android device is reached by the program `adb`: it cannot be run here "
                f"({error.strerror or error}); install Android's platform-tools"
            ) from error
        if done.returncode:
            raise self._failure(words[0], f"{done.stdout}\n{done.stderr}")
        return done.stdout

    def shell(self, *words: str) -> str:
        """What a program on the device printed on both its outputs. Raises DeviceError where it failed."""
        # Old devices do not pass an exit code on, so the shell there prints it.
        out = self.run("shell", f"{shlex.join(words)} 2>&1; echo exit:$?")
        said, _, code = out.rstrip().rpartition("exit:")
        if code.strip() != "0":
            raise self._failure(words[0].rpartition("/")[2], said or out)
        return said.replace("\r\n", "\n")

    def push(self, path: Path, ending: str) -> str:
        """Copies a file unless it is there; returns its path there."""
        there = f"{FOLDER}/{sha256_of(path)[:32]}.{ending}"
        size = self.run("shell", f"stat -c %s {shlex.quote(there)} 2>/dev/null || echo none").strip()
        if size != str(path.stat().st_size):
            self.run("push", str(path.resolve()), f"{there}.part")
            self.shell("mv", f"{there}.part", there)
        return there

    def environment(self) -> dict[str, Any]:
        """The device in the keys of benchmarks.environment."""
        script = "; ".join(f"echo '#{key}'; {question} 2>/dev/null" for key, question in _QUESTIONS.items())
        told = dict.fromkeys(_QUESTIONS, "")
        for section in self.run("shell", script + "; true").replace("\r", "").split("#")[1:]:
            key, _, text = section.partition("\n")
            told[key.strip()] = printable(text.strip().replace("\n", "\t"))
        name = " ".join(filter(None, (told["model"], told["soc"])))
        memory, degrees = re.search(r"\d+", told["memory"]), re.findall(r"-?\d+", told["temperature"])
        load = re.match(r"([\d.]+) ([\d.]+) ([\d.]+)", told["load"])
        return {
            "cpu": name or UNAVAILABLE,
            "cores": int(told["cores"]) if told["cores"].isdigit() else UNAVAILABLE,
            "usable_cores": UNAVAILABLE,
            "memory_mb": int(memory[0]) // 1024 if memory else UNAVAILABLE,
            "governor": told["governor"] or UNAVAILABLE,
            "frequency_mhz": int(told["frequency"]) / 1000 if told["frequency"].isdigit() else UNAVAILABLE,
            "temperature_c": max(map(int, degrees)) / 1000 if degrees else UNAVAILABLE,
            "load_average": [float(value) for value in load.groups()] if load else UNAVAILABLE,
            "system": f"Android {told['release']}" if told["release"] else UNAVAILABLE,
            "kernel": told["kernel"] or UNAVAILABLE,
            "architecture": told["abi"] or UNAVAILABLE,
            "python": UNAVAILABLE,
            "libraries": dict.fromkeys(LIBRARIES, UNAVAILABLE),
        }

    def _failure(self, what: str, said: str) -> DeviceError:
        lines = [printable(line.strip()) for line in said.splitlines() if line.strip() and not line.startswith("* ")]
        last = next((line for line in lines if "error" in line.lower()), (lines or ["it said nothing"])[-1])
        for pattern, remedy in _FAILURES:
            if re.search(pattern, said):
                return DeviceError(f"{self._device.name}: {remedy} (adb says: {last})")
        return DeviceError(f"{self._device.name}: {what} failed there: {last}; try `adb {what}` by hand")
