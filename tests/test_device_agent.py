"""The agent on this machine, as a device would run it: from its text, in a process of its own."""

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import device_agent
from benchmarks.ssh_link import agent_text

PROGRAM = "import sys;exec(sys.stdin.buffer.read({}))"


def raw(folder: Path, verb: str, request: object = None, job: str = "", body: bytes = b"") -> bytes:
    text = agent_text()
    command = [sys.executable, "-c", PROGRAM.format(len(text)), str(folder), verb, *([job] if job else [])]
    sent = text + json.dumps(request or {}).encode() + b"\n" + body
    done = subprocess.run(command, input=sent, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(device_agent.GREETING)
    return done.stdout[len(device_agent.GREETING) :]


def ask(folder: Path, verb: str, request: object = None, job: str = "", body: bytes = b"") -> list:
    return [json.loads(line) for line in raw(folder, verb, request, job, body).splitlines()]


def stream(*files: tuple[str, bytes], offset: int = 0, end: bool = True) -> bytes:
    found = b""
    for name, content in files:
        head = {"name": name, "size": len(content), "offset": offset, "sha256": hashlib.sha256(content).hexdigest()}
        found += json.dumps(head).encode() + b"\n" + content[offset:]
    return found + (b'{"end": true}\n' if end else b"")


def stored(folder: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    assert ask(folder, "receive", body=stream((digest, content))) == [{"files": 1}]
    return digest


def shell(folder: Path, job: str, *scripts: str, links: tuple = (), environment: dict | None = None) -> dict:
    commands = [["sh", "-c", script] for script in scripts]
    request = {"links": links, "environment": environment or {}, "commands": commands}
    return ask(folder, "start", request, job)[0]


def followed(folder: Path, job: str, stdout: int = 0, stderr: int = 0) -> tuple[str, str, int | None]:
    lines = ask(folder, "follow", {"stdout": stdout, "stderr": stderr}, job)
    return (*("".join(line.get(name, "") for line in lines) for name in ("stdout", "stderr")), lines[-1]["exit"])


def test_probe_tells_the_machine(tmp_path):
    (found,) = ask(tmp_path / "new", "probe", {"modules": ["json", "no_such_module"]})
    assert found["folder"] == str(tmp_path / "new") and found["free"] > 0
    assert found["python"] == list(sys.version_info[:3]) and found["missing"] == ["no_such_module"]
    assert os.stat(tmp_path / "new").st_mode & 0o777 == 0o700


def test_the_folder_is_in_the_cache_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = agent_text()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(len(text)), "", "probe"], input=text + b'{"modules": []}\n',
        capture_output=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[1])["folder"] == str(tmp_path / "slimdet-device")


def test_files_come_once_and_go_on_where_they_broke_off(tmp_path):
    content = os.urandom(3000)
    digest = hashlib.sha256(content).hexdigest()
    asked = {"files": [[digest, 3000]]}
    assert ask(tmp_path, "lacking", asked) == [{digest: 0}]
    cut = stream((digest, content), end=False)[:-1000]
    assert ask(tmp_path, "receive", body=cut) == [{"refusal": "the files did not come whole"}]
    assert ask(tmp_path, "lacking", asked) == [{digest: 2000}]
    assert ask(tmp_path, "receive", body=stream((digest, content), offset=2000)) == [{"files": 1}]
    assert ask(tmp_path, "lacking", asked) == [{}]
    assert (tmp_path / "files" / digest).read_bytes() == content
    assert [path.name for path in (tmp_path / "files").iterdir()] == [digest]


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path):
    body = stream(("0" * 64, b"content")).replace(b"\ncontent", b"\ncontemt")
    assert "arrived damaged" in ask(tmp_path, "receive", body=body)[0]["refusal"]
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "a" * 63, "A" * 64, "/etc/passwd"])
def test_a_stored_file_has_no_other_name_than_its_hash(tmp_path, name):
    assert "named by its sha256" in ask(tmp_path, "receive", body=stream((name, b"x")))[0]["refusal"]


@settings(max_examples=30, deadline=None)
@given(files=st.lists(st.binary(max_size=300), max_size=4), cut=st.integers(0, 2000))
def test_a_stream_that_is_cut_anywhere_and_sent_again_gives_the_files(tmp_path_factory, files, cut):
    folder = tmp_path_factory.mktemp("files")
    named = [(f"f{index}", content) for index, content in enumerate(files)]
    whole = stream(*named)
    taken = []
    try:
        for name in device_agent.read_files(io.BytesIO(whole[:cut]), lambda name: str(folder / name)):
            taken.append(name)
        assert cut >= len(whole)
    except EOFError:
        assert cut < len(whole)
    for name, content in named:
        if name not in taken:
            part = folder / f"{name}.part"
            again = stream((name, content), offset=part.stat().st_size if part.exists() else 0)
            assert list(device_agent.read_files(io.BytesIO(again), lambda name: str(folder / name))) == [name]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == dict(named)


