"""Settings of a run from a YAML file, or from the options of the command: one form, and one check for both.

    model: yolo_int8.tflite           # or models: [EXACT, FASTER, FASTEST]
    sources:
      door: rtsp://10.0.0.7/live      # or with settings of its own:
      yard:
        address: rtsp://10.0.0.8/live
        user: admin
        password: {env: YARD_PASSWORD}      # or {file: PATH}
        zones: {porch: [[0.1, 0.5], [0.6, 0.5], [0.6, 1], [0.1, 1]]}      # x, y as fractions of the frame
        lines: {gate: [[0.2, 0.9], [0.8, 0.9]]}
        size: 1280x720                # of a camera; so are fps and codec
    conf: 0.3
    classes: {person: 0.5}            # least score of one label
    track: true
    page: {host: 0.0.0.0, port: 8080, token: {file: token.txt}, fps: 10}      # pictures a second at most
    jsonl: seen.jsonl
    record: {folder: recordings, seconds: 600, most_gb: 20, most_width: 1280}
    mqtt: {url: mqtt://broker/slimdet, user: cam, password: {env: MQTT_PASSWORD}}
    webhook: {url: https://example.org/hook, secret: {env: HOOK_SECRET}, results_every: 60}      # s
    adapt: {age_ms: 150, temperature: 75}

Paths are from the file's own folder.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.address import Address, parse_address
from deploy.backend import parse_backend
from deploy.capture import CaptureOptions
from deploy.checked_values import Place, Section
from deploy.detect_settings import (
    DetectSettings, LinkSettings, PageSettings, Points, RecordSettings, SourceSettings,
)  # fmt: skip
from deploy.errors import BackendError, InputError

_MOST_SOURCES, _MOST_SHAPES, _MOST_POINTS, _MOST_MODELS = 64, 64, 256, 16


def read_config(path: Path) -> DetectSettings:
    """Raises InputError as FILE:LINE:COLUMN: for what is no such file or cannot be used."""
    # Loaded here, as in all that follows: most runs need neither YAML nor zones, and are to begin at once.
    from deploy.strict_yaml import read_yaml

    try:
        _, value, places = read_yaml(path, "config", "deploy/detect_config.py")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return settings_of(value, lambda at: places.text(path, at), path.absolute().parent)


def settings_of(value: Any, place: Place, folder: Path) -> DetectSettings:
    """The settings in plain data. place: names where a value stands. folder: that relative paths are from.

    Raises InputError, with the place, for what cannot be used: without opening anything but the files of secrets.
    """
    whole = Section(value, (), place, folder, "a config")
    settings = DetectSettings(
        models=_models(whole),
        sources=_sources(whole),
        backend=_backend(whole),
        threads=whole.number("threads", 1, 256, whole=True) or 1,
        conf=_or(whole.number("conf", 0, 1), 0.25),
        classes=_classes(whole),
        iou=_or(whole.number("iou", 0, 1), 0.45),
        track=whole.flag("track"),
        jsonl=_jsonl(whole),
        record=_record(whole),
        page=_page(whole),
        mqtt=_link(whole, "mqtt", ("mqtt", "mqtts")),
        webhook=_link(whole, "webhook", ("http", "https")),
        show=whole.flag("show"),
        seconds=whole.number("for", 0.1, 1e9),
        **_adapt(whole),
    )
    whole.end()
    return settings


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without the missing ones, whose defaults stand in detect_settings.py and capture.py."""
    return {key: value for key, value in settings.items() if value is not None}


def _models(whole: Section) -> tuple[Path, ...]:
    one, several = whole.text("model"), whole.get("models")
    if (one is None) == (several is None):
        raise whole.failure((), "a config has either model or models; name a .tflite")
    names = [one] if one is not None else several
    right = isinstance(names, (list, tuple)) and 1 <= len(names) <= _MOST_MODELS
    if not right or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise whole.failure(("models",), f"models is a list of 1 to {_MOST_MODELS} files; name some .tflite")
    return tuple(whole.folder / name for name in names)


def _backend(whole: Section) -> str:
    text = whole.text("backend") or "cpu"
    try:
        parse_backend(text)
    except BackendError as error:
        raise whole.failure(("backend",), str(error)) from error
    return text


def _sources(whole: Section) -> tuple[SourceSettings, ...]:
    section = whole.section("sources", "sources")
    names = section.names() if section is not None else ()
    if section is None or not 1 <= len(names) <= _MOST_SOURCES:
        raise whole.failure(("sources",), f"sources names 1 to {_MOST_SOURCES} feeds, not {len(names)}; name one")
    return tuple(_source(section, name) for name in names)


def _source(sources: Section, name: str) -> SourceSettings:
    value = sources.get(name)
    if not isinstance(value, Mapping) or not {"address"} & set(value):
        value = {"address": value}
        at: Place = lambda path: sources.place(path[:-1] if path[-1:] == ("address",) else path)  # noqa: E731
    else:
        at = sources.place
    one = Section(value, (*sources.path, name), at, sources.folder, "a source")
    address = _address(one)
    width, height = _size(one)
    low_delay, realtime, loop = one.flag("low_delay"), one.flag("realtime"), one.flag("loop")
    options: dict[str, Any] = {
        "width": width, "height": height, "fps": one.number("fps", 0.1, 1000), "codec": one.text("codec"),
        "transport": one.text("transport", ("tcp", "udp")), "stall": one.number("stall", 0.2, 3600),
        "most_wait": one.number("most_wait", 0.2, 3600),
    }  # fmt: skip
    zones, lines = _shapes(one, "zones", 3), _shapes(one, "lines", 2)
    one.end()
    try:
        capture = CaptureOptions(low_delay=low_delay, realtime=realtime, loop=loop, **_given(options))
    except InputError as error:
        raise one.failure((), str(error)) from error
    source = SourceSettings(name, address, capture, zones, lines)
    if zones or lines:
        from deploy.analysis import zones_of

        try:
            zones_of(source, ())
        except InputError as error:
            raise one.failure(("zones",) if zones else ("lines",), str(error)) from error
    return source


