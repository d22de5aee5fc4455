"""What a command's words become for a device; nothing runs here."""

from pathlib import Path

import click
import pytest

from benchmarks import cli, device_runs
from benchmarks.device_command import with_devices
from benchmarks.device_inputs import Input
from benchmarks.ssh_device import Result
from deploy.command_line import exit_code


@click.command(no_args_is_help=True)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--threads", callback=lambda _context, _parameter, value: tuple(map(int, value.split(","))), default="1")
@click.option("--backend", multiple=True)
@click.option("--pin/--no-pin", default=True)
@click.option("--fast", is_flag=True)
@click.option("-n", "--number", type=int, default=3)
@click.option("--cache", type=click.Path(path_type=Path))
@click.option("--json", "json_file")
def sample(**values: object) -> None:
    """A command with options of every kind."""
    click.echo("ran here")


@pytest.fixture
def task(monkeypatch):
    """Calls the command and gives the task that would run."""
    seen = []
    monkeypatch.setattr(device_runs, "run_on_devices", lambda devices, task, settings, table: seen.append(task))

    def call(*words: object) -> object:
        command = with_devices(sample, "module", lambda results: "table")
        assert exit_code(command, "sample", [str(word) for word in words]) == 0
        return seen.pop() if seen else None

    return call


def test_words_go_as_they_were_written(task, tmp_path):
    model = tmp_path / "m.tflite"
    model.write_bytes(b"x")
    found = task(
        model, "--threads=1,2", "--backend", "a", "--backend", "delegate:b c", "--no-pin", "--fast", "-n7",
        "--device", "local",
    )  # fmt: skip
    words = found.words
    assert (words.module, words.command) == ("module", "sample")
    assert list(words.words) == [
        "--json", Result("result.json"), Input(str(model), "m.tflite", {"m.tflite": model}), "--threads", "1,2",
        "--backend", "a", "--backend", "delegate:b c", "--no-pin", "--fast", "--number", "7",
    ]  # fmt: skip
    assert list(task(model, "--device", "local").words.words)[3:] == []


def test_without_a_device_it_is_the_command_itself(task, tmp_path, capsys):
    assert task("m.tflite", "--cache", "x") is None
    assert capsys.readouterr().out == "ran here\n"


def test_what_does_not_fit_is_refused(tmp_path, capsys):
    command = with_devices(sample, "module", None)
    model = tmp_path / "m.tflite"
    model.write_bytes(b"x")
    for words, code, said in (
        (["m", "--device-python", "/x"], 2, "--device-python belongs to --device"),
        (["no.tflite", "--device", "local"], 1, "there is no file 'no.tflite'"),
        ([model, "--device", "local", "--cache", "x"], 2, "--cache names a path here, and cannot be used with"),
        ([model, "--device", "local", "--json", model], 1, "would overwrite"),
        ([model, "--device", "usb:1"], 1, "a device is local, ssh:"),
        ([model, "--device", "local", "--device", "ssh:a"], 1, "runs on one device: 2 were named"),
    ):
        assert exit_code(command, "sample", [str(word) for word in words]) == code
        assert said in " ".join(capsys.readouterr().err.split())


def test_no_words_at_all_show_the_help(capsys):
    exit_code(cli.main, "p", ["latency"])
    assert "--device" in "".join(capsys.readouterr())