def test_a_folder_is_made_of_stored_files_once(tmp_path):
    digest = stored(tmp_path, b"text")
    for _ in range(2):
        assert ask(tmp_path, "place", {"name": "1-ab", "links": [["deploy/a.py", digest]]}) == [{"placed": True}]
    assert (tmp_path / "1-ab" / "deploy" / "a.py").read_bytes() == b"text"
    assert ask(tmp_path, "exists", {"name": "1-ab"}) == [{"exists": True}]
    assert ask(tmp_path, "exists", {"name": "1-ac"}) == [{"exists": False}]
    for path in ("../out", "a/../../../out", "/etc/x"):
        assert "stays in its folder" in ask(tmp_path, "place", {"name": "b", "links": [[path, digest]]})[0]["refusal"]
    assert "no longer on the device" in ask(tmp_path, "place", {"name": "c", "links": [["a", "0" * 64]]})[0]["refusal"]


def test_a_job_runs_with_its_inputs_and_tells_all(tmp_path):
    digest = stored(tmp_path, b"input\n")
    script = "cat inputs/0/a.txt; printf 'caf\\351\\n'; echo $WORD >&2; echo out > results/r; exit 3"
    assert shell(tmp_path, "j", script, links=(["0/a.txt", digest],), environment={"WORD": "noise"})["started"]
    out, error, code = followed(tmp_path, "j")
    assert out.encode("utf-8", "surrogateescape") == b"input\ncaf\xe9\n" and (error, code) == ("noise\n", 3)
    assert followed(tmp_path, "j", stdout=6, stderr=6)[:2] == ("caf\udce9\n", "")
    assert raw(tmp_path, "fetch", {"have": {}}, "j") == stream(("r", b"out\n"))
    assert raw(tmp_path, "fetch", {"have": {"r": 2}}, "j") == stream(("r", b"out\n"), offset=2)
    assert raw(tmp_path, "fetch", {"have": {"r": -1}}, "j") == stream()
    assert ask(tmp_path, "remove", job="j") == [{"removed": True}]
    assert os.listdir(tmp_path / "jobs") == []
    assert "its run is gone" in ask(tmp_path, "follow", {"stdout": 0, "stderr": 0}, "j")[0]["refusal"]


def test_steps_end_at_the_first_that_fails(tmp_path):
    shell(tmp_path, "j", "echo 1", "echo 2; exit 5", "echo 3")
    assert followed(tmp_path, "j") == ("1\n2\n", "", 5)
    ask(tmp_path, "start", {"links": [], "environment": {}, "commands": [["/no/such/program"]]}, "k")
    _, error, code = followed(tmp_path, "k")
    assert error.startswith("slimdet: error: /no/such/program cannot be run") and code == 127


def test_a_job_is_started_once_until_it_fails(tmp_path):
    script = f"echo x >> {tmp_path}/count; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; exit $(cat {tmp_path}/go)"
    assert shell(tmp_path, "j", script)["started"] is True
    assert shell(tmp_path, "j", script)["started"] is False
    (tmp_path / "go").write_text("1")
    assert followed(tmp_path, "j")[2] == 1
    (tmp_path / "go").write_text("0")
    assert shell(tmp_path, "j", script)["started"] is True  # it had failed
    assert followed(tmp_path, "j")[2] == 0
    assert shell(tmp_path, "j", script)["started"] is False  # its result is still to be fetched
    assert (tmp_path / "count").read_text() == "x\n" * 2


def test_stop_interrupts_and_kills_what_does_not_listen(tmp_path, monkeypatch):
    trap = "import signal, time, sys\nsys.stdout.write('up'); sys.stdout.flush()\n"
    listens = trap + "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    sys.exit(7)"
    commands = {"j": [[sys.executable, "-c", listens], [sys.executable, "-c", "print('next')"]]}
    commands["k"] = [[sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + listens]]
    monkeypatch.setattr(device_agent, "STOP_SECONDS", 0.3)
    for job, wanted in (("j", 7), ("k", -9)):
        ask(tmp_path, "start", {"links": [], "environment": {}, "commands": commands[job]}, job)
        while (tmp_path / "jobs" / job / "stdout").read_text() != "up":
            time.sleep(0.02)
        assert device_agent.stop(str(tmp_path), {}, job) == {"stopped": True}
        assert followed(tmp_path, job) == ("up", followed(tmp_path, job)[1], wanted)


def test_a_job_that_died_without_an_exit_code_is_told_and_begun_anew(tmp_path):
    shell(tmp_path, "j", "exit 0")
    assert followed(tmp_path, "j")[2] == 0
    (tmp_path / "jobs" / "j" / "exit").unlink()  # as after a restart of the device
    assert followed(tmp_path, "j")[2] is None
    assert shell(tmp_path, "j", "exit 0")["started"] is True


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    assert "--device-folder" in ask(tmp_path / "file", "probe", {"modules": []})[0]["refusal"]


def test_the_text_is_what_an_old_python_reads():
    import ast

    ast.parse(agent_text(), feature_version=(3, 8))
    assert b"\nimport benchmarks" not in agent_text() and b"from deploy" not in agent_text()