def _address(one: Section) -> Address:
    number = one.get("address")
    camera = isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= 999
    text = str(number) if camera else one.secret("address")
    user, password = one.text("user"), one.secret("password")
    if text is None:
        raise one.failure(("address",), "a source has an address; give a file, a camera's number or a stream's address")
    if user is not None or password is not None:
        text = _with_password(one, text, user or "", password or "")
    try:
        address = parse_address(text)
        if address.kind == "file-source" and not Path(text).is_absolute():
            address = parse_address(str(one.folder / text))
    except InputError as error:
        raise one.failure(("address",), str(error)) from error
    return address


def _with_password(one: Section, text: str, user: str, password: str) -> str:
    """The address with the user and password in it, where the URL's form has them."""
    begin, slashes, rest = text.partition("://")
    if not slashes or "@" in re.split(r"[/?#]", rest)[0]:
        raise one.failure(("user",), "user and password go with a stream's address that has none; leave one out")
    return f"{begin}://{urllib.parse.quote(user, safe='')}:{urllib.parse.quote(password, safe='')}@{rest}"


def _size(one: Section) -> tuple[int | None, int | None]:
    text = one.text("size")
    if text is None:
        return None, None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text, re.ASCII)
    if match is None:
        raise one.failure(("size",), "size is WIDTHxHEIGHT in pixels; write it as 1280x720")
    return int(match[1]), int(match[2])


def _shapes(one: Section, key: str, least: int) -> dict[str, Points]:
    """Zones are polygons of at least three points, lines have exactly two."""
    section = one.section(key, key)
    names = section.names() if section is not None else ()
    if len(names) > _MOST_SHAPES:
        raise one.failure((key,), f"a source has at most {_MOST_SHAPES} {key}, not {len(names)}; leave some out")
    found = {}
    for name in names:
        assert section is not None
        points, most = section.get(name), _MOST_POINTS if least > 2 else least
        right = isinstance(points, (list, tuple)) and least <= len(points) <= most and all(map(_is_point, points))
        if not right:
            count = "two" if least == 2 else "three or more"
            raise section.failure(
                (name,), f"{key} have {count} points [x, y], fractions of the frame from 0 to 1; write them so"
            )
        found[name] = tuple((float(x), float(y)) for x, y in points)
    return found


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, (list, tuple))
        and len(point) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in point)
    )


def _classes(whole: Section) -> dict[str, float]:
    section = whole.section("classes", "classes")
    if section is None:
        return {}
    # Labels are the model's own, so that any text may be one.
    return {label: section.number(label, 0, 1) for label in whole.get("classes") if section.has(label)}


def _jsonl(whole: Section) -> str | None:
    text = whole.text("jsonl")
    return text if text in (None, "-") else str(whole.folder / str(text))


def _record(whole: Section) -> RecordSettings | None:
    section = whole.section("record", "record")
    if section is None:
        return None
    name = section.text("folder")
    if name is None:
        raise section.failure(("folder",), "record has a folder; name one")
    given = {
        "fps": section.number("fps", 0.1, 240),
        "seconds": section.number("seconds", 1, 86400),
        "codec": section.text("codec", ("auto", "h264", "mpeg4")),
        "most_width": section.number("most_width", 16, 1 << 16, whole=True),
    }
    gigabytes = section.number("most_gb", 0.001, 1e6)
    section.end()
    most = None if gigabytes is None else int(gigabytes * 1e9)
    return RecordSettings(whole.folder / name, most_bytes=most, **_given(given))


def _page(whole: Section) -> PageSettings | None:
    value = whole.get("page")
    if value is None or value is False:
        return None
    section = Section({} if value is True else value, ("page",), whole.place, whole.folder, "page")
    given = {
        "host": section.text("host"),
        "port": section.number("port", 0, 65535, whole=True),
        "token": section.secret("token"),
        "fps": section.number("fps", 0.1, 240),
    }
    section.end()
    return PageSettings(**_given(given))


def _link(whole: Section, key: str, protocols: tuple[str, ...]) -> LinkSettings | None:
    value = whole.get(key)
    if value is None:
        return None
    is_url = isinstance(value, str)
    section = Section({"url": value} if is_url else value, () if is_url else (key,), whole.place, whole.folder, key)
    url, user, password = section.secret("url"), section.text("user"), section.secret("password")
    hook = key == "webhook"
    secret = section.secret("secret") if hook else None
    every = section.number("results_every", 0.1, 86400) if hook else None
    section.end()
    at = (key,) if is_url else ("url",)
    if url is None or url.partition("://")[0].lower() not in protocols or not url.partition("://")[2]:
        names = " or ".join(f"{name}://" for name in protocols)
        raise section.failure(at, f"{key} has a url that begins with {names}; write it whole")
    if user is not None or password is not None:
        url = _with_password(section, url, user or "", password or "")
    if key == "mqtt":
        from deploy.mqtt import parse_mqtt

        try:
            parse_mqtt(url)
        except InputError as error:
            raise section.failure(at, str(error)) from error
    return LinkSettings(url, secret, every)


def _adapt(whole: Section) -> dict[str, float | None]:
    section = whole.section("adapt", "adapt")
    if section is None:
        return {}
    found = {
        "most_age": section.number("age_ms", 1, 60_000),
        "most_temperature": section.number("temperature", 1, 150),
    }
    section.end()
    return found
