"""Results in a window, where OpenCV can open one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import cv2

from deploy.annotate import Shape, annotated
from deploy.draw import captions
from deploy.errors import InputError
from deploy.outbox import end_run
from deploy.output import printable
from deploy.result import Event, Result
from deploy.status import Snapshot

#: Wider frames are scaled down, so that the window fits most screens.
_MOST_WIDTH = 1280


class Window:
    """A window a feed. Q, Escape or closing one ends the run."""

    name = "window"

    def __init__(
        self,
        labels: Sequence[str],
        snapshot: Callable[[], Snapshot] | None = None,
        shapes: Mapping[str, Sequence[Shape]] | None = None,
        stop: Callable[[], None] = end_run,
    ) -> None:
        """shapes: by feed. stop: called once, when the user wants the run to end.

        Raises InputError where there is no window to be had.
        """
        check_window()
        self._stop, self._shapes = stop, shapes or {}
        self._captions = captions(labels)
        self._names: dict[str, str] = {}
        self._ended = False

    def result(self, result: Result) -> None:
        name = self._names.get(result.feed)
        if name is not None and cv2.getWindowProperty(name, cv2.WND_PROP_VISIBLE) < 1:
            self._end()
            return
        picture = annotated(result, self._captions, self._shapes.get(result.feed, ()), _MOST_WIDTH)
        if name is None:
            name = self._names[result.feed] = f"slimdet: {printable(result.feed)}"
        cv2.imshow(name, picture)
        if cv2.waitKey(1) & 0xFF in (ord("q"), ord("Q"), 27):
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._stop()

    def event(self, event: Event) -> None:
        """Nothing to show."""

    def close(self) -> None:
        if self._names:
            cv2.destroyAllWindows()
            cv2.waitKey(1)


def check_window() -> None:
    """Raises InputError where this OpenCV, or this machine, has no windows. Asked before a camera opens."""
    kind = re.search(r"^\s*GUI:\s*(\S+)", cv2.getBuildInformation(), re.MULTILINE)
    if kind is None or kind[1].upper() == "NONE":
        raise InputError(
            "this OpenCV has no windows; put opencv-python in the place of opencv-python-headless, or use --page"
        )
    # Without a display Qt ends the process instead of saying so.
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError("a window needs a display, DISPLAY is not set; log in at the screen, or use --page")
