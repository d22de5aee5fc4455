"""Addresses of sources: what kind they are, and that what is shown of them never holds a password."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deploy.address import PROTOCOLS, parse_address, secrets
from deploy.errors import InputError


@pytest.mark.parametrize(
    ("text", "kind", "shown"),
    [
        ("0", "camera", "/dev/video0"),
        ("12", "camera", "/dev/video12"),
        ("/dev/video3", "camera", "/dev/video3"),
        ("/dev/v4l/by-id/usb-Cam-video-index0", "camera", "/dev/v4l/by-id/usb-Cam-video-index0"),
        ("pattern", "pattern", "pattern"),
        ("street.mp4", "file-source", "street.mp4"),
        ("no/such folder", "file-source", "no/such folder"),
        ("rtsp://10.0.0.9/live", "stream", "rtsp://10.0.0.9/live"),
        ("RTSP://10.0.0.9:554/live", "stream", "rtsp://10.0.0.9:554/live"),
        ("rtsp://bob:secret@cam:554/live", "stream", "rtsp://cam:554/live"),
        ("rtsp://bob@cam/live", "stream", "rtsp://cam/live"),
        ("rtsp://bob:p@ss@cam/live", "stream", "rtsp://cam/live"),
        ("rtsp://bob:a%2Fb@[fe80::1]:554/live", "stream", "rtsp://[fe80::1]:554/live"),
        ("http://cam/video?token=abc&channel=1&x", "stream", "http://cam/video?token=***&channel=1&***"),
        ("http://cam/mjpg#secret", "stream", "http://cam/mjpg"),
        ("rtsp://cam/user=bob&password=x&channel=1", "stream", "rtsp://cam/***"),
        ("udp://@239.0.0.1:1234?pkt_size=1316", "stream", "udp://239.0.0.1:1234?pkt_size=1316"),
        ("udp://:5000", "stream", "udp://:5000"),
        ("rtmp://cam/live/one", "stream", "rtmp://cam/live/one"),
    ],
)
def test_kinds(text: str, kind: str, shown: str) -> None:
    address = parse_address(text)
    assert (address.kind, address.text, address.shown) == (kind, text, shown)


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "pattern"):
        (tmp_path / name).touch()
        assert parse_address(name).kind == "file-source"
        assert parse_address(f"./{name}").kind == "file-source"


@pytest.mark.parametrize(
    "text",
    [
        "rstp://bob:secret@cam/live",
        "rtsp:/bob:secret@cam/live",
        "file:///home/secret",
        "concat://secret",
        "rtsp://",
        "rtsp:///secret",
        "rtsp://bob:sec/ret@cam/live",
        "rtsp://bob:se?cret@cam/live",
        "rtsp://bob:secret@cam:port/live",
        "rtsp://bob:secret@cam:99999/live",
        "rtsp://bob:1/secret@cam/live",
        "rtsp://a|secret@b|c/live",
        "bob:secret@cam/live",
        "",
        "a\nsecret",
        "x" * 3000 + "secret",
    ],
)
def test_what_cannot_be_opened_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_address(text)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_neither_repr_nor_str_holds_the_password() -> None:
    address = parse_address("rtsp://bob:secret@cam/live")
    assert "secret" not in repr(address) + str(address)


_letters = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=6, max_size=20)


@given(_letters, _letters, st.sampled_from(sorted(PROTOCOLS)))
def test_the_password_is_never_shown_nor_told(user: str, password: str, protocol: str) -> None:
    # What any shown address or sentence may hold by itself is no secret.
    assume(password not in f"{protocol}://camera.local:554/live?channel=1 user:password@host:port/path")
    whole = f"{protocol}://{user}:{password}@camera.local:554/live?channel=1"
    try:
        address = parse_address(whole)
    except InputError as error:
        assert password not in str(error)
    else:
        assert address.shown == f"{protocol}://camera.local:554/live?channel=1"
        assert password not in repr(address)
        assert any(password in secret for secret in secrets(address))


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_an_error_in_one_line(text: str) -> None:
    try:
        parse_address(text)
    except InputError as error:
        assert "\n" not in str(error)


def test_secrets_are_what_is_hidden_as_written_and_decoded() -> None:
    found = secrets(parse_address("http://bob:a%20b@cam/x?token=t0k3n&channel=1"))
    assert {"bob", "a%20b", "a b", "t0k3n"} <= set(found)
    assert "1" not in found and "cam" not in found
    assert secrets(parse_address("0")) == ()
