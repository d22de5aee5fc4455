"""What --source names: a file, a camera, a stream or the drawn pattern, and how to show it without its password."""

from __future__ import annotations

import dataclasses
import os
import re
import urllib.parse
from typing import Literal

from deploy.errors import InputError

#: Protocols that are opened, and what FFmpeg may use for each. Nothing else is: a playlist from a server never reads a
#: file of this machine.
PROTOCOLS = {
    "rtsp": "rtp,udp,tcp",
    "rtsps": "rtp,udp,tcp,tls",
    "http": "http,https,httpproxy,tcp,tls",
    "https": "http,https,httpproxy,tcp,tls",
    "udp": "udp",
    "rtmp": "rtmp,tcp",
}

#: Keys whose values are shown: cameras' and FFmpeg's settings. Those of all others may be passwords or tokens.
_HARMLESS = frozenset(
    "action camera channel codec compression fps height pkt_size profile quality res resolution stream subtype width "
    "fifo_size overrun_nonfatal buffer_size localaddr proto transport transportmode unicast".split()
)
_HIDDEN = "***"
_MOST_LETTERS = 2048


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a feed's frames come from."""

    #: "file-source": a picture, folder or video file, which deploy.source.locate() finds.
    kind: Literal["file-source", "camera", "stream", "pattern"]
    #: As the user gave it. It may hold a password, so it is never printed or logged.
    text: str = dataclasses.field(repr=False)
    #: The same for people: without user, password, and values that may be tokens.
    shown: str


def parse_address(text: str) -> Address:
    """What `text` names: a file that exists; "pattern"; a camera as "0", "/dev/video0" or a path below /dev/v4l; a
    stream as a URL of one of PROTOCOLS; else a path.

    Raises InputError for a URL that cannot be opened. The sentence never holds what may be a password.
    """
    if not text or len(text) > _MOST_LETTERS or any(letter in text for letter in "\0\r\n"):
        raise InputError(
            f"a source is one line of 1 to {_MOST_LETTERS} letters, not {len(text)}; give a file, a folder, a camera's "
            "number, a stream's address, or pattern"
        )
    if _is_file(text):
        device = re.match(r"/dev/(video\d+|v4l/)", os.path.abspath(text))
        return Address("camera" if device else "file-source", text, text)
    if text == "pattern":
        return Address("pattern", text, text)
    if re.fullmatch(r"[0-9]{1,3}|/dev/video[0-9]+|/dev/v4l/[^/].*", text):
        return Address("camera", text, f"/dev/video{int(text)}" if text.isdecimal() else text)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        return Address("stream", text, _shown(text))
    if "@" in text:
        # Perhaps a stream's address that lacks its beginning; if so it holds a password.
        raise InputError("there is no such file; a stream's address begins with its protocol, such as rtsp://")
    return Address("file-source", text, text)


def _is_file(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:
        return False


def _shown(text: str) -> str:
    """Raises InputError where the address cannot be opened, or cannot be told from its password."""
    protocol, _, rest = text.partition("://")
    if protocol.lower() not in PROTOCOLS or not rest:
        raise InputError(
            f"a stream's address begins with one of {', '.join(f'{name}://' for name in PROTOCOLS)}; this one begins "
            "otherwise"
        )
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in tail:
        raise InputError(
            "in a stream's address @ stands only after user and password; "
            "a / ? # or @ in a password or path is written as %2F %3F %23 %40"
        )
    host = authority.rpartition("@")[2]
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:@\s|;]*)(?::([0-9]{1,5}))?", host)
    if match is None or not (match[1] or protocol.lower() == "udp") or (match[2] and not 0 < int(match[2]) < 65536):
        raise InputError("a stream's address is protocol://user:password@host:port/path; its host or port is none")
    path, question, query = tail.partition("#")[0].partition("?")
    # Some cameras take user and password in the path, as /user=admin&password=secret&channel=1
    path = "/".join(_HIDDEN if "=" in part else part for part in path.split("/"))
    query = "&".join(_hide(part) for part in query.split("&"))
    whole = f"{protocol.lower()}://{host}{path}{question}{query}"
    return whole if whole.isprintable() else urllib.parse.quote(whole, safe="/:?&=[]*%")


def _hide(part: str) -> str:
    """One key=value of a query, the value hidden unless the key is known."""
    key, equals, value = part.partition("=")
    if equals and key.lower() in _HARMLESS:
        return part
    return f"{key}={_HIDDEN}" if equals and re.fullmatch(r"[A-Za-z_.-]{1,24}", key) else _HIDDEN if part else ""


def secrets(address: Address) -> tuple[str, ...]:
    """All parts of the address that its `shown` hides, as written and decoded, the longest first: for taking them out
    of other programs' words."""
    if address.kind != "stream":
        return ()
    rest = address.text.partition("://")[2]
    authority, tail = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    user, _, password = authority.rpartition("@")[0].partition(":")
    values = re.findall(r"=([^&;/?#]+)", tail)
    written = {address.text, rest, authority if "@" in authority else "", user, password, *values}
    decoded = {urllib.parse.unquote(part) for part in written}
    hidden = {part for part in written | decoded if part and part not in address.shown}
    return tuple(sorted(hidden, key=len, reverse=True))
