"""A run as a service of systemd: the unit that starts it, and the words that it says to systemd meanwhile."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import InputError

#: Seconds without a word of the run after which systemd starts it anew.
WATCHDOG = 60


def notify(words: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Says words such as "READY=1" to systemd: one datagram to the socket that it names (sd_notify(3)). False where
    nobody listens, which is no error."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
            one.setblocking(False)  # a systemd that does not read must not stop the run
            one.connect("\0" + address[1:] if address[0] == "@" else address)
            one.send(words.encode())
    except OSError:
        return False
    return True


def unit(config: Path, writable: tuple[Path, ...] = (), python: str = sys.executable) -> str:
    """A unit file that runs the config as a service.

    config: the YAML file; writable: folders that its outputs are written to, all else is read-only. Paths are made
    absolute. Raises InputError for a path that a unit file cannot hold.
    """
    root = Path(__file__).resolve().parents[1]
    words = " ".join(map(_quoted, (python, "-m", "deploy", "detect", "--config", str(config.absolute()))))
    places = "".join(f"ReadWritePaths={_quoted(str(path.absolute()), command=False)}\n" for path in writable)
    return f"""\
[Unit]
Description={_line("slimdet detect " + config.name).replace("%", "%%")}
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
NotifyAccess=main
WatchdogSec={WATCHDOG}
ExecStart={words}
ExecReload=/bin/kill -HUP $MAINPID
WorkingDirectory={_line(str(config.absolute().parent)).replace("%", "%%")}
Environment={_quoted(f"PYTHONPATH={root}", command=False)}
Restart=on-failure
RestartSec=5
TimeoutStopSec=10
# Passwords that the config takes from the environment stand here, one NAME=value a line, readable by root alone.
EnvironmentFile=-/etc/slimdet/environment
DynamicUser=yes
SupplementaryGroups=video
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
{places}
[Install]
WantedBy=multi-user.target
"""


def _line(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text) or not _is_utf8(text):
        raise InputError(f"a unit file holds paths of plain characters, not {text!r}; rename the file or its folder")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quoted(text: str, *, command: bool = True) -> str:
    """One word as systemd.syntax(7) reads it: % doubled, in a command $ too, quoted where that is needed."""
    escaped = _line(text).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    if command:
        escaped = escaped.replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@%+=:,./$-]+", escaped, re.ASCII) else f'"{escaped}"'
