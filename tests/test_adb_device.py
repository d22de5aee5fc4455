"""adb by its command lines: a program of the same name that keeps what it was told and plays what was recorded."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_benchmark_model import NEW, OLD
from toy_detector import write_toy

from benchmarks import cli
from deploy.command_line import exit_code

FAKE = """#!{python}
import json, os, re, sys
folder = os.path.dirname(os.path.abspath(__file__))
words = sys.argv[1:]
with open(folder + "/log", "a") as log:
    log.write(json.dumps(words) + "\\n")
if os.path.exists(folder + "/fails"):
    sys.stderr.write(open(folder + "/fails").read())
    sys.exit(1)
words = words[2:] if words[0] == "-s" else words
if words[0] == "push":
    open(folder + "/pushed", "a").write(str(os.path.getsize(words[1])) + "\\n")
    sys.exit(0)
script = words[1]
if script.startswith("stat"):
    print(open(folder + "/size").read() if os.path.exists(folder + "/size") else "none", end="")
elif "benchmark_model" in script and "--graph" in script:
    print(open(folder + "/plays").read() + "exit:" + ("1" if os.path.exists(folder + "/failed") else "0"))
elif "getprop" in script:
    print(open(folder + "/phone").read(), end="")
else:
    print("exit:0")
"""
PHONE = """#soc\r
Tensor G3\r
#model\r
Pixel 8\r
#release\r
14\r
#abi\r
arm64-v8a\r
#kernel\r
5.15.110-android14\r
#cores\r
9\r
#memory\r
MemTotal:        7753404 kB\r
#governor\r
#frequency\r
1704000\r
#load\r
1.50 2.00 3.25 2/5000 100\r
#temperature\r
31000\r
45500\r
"""


@pytest.fixture
def phone(tmp_path, monkeypatch):
    """The folder of the stand-in: `plays` is what benchmark_model prints, `fails` what adb says instead of working."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "adb").write_text(FAKE.format(python=sys.executable))
    (folder / "adb").chmod(0o755)
    (folder / "plays").write_text(NEW)
    (folder / "phone").write_text(PHONE)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "benchmark_model").write_text("a program")
    write_toy(tmp_path / "toy.tflite")
    return folder


def measure(folder: Path, *arguments: str, device: str = "adb:R58", command: str = "latency") -> int:
    top = folder.parent
    words = [command, str(top / "toy.tflite"), "--device", device, *arguments]
    if command == "latency":
        words += ["--benchmark-model", str(top / "benchmark_model")]
    return exit_code(cli.main, "p", words)


def told(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_latency_of_a_phone(phone, tmp_path, capsys):
    arguments = ["--threads", "4", "--runs", "60", "--min-secs", "1.5", "--json", str(tmp_path / "r.json")]
    assert measure(phone, *arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:4] == ["device", "cpu", "backend", "threads"]
    assert "Pixel 8 Tensor G3" in shown[1] and "3.866" in shown[1] and "unavailable" in shown[1]
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["device"], found["p50_ms"], found["threads"], found["backend"]) == ("adb:R58", 3.866, 4, "cpu")
    assert found["environment"] == {
        "cpu": "Pixel 8 Tensor G3", "cores": 9, "usable_cores": "unavailable", "memory_mb": 7753404 // 1024,
        "governor": "unavailable", "frequency_mhz": 1704.0, "temperature_c": 45.5, "load_average": [1.5, 2.0, 3.25],
        "system": "Android 14", "kernel": "5.15.110-android14", "architecture": "arm64-v8a", "python": "unavailable",
        "libraries": found["environment"]["libraries"],
    }  # fmt: skip
    assert all(words[:2] == ["-s", "R58"] for words in told(phone))
    (run,) = [words[3] for words in told(phone) if "--graph" in words[-1]]
    assert run.startswith("/data/local/tmp/slimdet/") and run.endswith(" 2>&1; echo exit:$?")
    for option in (
        "--num_threads=4", "--num_runs=60", "--min_secs=1.5", "--max_secs=150", "--warmup_runs=1",
        "--warmup_min_secs=0.5", "--use_xnnpack=true", "--report_peak_memory_footprint=true",
    ):  # fmt: skip
        assert f" {option} " in run


