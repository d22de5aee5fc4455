"""The unit that is printed, by systemd's own check where it is here, and the words that are said to systemd."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import InputError
from deploy.systemd import notify, unit


def test_words_reach_the_socket_that_systemd_names(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(path)
        assert notify("READY=1", {"NOTIFY_SOCKET": path})
        assert heard.recv(100) == b"READY=1"
    assert not notify("READY=1", {"NOTIFY_SOCKET": path})  # nobody listens any more


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:1:2"}])
def test_without_systemd_nothing_is_said(environment: dict[str, str]) -> None:
    assert not notify("READY=1", environment)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's own")
def test_a_socket_without_a_file() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0slimdet-test-notify")
        assert notify("WATCHDOG=1", {"NOTIFY_SOCKET": "@slimdet-test-notify"})
        assert heard.recv(100) == b"WATCHDOG=1"


def test_words_in_a_path_are_quoted() -> None:
    lines = unit(Path("/srv/a b/50%/c$d\"e\\f.yaml"), (Path("/var/x y"),), "/usr/bin/python3").splitlines()
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert start == (
        "ExecStart=/usr/bin/python3 -m deploy detect --config \"/srv/a b/50%%/c$$d\\\"e\\\\f.yaml\""
    )
    assert "WorkingDirectory=/srv/a b/50%%" in lines and 'ReadWritePaths="/var/x y"' in lines
    assert "ExecReload=/bin/kill -HUP $MAINPID" in lines


@pytest.mark.parametrize("name", ["a\nExecStartPre=/bin/evil", "a\tb", "a\udcff"])
def test_a_path_that_no_unit_holds_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a unit file holds paths of plain characters"):
        unit(Path("/srv", name))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "slimdet-yard.service"
    path.write_text(unit(tmp_path / "a b%c.yaml", (tmp_path,), sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert str(path) not in done.stderr and "slimdet-yard" not in done.stderr
