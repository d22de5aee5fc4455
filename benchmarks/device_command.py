"""Gives a command the option --device, which runs it on other machines.

`with_devices` takes a finished command and returns it with a few options more. What the user wrote goes to the device
word by word, except that paths of files are those there, so a command's new options need nothing here; one that names
a path of which nothing is known here is refused. The commands themselves know nothing of devices, and `python -m
benchmarks` and `python -m deploy` on the device are the same commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

_GIVEN = "slimdet.given"
_SETTINGS = ("device_python", "device_folder", "ssh_config", "benchmark_model")


class _WithDevices(click.Command):
    """Keeps what the user wrote, word by word, beside what click makes of it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_GIVEN] = self.make_parser(ctx).parse_args(list(args))[0] if args else {}
        return super().parse_args(ctx, args)


def with_devices(
    command: click.Command, module: str, table: Callable[[Sequence[Mapping[str, Any]]], str] | None
) -> click.Command:
    """The command with --device and the options that belong to it.

    module: runs the command there, by `python -m`. table: of the results of several devices; None for a command without
    --json, which runs on one device.
    """

    def called(devices: tuple[str, ...], **values: Any) -> None:
        settings = {name: values.pop(name, None) for name in _SETTINGS}
        context = click.get_current_context()
        if not devices:
            if stray := [name for name in _SETTINGS if settings[name] is not None]:
                raise click.UsageError(f"--{stray[0].replace('_', '-')} belongs to --device: name a device")
            assert command.callback is not None  # a command that does nothing needs no device
            command.callback(**values)
            return
        # What only this needs loads here, so that --help is there at once.
        from benchmarks.device import parse_devices
        from benchmarks.device_run import Settings
        from benchmarks.device_runs import run_on_devices
        from benchmarks.device_task import make_task

        task = make_task(command, module, context.meta[_GIVEN], values)
        run_on_devices(parse_devices(devices), task, Settings(**settings), table)

    return _WithDevices(
        command.name, context_settings=command.context_settings, callback=called,
        params=[*command.params, *_options(command)], help=command.help, epilog=command.epilog,
        short_help=command.short_help, no_args_is_help=command.no_args_is_help, hidden=command.hidden,
    )  # fmt: skip


def _options(command: click.Command) -> list[click.Parameter]:
    path = click.Path(path_type=Path)
    options: list[click.Parameter] = [
        click.Option(
            ["--device", "devices"], metavar="NAME", multiple=True,
            help="Run there: local, ssh:USER@HOST[:PORT] (by your own ssh and its keys; the device needs Python 3.11, "
            "and gets all else at its first use) or adb:SERIAL (latency alone). May be repeated: they work at the same "
            "time. Ctrl-C ends the runs there; after a lost connection they go on, and the same command fetches them.",
        ),
        click.Option(
            ["--device-python"], metavar="PATH",
            help="Of ssh: an interpreter there that has what slimdet requires; no environment is made.",
        ),
        click.Option(
            ["--device-folder"], metavar="DIR",
            help="Of ssh: where files are kept there; ~/.cache/slimdet-device without it. It may be removed any time.",
        ),
        click.Option(
            ["--ssh-config"], metavar="FILE", type=path, help="Of ssh: read this in place of your ~/.ssh/config."
        ),
    ]  # fmt: skip
    if command.name == "latency":
        options.append(
            click.Option(
                ["--benchmark-model"], metavar="FILE", type=path,
                help="Of adb: TensorFlow Lite's benchmark_model for the device's processor.",
            )
        )  # fmt: skip
    return options
