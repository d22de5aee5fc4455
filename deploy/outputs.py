"""Opens the outputs that the settings name, each behind its own queue."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence

from deploy.annotate import Shape
from deploy.detect_settings import DetectSettings
from deploy.outbox import Outbox, Written
from deploy.output import JsonLines
from deploy.result import Output, Result
from deploy.result_json import result_json
from deploy.status import Snapshot


def open_outputs(
    settings: DetectSettings,
    labels: Sequence[str],
    snapshot: Callable[[], Snapshot],
    shapes: Mapping[str, Sequence[Shape]],
    stack: contextlib.ExitStack,
    *,
    lossless: bool,
    tell: Callable[[str], None],
) -> list[Outbox]:
    """Outputs, to be closed by the caller; with the stack they are let go at once.

    shapes: by feed, zones and lines that its pictures show. lossless: every frame comes from files, so files get every
    result, and the run waits for them. tell: takes lines for people; the page's address, with its token, is said to
    them alone.

    Raises InputError where one of them cannot be opened; what was opened before is closed with the stack.
    """
    boxes: list[Outbox] = []

    def add(output: Output, *, every: bool = False) -> None:
        box = Outbox(output, lossless=lossless and every)
        boxes.append(box)
        # Whoever has not closed it before wants no more of it, and does not wait for one that hangs.
        stack.callback(box.close, 0.0)

    if settings.jsonl is not None:
        add(_json_lines(settings.jsonl, labels, stack, lossless), every=True)
    if settings.record is not None:
        add(_recording(settings, labels, snapshot, shapes), every=True)
    if settings.page is not None:
        from deploy.page import Page

        page = Page(settings.page, labels, snapshot, shapes)
        add(page)
        # A token that the user chose is known to who shall know it; one that was drawn is told here alone.
        tell(f"page: {page.address if settings.page.token is None else page.address.partition('?')[0]}")
    if settings.mqtt is not None:
        add(_mqtt(settings, labels, snapshot))
    if settings.webhook is not None:
        add(_webhook(settings, labels, snapshot))
    if settings.show:
        add(_window(labels, snapshot, shapes))
    return boxes


def _json_lines(jsonl: str, labels: Sequence[str], stack: contextlib.ExitStack, lossless: bool) -> Output:
    # A pipe that nobody reads yet would stop JsonLines in the main thread.
    if not lossless or jsonl == "-" or (os.path.exists(jsonl) and not os.path.isfile(jsonl)):
        from deploy.json_log import JsonLog

        return JsonLog(jsonl, labels)
    lines = stack.enter_context(JsonLines(jsonl, labels))

    def write(result: Result) -> None:
        lines.write_line(result_json(result, labels))

    return Written("jsonl", write)


def _recording(
    settings: DetectSettings, labels: Sequence[str], snapshot: Callable[[], Snapshot],
    shapes: Mapping[str, Sequence[Shape]],
) -> Output:  # fmt: skip
    from deploy.recording import Recording

    assert settings.record is not None
    return Recording(settings.record, labels, snapshot, dict(shapes))


def _mqtt(settings: DetectSettings, labels: Sequence[str], snapshot: Callable[[], Snapshot]) -> Output:
    from deploy.mqtt import Mqtt, parse_mqtt

    assert settings.mqtt is not None
    return Mqtt(parse_mqtt(settings.mqtt.url), labels, snapshot)


def _webhook(settings: DetectSettings, labels: Sequence[str], snapshot: Callable[[], Snapshot]) -> Output:
    from deploy.webhook import Webhook

    assert settings.webhook is not None
    return Webhook(settings.webhook, labels, snapshot)


def _window(
    labels: Sequence[str], snapshot: Callable[[], Snapshot], shapes: Mapping[str, Sequence[Shape]]
) -> Output:
    from deploy.window import Window

    # Not SIGINT, whose second one does not wait for what is to be finished.
    return Window(labels, snapshot, shapes, stop=lambda: os.kill(os.getpid(), signal.SIGTERM))
