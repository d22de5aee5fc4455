"""Names of devices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.device import Device, parse_device, parse_devices
from deploy.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", Device("local", "local")),
        ("ssh:pi", Device("ssh", "ssh:pi", "pi")),
        ("ssh:pi@10.0.0.5", Device("ssh", "ssh:pi@10.0.0.5", "pi@10.0.0.5")),
        ("ssh:pi@board.local:2222", Device("ssh", "ssh:pi@board.local:2222", "pi@board.local", 2222)),
        ("ssh:pi@[fe80::1%eth0]:22", Device("ssh", "ssh:pi@[fe80::1%eth0]:22", "pi@fe80::1%eth0", 22)),
        ("ssh:[::1]", Device("ssh", "ssh:[::1]", "::1")),
        ("adb:R58M123", Device("adb", "adb:R58M123", "R58M123")),
        ("adb:192.168.0.7:5555", Device("adb", "adb:192.168.0.7:5555", "192.168.0.7:5555")),
        ("adb:", Device("adb", "adb:", "")),
        ("adb", Device("adb", "adb", "")),
    ],
)
def test_what_a_name_means(text, expected):
    assert parse_device(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "ssh", "ssh:", "ssh:-oProxyCommand=x", "ssh:-l@host", "ssh:user@-host", "ssh:a b", "ssh:host:0",
        "ssh:host:65536", "ssh:host:22:22", "ssh:host;reboot", "ssh:$(reboot)", "ssh:fe80::1", "ssh:host\n", "adb:-s",
        "adb:a;b", "adb:a b", "local:x", "usb:1", "host",
    ],
)  # fmt: skip
def test_what_is_no_device(text):
    with pytest.raises(InputError, match="a device"):
        parse_device(text)


@given(st.text())
def test_no_address_looks_like_an_option_or_a_shell_word(text):
    for kind in ("ssh:", "adb:"):
        try:
            address = parse_device(kind + text).address
        except InputError:
            continue
        assert not address.startswith("-") and not set(address) & set(" ;|&$`'\"\\<>()*?\n\0")


def test_a_device_is_named_once():
    assert [one.kind for one in parse_devices(["local", "ssh:a", "ssh:a:22"])] == ["local", "ssh", "ssh"]
    for names in (["local", "local"], ["ssh:[::1]:22", "ssh:[::1]:22"], ["adb", "adb:"]):
        with pytest.raises(InputError, match="stands twice"):
            parse_devices(names)
