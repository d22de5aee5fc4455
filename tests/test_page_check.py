"""The look at a page in a browser: what it calls a fault, and a whole look where there is a Chromium."""

import threading
from pathlib import Path

import feed_values
import numpy as np
import pytest
from click.testing import CliRunner
from feed_values import LABELS

from benchmarks import page_check
from benchmarks.page_check import Look
from deploy.detect_settings import PageSettings
from deploy.errors import GateError, InputError
from deploy.page import Page
from deploy.source import Frame

GOOD = {"picture": 5, "pixels": 17, "results": "20", "fps": "9.0", "status": "running", "too_wide": 0}


@pytest.mark.parametrize(
    ("second", "complaints", "faults"),
    [
        ({"picture": 9, "pixels": 18, "results": "30"}, (), []),
        ({"picture": 9, "results": "30"}, (), ["the picture does not move"]),
        ({"pixels": 18, "results": "30"}, (), ["the picture does not move"]),
        ({"picture": 9, "pixels": 18}, (), ["the numbers do not move"]),
        ({"picture": 9, "pixels": 18, "results": "30", "too_wide": 12}, (), ["it is 12 pixels too wide"]),
        ({"picture": 9, "pixels": 18, "results": "30"}, ("TypeError: x",), ["TypeError: x"]),
    ],
)
def test_faults(second: dict, complaints: tuple[str, ...], faults: list[str]) -> None:
    assert Look(390, GOOD, {**GOOD, **second}, complaints, b"").faults() == faults


def test_without_a_browser_it_is_one_sentence(monkeypatch) -> None:
    monkeypatch.setattr(page_check.shutil, "which", lambda _: None)
    outcome = CliRunner().invoke(page_check.main, ["http://127.0.0.1:1/"])
    assert isinstance(outcome.exception, InputError) and "install chromium" in str(outcome.exception)


@pytest.mark.slow
@pytest.mark.skipif(page_check.find_browser() is None, reason="no Chromium here")
def test_a_running_page_moves_on_a_desktop_and_a_phone_without_complaint(tmp_path: Path) -> None:
    done, counted = threading.Event(), [0]
    page = Page(PageSettings(port=0), LABELS, lambda: feed_values.snapshot(results=counted[0]))

    def play() -> None:
        while not done.wait(0.05):
            counted[0] += 1
            pixels = np.full((120, 160, 3), counted[0] * 7 % 256, np.uint8)
            page.result(feed_values.result(frame=Frame("rtsp://cam/door", counted[0], 0.0, pixels, 1.0)))

    player = threading.Thread(target=play)
    player.start()
    try:
        outcome = CliRunner().invoke(page_check.main, [page.address, "--out", str(tmp_path), "--seconds", "2.5"])
        assert outcome.exit_code == 0, (outcome.output, outcome.exception)
        assert outcome.output.count("no complaint") == 2
        assert {path.name for path in tmp_path.iterdir()} == {"page-1280.png", "page-390.png"}
        # What is no page of ours is told so, and a page that stands still is a missed gate.
        outcome = CliRunner().invoke(page_check.main, [f"{page.address}metrics", "--seconds", "1"])
        assert isinstance(outcome.exception, InputError) and "is not the page of" in str(outcome.exception)
        done.set()
        player.join()
        outcome = CliRunner().invoke(page_check.main, [page.address, "--seconds", "1.5"])
        assert isinstance(outcome.exception, GateError)
    finally:
        done.set()
        player.join()
        page.close()
