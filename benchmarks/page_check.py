"""Looks at a running page in headless Chromium: does the picture move, do the numbers, is the console silent?

Chromium is driven through its DevTools pipe (file descriptors 3 and 4, messages ended by a zero byte), which needs no
library: https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from deploy.command_line import debug_option, run, write_atomically
from deploy.errors import GateError, InputError

#: Width and height in pixels, pixels of the screen for each, and whether it is a phone.
_SCREENS = ((1280, 900, 1, False), (390, 844, 2, True))
#: What is read twice: the picture's number and a sum over its pixels, all text, and how far the page is too wide.
_LOOK = """(() => {
  const image = document.querySelector('.picture img'), canvas = document.createElement('canvas');
  canvas.width = 64; canvas.height = 64;
  const context = canvas.getContext('2d');
  let sum = 0;
  if (image && image.naturalWidth) {
    context.drawImage(image, 0, 0, 64, 64);
    context.getImageData(0, 0, 64, 64).data.forEach((value) => { sum = (sum * 31 + value) % 2147483647; });
  }
  return JSON.stringify({
    picture: Number(image && image.dataset.number || 0), pixels: sum,
    results: document.getElementById('results').textContent, fps: document.getElementById('fps').textContent,
    status: document.getElementById('status').textContent,
    too_wide: document.documentElement.scrollWidth - window.innerWidth,
  });
})()"""


@dataclasses.dataclass(frozen=True)
class Look:
    """At the page on one screen, twice."""

    width: int
    first: dict[str, Any]
    second: dict[str, Any]
    #: Lines of the console and exceptions.
    complaints: tuple[str, ...]
    #: PNG.
    screenshot: bytes

    def faults(self) -> list[str]:
        """What is wrong, in words; empty when all is well."""
        found = {
            "the picture does not move": self.first["picture"] == self.second["picture"]
            or self.first["pixels"] == self.second["pixels"],
            "the numbers do not move": self.first["results"] == self.second["results"],
            f"it is {self.second['too_wide']} pixels too wide": self.second["too_wide"] > 0,
        }
        return [words for words, true in found.items() if true] + list(self.complaints)


class Browser:
    """A headless Chromium and one page in it."""

    def __init__(self, program: str, profile: str) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        options = ["--headless", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        options.append(f"--user-data-dir={profile}")
        if os.geteuid() == 0:
            options.append("--no-sandbox")  # which Chromium refuses to make for root
        # The shell puts the pipes where Chromium looks for them.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *options, "about:blank"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """The answer to one command; events that come before it are looked at."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": values}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        for answer in self._messages(30.0):
            if answer.get("id") == number:
                if "error" in answer:
                    raise InputError(f"Chromium refused {method}: {answer['error'].get('message')}")
                return dict(answer["result"])
        raise InputError(f"Chromium did not answer {method} within 30 s; look whether it runs on this machine")

    def wait(self, seconds: float) -> None:
        """Listens meanwhile."""
        for _ in self._messages(seconds):
            pass

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            message, zero, rest = self._rest.partition(b"\0")
            if zero:
                self._rest = rest
                value = json.loads(message)
                self._listen(value)
                yield value
            elif select.select([self._read], [], [], left)[0]:
                some = os.read(self._read, 1 << 20)
                if not some:
                    raise InputError("Chromium ended; look whether it runs on this machine")
                self._rest += some

    def _listen(self, message: dict[str, Any]) -> None:
        values = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(values["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        if message.get("method") == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(one.get("value", "")) for one in values["args"]))
        if message.get("method") == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            address = values["entry"].get("url", "").partition("?")[0]  # the rest may hold the token
            self.complaints.append(f"{values['entry']['text']} {address}".strip())


def look(browser: Browser, url: str, screen: tuple[int, int, int, bool], seconds: float, dark: bool) -> Look:
    """Opens the page, and reads it after some seconds and after as many more."""
    width, height, ratio, phone = screen
    browser.complaints.clear()
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=phone
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.call("Page.navigate", url=url)
    states = []
    for _ in range(2):
        browser.wait(seconds)
        answer = browser.call("Runtime.evaluate", expression=_LOOK)
        if "exceptionDetails" in answer:
            raise InputError(f"{url.partition('?')[0]} is not the page of a running detect; start one with --page")
        states.append(json.loads(answer["result"]["value"]))
    shot = browser.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
    return Look(width, states[0], states[1], tuple(browser.complaints), base64.b64decode(shot["data"]))


@contextlib.contextmanager
def opened(program: str) -> Iterator[Browser]:
    """A browser with a profile of its own, which goes with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            yield browser
        finally:
            browser.close()


def find_browser(names: Sequence[str] = ("chromium", "chromium-browser", "google-chrome")) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


@click.command(no_args_is_help=True)
@click.argument("url")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for a screenshot of each width.")
@click.option("--seconds", type=click.FloatRange(1, 60), default=3.0, show_default=True, help="Between two looks.")
@click.option("--dark", is_flag=True, help="As a browser set to dark asks for it.")
@debug_option
def main(url: str, out: Path | None, seconds: float, dark: bool) -> None:
    """Looks at the page of a running `detect --page` at 1280 and 390 pixels. Exit code 3 where something is wrong.

    \b
    Example:
      python -m benchmarks.page_check http://127.0.0.1:8080/ --out shots
    """
    program = find_browser()
    if program is None:
        raise InputError("the page is looked at with Chromium, which is not here; install chromium")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    wrong = []
    for screen in _SCREENS:
        # Each in a browser of its own, as each visitor has one.
        with opened(program) as browser:
            seen = look(browser, url, screen, seconds, dark)
        if out is not None:
            write_atomically(out / f"page-{seen.width}{'-dark' if dark else ''}.png", seen.screenshot)
        faults = seen.faults()
        moved = f"pictures {seen.first['picture']} to {seen.second['picture']}"
        numbers = f"results {seen.first['results']} to {seen.second['results']} in {seconds:g} s"
        click.echo(f"{seen.width} pixels: {moved}, {numbers}; {'; '.join(faults) or 'no complaint'}")
        wrong += faults
    if wrong:
        raise GateError(f"a page that moves without complaint is asked for, found: {wrong[0]}; see the lines above")


if __name__ == "__main__":
    run(main, "page_check")
