"""The window's logic, with an OpenCV that has none replaced by one that remembers what it was told."""

import threading
import time

import cv2
import feed_values
import numpy as np
import pytest
from feed_values import LABELS

from deploy.errors import InputError
from deploy.window import Window, check_window


@pytest.fixture
def shown(monkeypatch) -> dict:
    """What a pretended OpenCV shows by name; "key" is what the user presses, "visible" whether windows are open."""
    state: dict = {"key": -1, "visible": 1.0, "pictures": {}, "closed": 0}
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           QT5\n")
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: state["pictures"].update({name: picture}))
    monkeypatch.setattr(cv2, "waitKey", lambda _: state["key"])
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: state["visible"])
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: state.update(closed=state["closed"] + 1))
    return state


def test_each_feed_has_a_window_and_the_result_is_left_alone(shown) -> None:
    stopped: list[int] = []
    window = Window(LABELS, stop=lambda: stopped.append(1))
    one = feed_values.result(2, size=(1000, 2000))
    window.result(one)
    window.result(feed_values.result(feed="yard"))
    assert set(shown["pictures"]) == {"slimdet: door", "slimdet: yard"} and not stopped
    assert shown["pictures"]["slimdet: door"].shape == (640, 1280, 3)
    np.testing.assert_array_equal(one.frame.pixels, np.full((1000, 2000, 3), 80, np.uint8))
    window.close()
    assert shown["closed"] == 1


@pytest.mark.parametrize("key", [ord("q"), ord("Q"), 27, 0x100000 | 27])
def test_a_key_ends_the_run(shown, key: int) -> None:
    stopped: list[int] = []
    window = Window(LABELS, stop=lambda: stopped.append(1))
    shown["key"] = ord("x")
    window.result(feed_values.result())
    assert not stopped
    shown["key"] = key
    window.result(feed_values.result())
    window.result(feed_values.result())
    assert stopped == [1]


def test_closing_the_window_ends_the_run(shown) -> None:
    stopped: list[int] = []
    window = Window(LABELS, stop=lambda: stopped.append(1))
    window.result(feed_values.result())
    shown["visible"] = 0.0
    shown["pictures"].clear()
    window.result(feed_values.result())
    assert stopped and not shown["pictures"]  # showing it again would open it again


def test_unless_told_otherwise_it_ends_the_run_as_ctrl_c_does(shown) -> None:
    window = Window(LABELS)
    shown["key"] = 27
    ended = False
    try:
        thread = threading.Thread(target=window.result, args=(feed_values.result(),))
        thread.start()
        thread.join()
        time.sleep(1)
    except KeyboardInterrupt:
        ended = True
    assert ended


def test_where_there_is_no_window_it_is_said_in_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    with pytest.raises(InputError, match="opencv-python in the place of opencv-python-headless, or use --page"):
        check_window()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           GTK3\n")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(InputError, match="DISPLAY is not set"):
        Window(LABELS)
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    check_window()
