"""Commands on a device behind a real ssh server on the loopback address."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ssh_server import SshServer, ssh_server  # noqa: F401  a fixture
from toy_detector import write_toy
from voc_folder import small_set

from benchmarks import cli, ssh_link
from benchmarks.device_command import with_devices
from deploy.cli import detect
from deploy.command_line import exit_code

QUICK = ["--runs", "3", "--min-secs", "0", "--warmup-min-secs", "0"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("model") / "toy.tflite")


@pytest.fixture
def device(ssh_server: SshServer, tmp_path_factory) -> list[str]:  # noqa: F811
    """The options of a device whose Python is this one; its folder is shared by the tests of this module."""
    return options(ssh_server, ssh_server.folder / "device")


def options(server: SshServer, folder: Path) -> list[str]:
    return [
        "--device", server.device, "--ssh-config", str(server.config), "--device-folder", str(folder),
        "--device-python", sys.executable,
    ]  # fmt: skip


def run(*arguments: object) -> int:
    return exit_code(cli.main, "p", [str(one) for one in arguments])


def run_detect(*arguments: object) -> int:
    return exit_code(with_devices(detect, "deploy", None), "detect", [str(one) for one in arguments])


def test_latency_comes_home(toy, device, ssh_server, tmp_path, capsys):  # noqa: F811
    assert run("latency", toy, *QUICK, *device, "--json", tmp_path / "r.json") == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["ms", "p50", "p90"]
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["device"], found["model"] if "model" in found else str(toy)) == (ssh_server.device, str(toy))
    assert found["runs"] == 3 and found["environment"]["architecture"] == os.uname().machine
    assert os.listdir(ssh_server.folder / "device" / "jobs") == []


def test_a_list_of_devices_gives_one_table_and_a_list(toy, device, ssh_server, tmp_path, capsys):  # noqa: F811
    bad = ["--device", f"ssh:nobody@127.0.0.1:{ssh_server.port}"]
    assert run("latency", toy, *QUICK, *device, "--device", "local", *bad, "--json", tmp_path / "r.json") == 1
    shown = capsys.readouterr()
    table = shown.out.split("\n\n")[0].splitlines()
    assert [line.split()[0] for line in table] == ["device", ssh_server.device, "local"]
    assert f"{bad[1]}: error: " in shown.out
    assert shown.err.splitlines()[-1].startswith("slimdet: error: every device has to succeed: 1 of 3 failed")
    found = json.loads((tmp_path / "r.json").read_text())
    assert [one["device"] for one in found] == [ssh_server.device, "local", bad[1]]
    assert found[0]["p50_ms"] > 0 and found[1]["p50_ms"] > 0 and set(found[2]) == {"device", "error"}


def test_accuracy_is_that_of_here_and_pictures_are_copied_once(toy, device, ssh_server, tmp_path, capsys):  # noqa: F811
    data = small_set(tmp_path / "data")
    (data / "JPEGImages" / "001.png").unlink()  # is told there as it is here
    assert run("accuracy", toy, "--data", data, *device, "--json", tmp_path / "there.json") == 0
    assert run("accuracy", toy, "--data", data, "--json", tmp_path / "here.json") == 0
    there, here = (json.loads((tmp_path / name).read_text()) for name in ("there.json", "here.json"))
    for key in ("map", "per_class", "images", "skipped_count", "data", "model", "model_sha256", "detections"):
        assert there[key] == here[key], key
    store = ssh_server.folder / "device" / "files"
    times = {path.name: path.stat().st_mtime_ns for path in store.iterdir()}
    assert run("accuracy", toy, "--data", data, *device) == 0
    assert {path.name: path.stat().st_mtime_ns for path in store.iterdir()} == times


def test_an_error_there_is_one_line_here(toy, device, ssh_server, tmp_path, capsys):  # noqa: F811
    (tmp_path / "no.tflite").write_bytes(b"nothing")
    assert run("latency", tmp_path / "no.tflite", *QUICK, *device) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"slimdet: error: {ssh_server.device}: ") and str(tmp_path / "no.tflite") in line
    assert run("latency", toy, *QUICK, *device, "--backend", "warp") == 1
    assert "a backend is one of" in capsys.readouterr().err


def test_detect_looks_at_pictures_that_were_copied(toy, device, tmp_path, capsys):
    photos = small_set(tmp_path / "data") / "JPEGImages"
    assert run_detect(toy, "--source", photos, *device, "--jsonl", tmp_path / "there", "--out", tmp_path / "seen") == 0
    assert run_detect(toy, "--source", photos, "--jsonl", tmp_path / "here") == 0
    assert (tmp_path / "there").read_text() == (tmp_path / "here").read_text()
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [f"{index:03d}.png" for index in range(4)]
    capsys.readouterr()
    assert run_detect(toy, "--source", photos, *device, "--jsonl", "-") == 0
    assert capsys.readouterr().out == (tmp_path / "here").read_text()
    assert run_detect(toy, "--source", "/dev/video99", "--for", 2, *device) == 1  # a camera is the device's own
    assert "there is no such camera; plug it in" in capsys.readouterr().err
    sources = ("--source", photos, "--source", "pattern")
    assert run_detect(toy, *sources, "--for", 3, *device, "--jsonl", tmp_path / "both") == 0
    lines = [json.loads(line) for line in (tmp_path / "both").read_text().splitlines()]
    feeds = [line["feed"] for line in lines if "detections" in line]  # the others are events
    assert feeds.count("0") == 4 and feeds.count("1") > 4


def test_a_wrong_key_and_an_unknown_host(toy, ssh_server, tmp_path, capsys):  # noqa: F811
    (ssh_server.folder / "nobody").write_text("")
    for key, known, remedy in (("other_key", "known", "ssh-copy-id"), ("user_key", "nobody", "host key")):
        config = ssh_server.write_config("other_config", key, known)
        assert run("latency", toy, "--device", ssh_server.device, "--ssh-config", config) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"slimdet: error: {ssh_server.device}: there is no connection: ") and remedy in line


def test_no_server_no_python_no_requirements(toy, device, ssh_server, tmp_path, capsys):  # noqa: F811
    config = ["--ssh-config", ssh_server.config, "--device-folder", tmp_path / "device"]
    assert run("latency", toy, "--device", "ssh:127.0.0.1:1", *config) == 1
    assert "Connection refused; check that its ssh server runs" in capsys.readouterr().err
    assert run("latency", toy, "--device", ssh_server.device, *config, "--device-python", "/no/python") == 1
    assert "/no/python cannot be run there" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.write_text(f"#!/bin/sh\nexec {sys.executable} -S -E \"$@\"\n")
    bare.chmod(0o755)
    assert run("latency", toy, "--device", ssh_server.device, *config, "--device-python", bare) == 1
    assert "lacks numpy, cv2, PIL, ai_edge_litert, click" in capsys.readouterr().err


def test_a_talkative_login_does_not_disturb(toy, device, ssh_server, tmp_path):  # noqa: F811
    shell = tmp_path / "python"
    shell.write_text(f"#!/bin/sh\necho Welcome to my board\nprintf 'no line end'\nexec {sys.executable} \"$@\"\n")
    shell.chmod(0o755)
    place = device.index("--device-python") + 1
    assert run("latency", toy, *QUICK, *device[:place], shell, "--json", tmp_path / "r.json") == 0


def started(words: list[object], until: Callable[[], bool], module: str = "benchmarks") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", module, *map(str, words)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(cli.__file__).parents[1]
    )
    for _ in range(1200):
        if until() or process.poll() is not None:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError("it did not begin within a minute")


def jobs(server: SshServer) -> list[Path]:
    return list((server.folder / "device" / "jobs").glob("latency-*/pid"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes serve a connection")
def test_a_dropped_connection_is_made_again_and_the_result_arrives(toy, device, ssh_server, tmp_path):  # noqa: F811
    words = ["latency", toy, "--min-secs", "8", *device, "--json", tmp_path / "r.json"]
    process = started(words, lambda: bool(jobs(ssh_server)))
    try:
        assert ssh_server.cut() > 0
        ssh_server.stop()
        time.sleep(1.5)  # meanwhile nobody answers
    finally:
        ssh_server.start()
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "the connection is lost; trying again, what runs there goes on" in error
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["measured_s"] >= 8 and found["device"] == ssh_server.device


def test_ctrl_c_ends_the_run_there(toy, device, ssh_server):  # noqa: F811
    process = started(["latency", toy, "--min-secs", "60", *device], lambda: bool(jobs(ssh_server)))
    (pid_file,) = jobs(ssh_server)
    pid = int(pid_file.read_text())
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and error.splitlines()[-1].startswith("slimdet: error: interrupted")
    assert "Traceback" not in error and jobs(ssh_server) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_ctrl_c_keeps_what_detect_has_finished(toy, device, ssh_server, tmp_path):  # noqa: F811
    first = small_set(tmp_path / "data") / "JPEGImages" / "000.png"
    (tmp_path / "many").mkdir()
    for index in range(20_000):
        os.link(first, tmp_path / "many" / f"{index:05d}.png")
    lines = ssh_server.folder / "device" / "jobs"
    words = ["detect", toy, "--source", tmp_path / "many", *device, "--jsonl", tmp_path / "r"]
    process = started(
        words, lambda: any(path.stat().st_size for path in lines.glob("detect-*/results/.jsonl.*")), "toolchain"
    )
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and error.splitlines()[-1].startswith("slimdet: error: interrupted")
    found = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert 0 < len(found) < 20_000
    assert [one["source"] for one in found] == [f"{tmp_path}/many/{index:05d}.png" for index in range(len(found))]


def test_the_command_quotes_what_the_user_named(ssh_server):  # noqa: F811
    from benchmarks.device import parse_device

    with ssh_link.Link(parse_device("ssh:pi@host:22"), "/a b/$(reboot)", "~/x;reboot") as link:
        words = link.command("probe")
    assert words[:2] == ["ssh", "-T"] and words[-3:-1] == ["--", "pi@host"] and "BatchMode=yes" in words
    assert "'/a b/$(reboot)'" in words[-1] and "'~/x;reboot'" in words[-1]


@pytest.fixture
def index(tmp_path) -> None:
    """Skips where pip has no index."""
    tried = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(tmp_path / "tried"), "click"],
        capture_output=True,
    )  # fmt: skip
    if tried.returncode:
        pytest.skip("no package index is to be had here")


@pytest.mark.slow
def test_a_device_without_an_index_is_given_wheels(toy, index, tmp_path, ssh_server, capsys):  # noqa: F811
    none = {"PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_CONFIG_FILE": "/dev/null", "PIP_RETRIES": "0"}
    ssh_server.stop()
    ssh_server.write_server(**none)
    ssh_server.start()
    try:
        words = options(ssh_server, tmp_path / "device")[:-2]
        assert run("latency", toy, *QUICK, *words, "--json", tmp_path / "r.json") == 0
    finally:
        ssh_server.stop()
        ssh_server.write_server()
        ssh_server.start()
    assert "fetching wheels here" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["runs"] == 3


@pytest.mark.slow
def test_the_first_use_installs_what_is_required(toy, index, ssh_server, tmp_path, capsys):  # noqa: F811
    words = options(ssh_server, tmp_path / "device")[:-2]
    assert run("latency", toy, *QUICK, *words, "--json", tmp_path / "r.json") == 0
    assert "first use: installing" in capsys.readouterr().err
    assert run("latency", toy, *QUICK, *words) == 0
    assert "first use" not in capsys.readouterr().err
    assert len(list((tmp_path / "device").glob("env-*/complete"))) == 1
