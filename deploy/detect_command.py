"""What the command `detect` does with its options: files alone, one after the other, or a run that lasts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from deploy.backend import CPU_BACKENDS
from deploy.command_line import refuse_to_overwrite
from deploy.detect_config import read_config, settings_of
from deploy.detect_settings import DetectSettings
from deploy.errors import InputError
from deploy.feeds import Feeds
from deploy.run_log import RunLog
from deploy.signals import Signals

#: Options that go with --config.
_BESIDE = ("config", "check", "systemd", "seconds")
#: Seconds after which a thread that computes in Python lets another one go on. Python's own 5 ms are as long as an
#: inference of a small model, which would wait that long after it has finished.
SWITCH_INTERVAL = 0.0005
#: By the key of settings the option, where the two have different names.
_OPTIONS = {"models": "model", "sources": "source", "record": "out", "zones": "zone", "lines": "line"}


def detect(options: Mapping[str, Any]) -> None:
    """options: by the names of the command's parameters. Raises SlimdetError, click.UsageError."""
    context = click.get_current_context()
    config: Path | None = options["config"]
    given = [name for name in options if not _is_default(context, name)]
    settings = _of_file(config, options, given) if config is not None else _of_options(options)
    if options["systemd"]:
        from deploy.systemd import unit

        if config is None:
            raise click.UsageError("--systemd runs a config: give --config FILE.yaml")
        click.echo(unit(config, _written(settings)), nl=False)
        return
    if options["check"]:
        feeds = ", ".join(f"{source.name} ({source.address.shown})" for source in settings.sources)
        click.echo(f"the settings can be used; feeds: {feeds}")
        return
    _quiet_libraries()
    sys.setswitchinterval(SWITCH_INTERVAL)
    _refuse_to_overwrite(settings)
    if _is_file_run(settings):
        _run_files(settings)
    else:
        _run_feeds(settings, config, options)