def test_files_are_pushed_once(phone, tmp_path):
    (tmp_path / "benchmark_model").write_bytes(b"x" * (tmp_path / "toy.tflite").stat().st_size)
    size = (tmp_path / "toy.tflite").stat().st_size
    assert measure(phone) == 0
    assert (phone / "pushed").read_text() == f"{size}\n" * 2
    (phone / "size").write_text(f"{size}\n")
    assert measure(phone) == 0
    assert (phone / "pushed").read_text() == f"{size}\n" * 2


def test_the_only_device_needs_no_serial(phone):
    assert measure(phone, device="adb") == 0
    assert all(words[0] in ("shell", "push") for words in told(phone))


def test_backends(phone, capsys):
    assert measure(phone, "--backend", "cpu-builtin") == 0
    assert "--use_xnnpack=false" in told(phone)[-1][-1]
    (phone / "plays").write_text(NEW.replace("applied XNNPACK", "applied GPU"))
    assert measure(phone, "--backend", "gpu:fp32") == 0
    assert "--use_gpu=true --gpu_precision_loss_allowed=false" in told(phone)[-1][-1]
    (phone / "plays").write_text(OLD.replace("applied XNNPACK", "applied GPU"))
    capsys.readouterr()
    assert measure(phone, "--backend", "gpu") == 1  # a part ran on the CPU
    assert "runs on the GPU whole: of this one a part does" in capsys.readouterr().err
    assert measure(phone, "--backend", "cpu-reference") == 1
    assert "benchmark_model runs cpu, cpu-builtin, gpu, gpu:fp32, not cpu-reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("error: device 'R58' not found", "no device of that serial is connected"),
        ("adb: device 'R58' not found", "no device of that serial is connected"),
        ("error: no devices/emulators found", "no device is connected"),
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set", "has not allowed this machine"),
        ("error: device offline", "it is offline"),
        ("error: more than one device/emulator", "name one as adb:SERIAL"),
        ("error: insufficient permissions for device: user in plugdev group", "add a udev rule"),
        ("* daemon not running; starting now at tcp:5037\nadb: error: something new", "by hand"),
    ],
)  # fmt: skip
def test_what_adb_refuses(phone, capsys, said, remedy):
    (phone / "fails").write_text(said + "\n")
    assert measure(phone) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("slimdet: error: adb:R58: ") and remedy in line


def test_benchmark_models_own_failure(phone, capsys):
    (phone / "plays").write_text("ERROR: Failed to load the model\n")
    (phone / "failed").write_text("")
    assert measure(phone) == 1
    assert "ERROR: Failed to load the model" in capsys.readouterr().err


def test_what_android_cannot_do_is_said_at_once(phone, tmp_path, capsys):
    (tmp_path / "toy.png").write_bytes(b"")
    assert measure(phone, "--picture", str(tmp_path / "toy.png")) == 1
    assert "benchmark_model has nothing for picture" in capsys.readouterr().err
    from voc_folder import small_set

    assert measure(phone, "--data", str(small_set(tmp_path / "d")), command="accuracy") == 1
    assert "accuracy needs Python on the device, which Android has none of" in capsys.readouterr().err
    assert exit_code(cli.main, "p", ["latency", str(tmp_path / "toy.tflite"), "--device", "adb"]) == 1
    assert "name one for its processor by --benchmark-model FILE" in capsys.readouterr().err
    assert not (phone / "log").exists()


def test_no_adb_at_all(phone, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert measure(phone) == 1
    assert "by the program `adb`: it cannot be run here" in capsys.readouterr().err


def test_the_real_adb_finds_no_device(tmp_path, capsys, monkeypatch):
    if shutil.which("adb") is None:
        pytest.skip("no adb here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "benchmark_model").write_text("")
    model = str(write_toy(tmp_path / "toy.tflite"))
    try:
        for device, remedy in (("adb:NONE", "no device of that serial"), ("adb", "no device is connected")):
            words = ["latency", model, "--device", device, "--benchmark-model", str(tmp_path / "benchmark_model")]
            assert exit_code(cli.main, "p", words) == 1
            assert remedy in capsys.readouterr().err
    finally:
        subprocess.run(["adb", "kill-server"], capture_output=True)
