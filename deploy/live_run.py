"""A run that lasts: feeds, the pipeline, its outputs, and whoever watches over them.

Threads: one or two a feed (live_feed.py, file_feed.py), one preprocesses, one runs the interpreter, one postprocesses
and hands results to the outputs, which have one each (outbox.py). The main thread watches: it takes signals, chooses
the variant, tells systemd that all is well, and ends everything.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from deploy import systemd
from deploy.adaptive import AdaptSettings, Adaptive, Change
from deploy.analysis import Analysis, least_score
from deploy.detect_settings import DetectSettings
from deploy.detector import Detector
from deploy.errors import InputError, SlimdetError
from deploy.feeds import Feeds, all_at_once
from deploy.machine import resident_memory, temperature
from deploy.outbox import Outbox
from deploy.output import label_of
from deploy.outputs import open_outputs
from deploy.pipeline import Pipeline
from deploy.result import Event
from deploy.run_log import RunLog
from deploy.signals import Signals
from deploy.stage_times import StageTimes
from deploy.status import Snapshot
from deploy.turns import Turns
from deploy.variants import open_variants, time_variants

#: Seconds between two looks at everything; a signal is taken at once.
_TICK = 1.0
#: An inference that takes longer, in seconds, is one that hangs: systemd is told nothing more, and starts the run anew.
_HANGS = 30.0
#: Seconds that outputs have for what waits, when the run is ended from outside.
_PARTING = 1.0
#: The same for those that are to have every result, when the run has ended by itself.
_FINISHING = 60.0

End = Literal["ended", "stop", "reload"]


class Run:
    """One set of settings at work, from its construction on."""

    def __init__(
        self, settings: DetectSettings, detectors: Sequence[Detector], feeds: Feeds, log: RunLog, began: float
    ) -> None:
        """began: time.monotonic() when the whole run began, reloads and all.

        Raises InputError where an output cannot be opened.
        """
        self._settings, self._feeds, self._log, self._began = settings, feeds, log, began
        self._detectors = detectors
        self.labels: tuple[str, ...] = detectors[0].contract.labels
        self._opened = feeds.open(settings.sources)
        live = {feed.name: feed.live for feed in self._opened}
        self._live = live
        self._analyses = {
            source.name: Analysis(settings, source, self.labels, live=live[source.name]) for source in settings.sources
        }
        self.times = StageTimes()
        self._failure: BaseException | None = None
        self._outboxes: list[Outbox] = []
        self._pipeline = Pipeline(detectors, Turns(self._opened, feeds.wake), live=any(live.values()))
        self._adaptive = _adaptive(settings, detectors)
        self._stack = contextlib.ExitStack()
        with self._stack:
            shapes = {name: analysis.shapes for name, analysis in self._analyses.items()}
            self._outboxes = open_outputs(
                settings, self.labels, self.snapshot, shapes, self._stack,
                lossless=not any(live.values()), tell=log.line,
            )  # fmt: skip
            self._stack = self._stack.pop_all()
        feeds.listen(self._event)
        self._consumer = threading.Thread(target=self._consume, name="slimdet-postprocess", daemon=True)
        self._consumer.start()

    def snapshot(self) -> Snapshot:
        """How the run is doing now. May be called from any thread."""
        return Snapshot(
            seconds=time.monotonic() - self._began,
            model=self._settings.models[self._pipeline.variant].name,
            models=tuple(model.name for model in self._settings.models),
            results=self.times.results,
            fps=self.times.fps(),
            milliseconds=self.times.milliseconds(),
            age=self.times.age(),
            detections={label_of(self.labels, one): count for one, count in self.times.detections().items()},
            feeds=tuple(feed.status() for feed in self._opened),
            outputs=tuple(box.status() for box in self._outboxes),
            temperature=temperature(),
            memory=resident_memory(),
            waiting=self._pipeline.waiting,
        )

    def until(self, signals: Signals, deadline: float | None) -> End:
        """Watches over the run until it ends, a signal comes or time.monotonic() reaches the deadline.

        Raises what a part of the run raised.
        """
        systemd.notify("READY=1")
        while self._consumer.is_alive():
            left = _TICK if deadline is None else min(_TICK, deadline - time.monotonic())
            if left <= 0:
                return "stop"
            word = signals.wait(left) if self._consumer.is_alive() else None
            if word is not None:
                return word
            self._look()
        if self._failure is not None:
            raise self._failure
        return "ended"

    def close(self, end: End) -> None:
        """Ends it, but for the feeds. What waits in outputs is still handed out: all of it where the run ended by
        itself, as far as an output is to have all, else for a second.

        Raises what a lossless output raised.
        """
        self._feeds.listen(None)
        self._pipeline.stop()
        try:
            all_at_once(
                functools.partial(box.close, _FINISHING if end == "ended" and box.lossless else _PARTING)
                for box in self._outboxes
            )
        finally:
            self._pipeline.close()
            if self._consumer.ident is not None:
                self._consumer.join()
            self._stack.close()

    def abandon(self) -> None:
        """Ends it after an error, which is not to be hidden by another one."""
        with contextlib.suppress(SlimdetError, OSError):
            self.close("stop")

    def _consume(self) -> None:
        try:
            for one in self._pipeline:
                result = self._analyses[one.feed].result(one)
                age = (result.finished - one.frame.captured) * 1000 if self._live[one.feed] else None
                self.times.add(result.milliseconds, age, result.found.class_ids.tolist())
                for box in self._outboxes:
                    box.offer(result)
        except BaseException as error:  # `until` raises it in the main thread
            self._failure = error

    def _event(self, event: Event) -> None:
        for box in self._outboxes:
            box.offer_event(event)

    def _look(self) -> None:
        if self._pipeline.busy_seconds < _HANGS:
            systemd.notify("WATCHDOG=1")
        age = self.times.age()
        if self._adaptive is not None:
            bound = self._settings.most_age or self._default_age()
            change = self._adaptive.update(time.monotonic(), age.p50 if age else None, bound, temperature())
            if change is not None:
                self._change(change)
        self._log.status(self._in_a_line())

    def _default_age(self) -> float | None:
        """Milliseconds of two intervals of the fastest live feed: older results mean that frames are left out."""
        rates = [status.fps for status in (feed.status() for feed in self._opened) if status.live and status.fps > 0]
        return 2000 / max(rates) if rates else None

    def _change(self, change: Change) -> None:
        self._pipeline.variant = change.after
        names = [model.name for model in self._settings.models]
        # Figures of the variant before would be judged as this one's.
        self.times.forget()
        text = f"{names[change.after]} instead of {names[change.before]}: {change.reason}"
        event = Event("", "model", time.time(), text, {"before": names[change.before], "after": names[change.after]})
        self._log.event(event)
        self._event(event)

    def _in_a_line(self) -> str:
        age = self.times.age()
        parts = [f"{self.times.fps():.1f}/s"] + ([f"{age.p50:.0f} ms old"] if age else [])
        for feed in self._opened:
            status = feed.status()
            dropped = f", {status.dropped} dropped" if status.dropped else ""
            parts.append(f"{status.name} {status.state} {status.fps:.1f}/s{dropped}")
        return "  ".join(parts)


def run(
    settings: DetectSettings,
    feeds: Feeds,
    signals: Signals,
    log: RunLog,
    *,
    reload: Callable[[], DetectSettings] | None = None,
) -> Snapshot:
    """Runs until all feeds have ended, a signal comes or the time is up, and gives how it was doing at the end.

    feeds: may be open already, and are left open. reload: reads the settings anew, for SIGHUP.

    Raises SlimdetError where nothing can be begun, an output to a file fails, or no frame could be read at all.
    """
    began = time.monotonic()
    deadline = None if settings.seconds is None else began + settings.seconds
    feeds.open(settings.sources)
    current = Run(settings, _detectors(settings), feeds, log, began)
    try:
        while (end := current.until(signals, deadline)) == "reload":
            # Loaded while the old ones still run, so that a bad file costs nothing.
            fresh = _reloaded(reload, log)
            if fresh is not None:
                current.close("reload")
                current, settings = _again(settings, fresh, feeds, log, began)
    except BaseException:  # whatever it is, Ctrl-C too, is raised again once threads and files are done with
        current.abandon()
        raise
    systemd.notify("STOPPING=1")
    last = current.snapshot()
    current.close(end)
    _require_frames(last, timed=deadline is not None and time.monotonic() >= deadline)
    return last


_Fresh = tuple[DetectSettings, Sequence[Detector]]


def _detectors(settings: DetectSettings) -> list[Detector]:
    return open_variants(settings.models, settings.backend, settings.threads, least_score(settings), settings.iou)


def _reloaded(reload: Callable[[], DetectSettings] | None, log: RunLog) -> _Fresh | None:
    """The new settings with their detectors; None where they cannot be used, which has been told."""
    assert reload is not None  # else SIGHUP is not taken
    systemd.notify("RELOADING=1")
    try:
        settings = reload()
        detectors = _detectors(settings)
    except (SlimdetError, OSError) as error:
        log.line(f"the settings stay as they were: {error}")
        systemd.notify("READY=1")
        return None
    log.line("the settings were read anew")
    return settings, detectors


def _again(
    before: DetectSettings, fresh: _Fresh, feeds: Feeds, log: RunLog, began: float
) -> tuple[Run, DetectSettings]:
    """A run with the fresh settings, or, where they turn out to be of no use, with those before."""
    settings, detectors = fresh
    try:
        return Run(settings, detectors, feeds, log, began), settings
    except SlimdetError as error:
        log.line(f"the settings become what they were: {error}")
        return Run(before, _detectors(before), feeds, log, began), before


def _adaptive(settings: DetectSettings, detectors: Sequence[Detector]) -> Adaptive | None:
    if len(detectors) == 1:
        return None
    return Adaptive(AdaptSettings(settings.most_temperature), time_variants(detectors))


def _require_frames(last: Snapshot, *, timed: bool) -> None:
    """timed: the run's own time was up, so that whoever waits for it learns that nothing was there to be seen."""
    if timed and last.feeds and not any(feed.captured for feed in last.feeds):
        first = last.feeds[0]
        raise InputError(
            f"a run sees frames: none came from {first.address} in {last.seconds:.0f} s"
            f"{f' ({first.reason})' if first.reason else ''}; check the source, or give it longer by --for"
        )
    failed = [feed for feed in last.feeds if feed.state == "failed"]
    if failed and not last.results:
        raise InputError(failed[0].reason or f"not one frame of {failed[0].address} could be read; see the lines above")