def _is_default(context: click.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source in (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP, None)


def _of_file(config: Path, options: Mapping[str, Any], given: list[str]) -> DetectSettings:
    if stray := [name for name in given if name not in _BESIDE and name != "token"]:
        words = "M.tflite" if stray[0] == "model" else f"--{stray[0].replace('_', '-')}"
        raise click.UsageError(f"--config holds all settings: leave {words} out, or write it into the file")
    settings = read_config(config)
    if options["seconds"] is None:
        return settings
    return dataclasses.replace(settings, seconds=_seconds(options["seconds"]))


def _seconds(seconds: float) -> float:
    if not 0.1 <= seconds <= 1e9:
        raise InputError(f"--for is a number of seconds from 0.1 to 1e9, not {seconds:g}; give one")
    return seconds


def _of_options(options: Mapping[str, Any]) -> DetectSettings:
    """The settings as a config would hold them, so that one check does for both."""
    if options["model"] is None:
        raise click.UsageError("Missing argument 'M.tflite', or --config FILE.yaml.")
    if not options["source"]:
        raise click.UsageError("Missing option '--source', or --config FILE.yaml.")
    capture = {key: options[key] for key in ("size", "fps", "codec", "transport")}
    capture |= {key: options[key] for key in ("realtime", "loop")}
    capture["zones"] = _named_points("zone", options["zone"])
    capture["lines"] = _named_points("line", options["line"])
    value = {
        "models": [str(path) for path in (options["model"], *options["variant"])],
        "sources": {str(i): {"address": text, **capture} for i, text in enumerate(options["source"])},
        **{key: options[key] for key in ("conf", "iou", "backend", "threads", "track", "jsonl", "mqtt", "webhook")},
        "show": options["show"],
        "record": None if options["out"] is None else {"folder": str(options["out"])},
        "page": _page(options["page"], options["token"]),
        "adapt": {"age_ms": options["max_age"], "temperature": options["max_temperature"]},
        "for": options["seconds"],
    }
    return settings_of(value, _option_of, Path())


def _option_of(path: tuple[str | int, ...]) -> str:
    """Which option a value came from."""
    names = [str(part) for part in path]
    if names[:1] == ["sources"] and len(names) > 2:
        names = names[2:]
    if not names:
        return "the options"
    if names[0] == "address":
        return "--source"
    if names[0] == "adapt":
        return "--max-age" if names[-1:] == ["age_ms"] else "--max-temperature"
    return f"--{_OPTIONS.get(names[0], names[0])}"


def _named_points(option: str, texts: tuple[str, ...]) -> dict[str, list[list[float]]]:
    found: dict[str, list[list[float]]] = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        try:
            values = [float(word) for word in numbers.split(",")]
        except ValueError:
            values = []
        if not name or not values or len(values) % 2 or name in found:
            raise InputError(
                f"--{option} is NAME=X,Y,X,Y and so on, each name once, fractions of the frame from 0 to 1, not "
                f"{text[:80]!r}; write it so"
            )
        found[name] = [values[i : i + 2] for i in range(0, len(values), 2)]
    return found


def _page(text: str | None, token: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdecimal():
        raise InputError("--page is PORT or HOST:PORT, such as 8080 or 0.0.0.0:8080; give one")
    return {"host": host.strip("[]") or None, "port": int(port), "token": token}


def _written(settings: DetectSettings) -> tuple[Path, ...]:
    """The folders that the run writes to."""
    folders = [settings.record.folder] if settings.record else []
    if settings.jsonl is not None and settings.jsonl != "-":
        folders.append(Path(settings.jsonl).parent)
    return tuple(dict.fromkeys(folders))


def _quiet_libraries() -> None:
    """OpenCV and FFmpeg write words of their own to standard error, unless the user has chosen which."""
    if "OPENCV_LOG_LEVEL" not in os.environ:
        os.environ["OPENCV_LOG_LEVEL"] = "SILENT"  # which OpenCV reads when it is loaded
        if "cv2" in sys.modules:
            import cv2

            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def _refuse_to_overwrite(settings: DetectSettings) -> None:
    from deploy.source import locate

    if settings.jsonl in (None, "-"):
        return
    files = [
        file
        for source in settings.sources
        if source.address.kind == "file-source"
        for file in locate(source.address.text).files
    ]
    refuse_to_overwrite("--jsonl", str(settings.jsonl), [*settings.models, *files])


def _is_file_run(settings: DetectSettings) -> bool:
    """One file or folder, looked at from its beginning to its end, with nothing that needs a run that lasts."""
    first = settings.sources[0]
    lasts = first.options.realtime or first.options.loop or settings.seconds or len(settings.models) > 1
    followed = settings.page or settings.mqtt or settings.webhook or settings.show
    return len(settings.sources) == 1 and first.address.kind == "file-source" and not lasts and not followed


def _run_files(settings: DetectSettings) -> None:
    from deploy import file_run, output
    from deploy.analysis import Analysis, least_score
    from deploy.detector import Detector
    from deploy.source import locate

    source = settings.sources[0]
    located = locate(source.address.text)
    out = settings.record.folder if settings.record else None
    if out is not None:
        output.output_folder(out, located)
    backend = settings.backend
    detector = Detector(settings.models[0], backend, settings.threads, least_score(settings), settings.iou)
    if backend not in CPU_BACKENDS:
        click.echo(f"{output.printable(f'{backend}: {detector.model.delegated}')}", err=True)
    analysis = Analysis(settings, source, detector.contract.labels, live=False)
    file_run.run(detector, located, out, settings.jsonl, analysis)


def _run_feeds(settings: DetectSettings, config: Path | None, options: Mapping[str, Any]) -> None:
    reload = None if config is None else lambda: _of_file(config, options, [])
    with (
        contextlib.closing(RunLog()) as log,
        Signals(reload=reload is not None) as signals,
        Feeds(log) as feeds,
    ):
        feeds.open(settings.sources)
        # Loaded while cameras are opened, which takes longer.
        from deploy.live_run import run
        from deploy.output import in_words, printable

        last = run(settings, feeds, signals, log, reload=reload)
    age = f", {last.age.p50:.0f} ms old" if last.age else ""
    dropped = sum(feed.dropped for feed in last.feeds)
    left_out = f", {dropped} frames left out" if dropped else ""
    words = in_words(dict(enumerate(last.detections.values())), list(last.detections))
    names = ", ".join(feed.address for feed in last.feeds)
    invoke = last.milliseconds.get("invoke")
    model = f", the model {invoke.p50:.1f} ms" if invoke else ""
    click.echo(
        f"{printable(names)}: {last.results} frames in {last.seconds:.0f} s, {words}{model}{age}{left_out}",
        err=settings.jsonl is not None,
    )
