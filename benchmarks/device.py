"""Which machine a command runs on: this one, one that ssh reaches, or an Android device behind adb."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from deploy.errors import InputError

#: What names of users and hosts are made of. None begins with "-", which a program would take for an option.
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_SSH = re.compile(
    rf"(?P<destination>(?:{_NAME}@)?(?:{_NAME}|\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\]))"
    r"(?::(?P<port>\d{1,5}))?"
)
_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")


@dataclasses.dataclass(frozen=True)
class Device:
    """A machine to run on."""

    kind: Literal["local", "ssh", "adb"]
    #: As the user wrote it, which is how messages and results call it.
    name: str
    #: Of ssh "host", "user@host" or an alias of the user's own configuration; of adb the serial number, "" for the only
    #: one there is; of local "".
    address: str = ""
    #: Of ssh; None leaves it to the user's configuration.
    port: int | None = None


def parse_device(text: str) -> Device:
    """The device that local, ssh:[USER@]HOST[:PORT] or adb:[SERIAL] names. An IPv6 address stands in brackets.

    Raises InputError for anything else.
    """
    kind, _, rest = text.partition(":")
    if text == "local":
        return Device("local", text)
    if kind == "ssh":
        found = _SSH.fullmatch(rest)
        port = int(found["port"]) if found and found["port"] else None
        if found is None or (port is not None and not 1 <= port <= 65535):
            raise InputError(
                f"a device behind ssh is ssh:USER@HOST or ssh:USER@HOST:PORT (1 to 65535), not {text[:80]!r}; write it "
                "so"
            )
        address = found["destination"]
        return Device("ssh", text, address.replace(f"[{found['ipv6']}]", found["ipv6"] or ""), port)
    if kind == "adb" and (text == "adb" or not rest or _SERIAL.fullmatch(rest)):
        return Device("adb", text, rest)
    raise InputError(f"a device is local, ssh:USER@HOST[:PORT] or adb:SERIAL, not {text[:80]!r}; write one of these")


def parse_devices(texts: Sequence[str]) -> tuple[Device, ...]:
    """Every device once. Raises InputError where one is named twice: its two runs would slow each other down."""
    devices = tuple(parse_device(text) for text in texts)
    places = [(device.kind, device.address, device.port) for device in devices]
    for place, device in zip(places, devices, strict=True):
        if places.count(place) > 1:
            raise InputError(
                f"devices work at the same time, so each is named once: {device.name} stands twice; leave one out"
            )
    return devices
