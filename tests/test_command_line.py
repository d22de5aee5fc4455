"""Exit codes, one sentence instead of a traceback, and files that are never half-written."""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from deploy.command_line import debug_option, exit_code, json_option, write_atomically, write_json
from deploy.errors import ContractError, InputError

ROOT = Path(__file__).parents[1]


def program(action: Callable[[], object]) -> click.Group:
    @click.group()
    def main() -> None:
        pass

    @main.command()
    @click.option("--number", type=int)
    @debug_option
    def act(number: int | None) -> None:
        action()

    return main


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def test_success_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(program(lambda: click.echo("done")), "p", ["act"]) == 0
    assert capsys.readouterr() == ("done\n", "")


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(program(lambda: None), "p", ["act", "--help"]) == 0
    assert "Usage: p act" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nothing"], ["act", "--nothing"], ["act", "--number", "x"], ["act", "b"], []])
def test_wrong_use_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(program(lambda: None), "p", arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Usage: p" in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("no\n  such picture"), "no such picture"),
        (ContractError("labels differ"), "labels differ"),
        (click.ClickException("not so"), "not so"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), "a.jpg: No such file or directory; check"),
        (OSError("odd"), "odd; check"),
        (KeyboardInterrupt(), "interrupted"),
        (click.Abort(), "interrupted"),
    ],
)
def test_what_a_user_causes_is_1_and_one_line(
    error: BaseException, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(program(raising(error)), "p", ["act"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"slimdet: error: {sentence}") and captured.err.count("\n") == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(program(raising(InputError("no such picture"))), "p", ["act", "--debug"]) == 1
    captured = capsys.readouterr().err
    assert "Traceback (most recent call last)" in captured and "raise error" in captured
    assert captured.endswith("slimdet: error: no such picture\n")


def test_a_fault_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(program(lambda: 1 / 0), "p", ["act"])


def run_script(body: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    code = f"""
import sys, time, click
from pathlib import Path
from deploy.command_line import run
@click.command()
def main():
{body}
run(main, "p")
"""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=pipe, stderr=pipe, env=environment)


def test_a_reader_that_leaves_is_not_worth_a_word() -> None:
    process = run_script("    while True: click.echo('line ' * 100)")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_order(tmp_path: Path, number: int) -> None:
    process = run_script(f"""
    try:
        click.echo("ready")
        time.sleep(60)
    finally:
        Path({str(tmp_path)!r}, "tidied").touch()
""")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error.startswith(b"slimdet: error: interrupted") and error.count(b"\n") == 1
    assert (tmp_path / "tidied").exists()


def test_letters_that_the_terminal_lacks_are_escaped() -> None:
    process = run_script(r"    click.echo('1 \u732b \udcff')", {**os.environ, "PYTHONIOENCODING": "latin-1"})
    out, error = process.communicate(timeout=30)
    assert (out, error, process.returncode) == (b"1 \\u732b \\udcff\n", b"", 0)


def test_json_to_standard_output_and_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = {"map": 0.5, "per_class": {"猫": [1, None]}}
    write_json("-", value)
    assert json.loads(capsys.readouterr().out) == value
    write_json(str(tmp_path / "o.json"), value)
    assert json.loads((tmp_path / "o.json").read_text()) == value
    with pytest.raises(ValueError):
        write_json(str(tmp_path / "o.json"), {"map": float("nan")})
    assert json.loads((tmp_path / "o.json").read_text()) == value


def test_the_json_option_takes_a_file_or_a_dash(tmp_path: Path) -> None:
    taken: list[str | None] = []

    @click.command()
    @json_option("Result.")
    def main(json_file: str | None) -> None:
        taken.append(json_file)

    assert exit_code(main, "p", ["--json", "-"]) == 0
    assert exit_code(main, "p", ["--json", "o.json"]) == 0
    assert exit_code(main, "p", []) == 0
    assert exit_code(main, "p", ["--json", str(tmp_path)]) == 2
    assert taken == ["-", "o.json", None]


def test_the_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old and longer")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("place", ["file/f", "missing/f", "folder", "", "x" * 300])
def test_where_no_file_can_be(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(Path(place), b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match="cannot write .*f: "):
            write_atomically(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_an_interruption_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "f"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    read: list[bytes] = []
    for path in (pipe, tmp_path / "link"):
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        write_atomically(path, b"new")
        reader.join()
    assert read == [b"new", b"new"]
    assert pipe.is_fifo() and sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_json_follows_a_link_and_other_files_replace_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_json(str(tmp_path / "link"), {"a": 1})
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "real").read_text()) == {"a": 1}
    write_atomically(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink() and json.loads((tmp_path / "real").read_text()) == {"a": 1}
