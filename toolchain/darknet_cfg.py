"""Darknet's cfg text -> typed sections, each with its line.

The rules of the text, as darknet's own parser has them, and where this one is stricter:

- White space counts for nothing. Blank lines and lines that begin with # or ; are comments; one may follow a number.
- [name] opens a section and key=value belongs to the last opened one. The first section is [net], or [network].
- darknet takes the first of two equal keys, OpenCV the last one: a key that stands twice must say the same twice.
- darknet passes over sections and keys that it does not know. Here they are errors, so that no typo becomes a
  default. Keys that matter in training alone are known and not looked at; keys that would change what the network
  computes are accepted at the one value that does not (darknet_keys.py).
- A list that ends with a comma may go on in the next line.
- Missing keys have darknet's defaults (a convolution's activation is logistic).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable

from deploy.errors import InputError
from toolchain.darknet_keys import KEYS
from toolchain.darknet_sections import (
    ACTIVATIONS,
    AvgPool,
    Convolutional,
    Detection,
    Dropout,
    MaxPool,
    Net,
    Reorg,
    Route,
    Scale,
    Section,
    Shortcut,
    Upsample,
)

#: Largest input side in pixels, and largest count of any other thing: far above every real network.
MAX_SIDE = 8192
MAX_COUNT = 1_000_000

_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?")


@dataclasses.dataclass(frozen=True)
class _Raw:
    """A section as it stands in the text."""

    file: str
    kind: str
    line: int
    #: Key -> (value without white space, line).
    options: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)

    def error(self, key: str, sentence: str) -> InputError:
        line = self.options[key][1] if key in self.options else self.line
        return InputError(f"{self.file}:{line}: [{self.kind}] {sentence}")


def parse_cfg(content: bytes, file: str) -> tuple[Net, tuple[Section, ...]]:
    """The network's input and its sections, in order; file names the text in messages.

    Raises InputError with file and line for everything that darknet would guess at or that is not supported.
    """
    raws = _split(content, file)
    if not raws or raws[0].kind not in ("net", "network"):
        line = raws[0].line if raws else 1
        raise InputError(f"{file}:{line}: a cfg begins with the section [net]; is this a darknet cfg?")
    for raw in raws:
        _check_keys(raw)
        if raw is not raws[0] and raw.kind in ("net", "network"):
            raise InputError(f"{file}:{raw.line}: a cfg has one [net], and it is the first section; remove this one")
    if len(raws) == 1:
        raise InputError(f"{file}: a network has layers, and this cfg has none after [net]; is it whole?")
    return _net(raws[0]), tuple(_PARSERS[raw.kind](raw) for raw in raws[1:])


def _split(content: bytes, file: str) -> list[_Raw]:
    """The text cut into raw sections."""
    sections: list[_Raw] = []
    last = ""
    # Comments in other encodings are common and harmless; anywhere else such a byte fails the patterns below.
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        text = "".join(line.split())
        if not text or text[0] in "#;":
            continue
        if header := re.fullmatch(r"\[([A-Za-z0-9_]+)\]([#;].*)?", text):
            if header[1] not in KEYS:
                # Closer than for keys: [softmax] is darknet's own, and no misspelt [max].
                near = difflib.get_close_matches(header[1], sorted(KEYS), 1, 0.75)
                advice = f"did you mean {near[0]}?" if near else f"these are: {', '.join(KEYS)}"
                raise InputError(f"{file}:{number}: the section [{header[1]}] is not supported; {advice}")
            sections.append(_Raw(file, header[1], number))
            last = ""
        elif option := re.fullmatch(r"([A-Za-z0-9_]+)=([!-~]+)", text):
            last = _add_option(sections, file, number, *option.groups())
        elif last and sections[-1].options[last][0].endswith(",") and re.fullmatch(r"[-0-9.,]+", text):
            value, first = sections[-1].options[last]
            sections[-1].options[last] = value + text, first
        else:
            sentence = f"a line is [section], key=value or a # comment; {line.strip()[:60]!r} is none"
            raise InputError(f"{file}:{number}: {sentence}")
    return sections


def _add_option(sections: list[_Raw], file: str, number: int, key: str, value: str) -> str:
    if not sections:
        raise InputError(f"{file}:{number}: {key}={value[:40]} stands before any section; a cfg begins with [net]")
    known = sections[-1].options.setdefault(key, (value, number))
    if known[0] != value:
        raise InputError(
            f"{file}:{number}: a key has one value; {key} is {known[0][:40]} in line {known[1]} and {value[:40]} here:"
            " remove one"
        )
    return key


def _check_keys(raw: _Raw) -> None:
    keys = KEYS[raw.kind]
    for key, (value, _) in raw.options.items():
        if key in keys.neutral:
            wanted, found = keys.neutral[key], re.split("[#;]", value)[0]
            equal = _NUMBER.fullmatch(found) and wanted.isdigit() and float(found) == float(wanted)
            if found != wanted and not equal:
                only = f"only {key}={wanted} is" if wanted else "remove it if the network does without"
                sentence = f"{key}={value[:40]} changes what the network computes and is not supported; {only}"
                raise raw.error(key, sentence)
        elif key not in keys.read and key not in keys.training:
            known = [*keys.read, *keys.neutral, *keys.training]
            raise raw.error(key, f"the key {key} is not known here{_suggestion(key, known)}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {near[0]}?" if near else "; remove it, or say what it is for"


def _integer(raw: _Raw, key: str, default: int, low: int, high: int = MAX_COUNT) -> int:
    value = raw.options[key][0] if key in raw.options else str(default)
    return _integer_of(raw, key, re.split("[#;]", value)[0], low, high)


def _integer_of(raw: _Raw, key: str, text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[-+]?[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise raw.error(key, f"{key} is a whole number from {low} to {high}, not {text[:40]!r}")
    return int(text)


def _number_of(raw: _Raw, key: str, text: str) -> float:
    if not _NUMBER.fullmatch(text) or not 0 < float(text) < math.inf:
        raise raw.error(key, f"{key} holds positive numbers, not {text[:40]!r}")
    return float(text)


def _items(raw: _Raw, key: str) -> list[str]:
    """The comma-separated items of a list; one comma may end it."""
    if key not in raw.options:
        raise raw.error(key, f"needs {key}=…, a list with commas")
    return re.split("[#;]", raw.options[key][0])[0].removesuffix(",").split(",")


def _layers(raw: _Raw, key: str) -> tuple[int, ...]:
    return tuple(_integer_of(raw, key, item, -MAX_COUNT, MAX_COUNT) for item in _items(raw, key))


def _activation(raw: _Raw, default: str) -> str:
    name = raw.options.get("activation", (default, 0))[0]
    if name not in ACTIVATIONS:
        sentence = f"activation={name[:40]} is not supported; these are: {', '.join(ACTIVATIONS)}"
        raise raw.error("activation", sentence)
    return name


def _strides(raw: _Raw) -> tuple[int, int]:
    stride = _integer(raw, "stride", 1, 1)
    return _integer(raw, "stride_y", stride, 1), _integer(raw, "stride_x", stride, 1)


def _net(raw: _Raw) -> Net:
    if (channels := _integer(raw, "channels", 0, 0)) != 3:
        raise raw.error("channels", f"pictures enter in colour: channels=3 is supported, not {channels}")
    return Net(raw.line, _integer(raw, "height", 0, 1, MAX_SIDE), _integer(raw, "width", 0, 1, MAX_SIDE))


def _convolutional(raw: _Raw) -> Convolutional:
    size = _integer(raw, "size", 1, 1)
    padding = _integer(raw, "padding", 0, 0)
    # In darknet pad is a switch that overrides padding, a 1x1 kernel has no dilation, and cbn is a batch norm whose
    # training differs.
    return Convolutional(
        line=raw.line,
        filters=_integer(raw, "filters", 1, 1),
        size=size,
        stride=_strides(raw),
        padding=size // 2 if _integer(raw, "pad", 0, 0) else padding,
        dilation=_integer(raw, "dilation", 1, 1) if size > 1 else 1,
        groups=_integer(raw, "groups", 1, 1),
        batch_normalize=bool(_integer(raw, "batch_normalize", 0, 0, 2) or _integer(raw, "cbn", 0, 0)),
        activation=_activation(raw, "logistic"),
    )


def _maxpool(raw: _Raw) -> MaxPool:
    size = _integer(raw, "size", _integer(raw, "stride", 1, 1), 1)
    return MaxPool(raw.line, size, _strides(raw), _integer(raw, "padding", size - 1, 0))


def _upsample(raw: _Raw) -> Upsample:
    return Upsample(raw.line, _integer(raw, "stride", 2, 1))


def _reorg(raw: _Raw) -> Reorg:
    return Reorg(raw.line, _integer(raw, "stride", 1, 1))


def _route(raw: _Raw) -> Route:
    groups = _integer(raw, "groups", 1, 1)
    return Route(raw.line, _layers(raw, "layers"), groups, _integer(raw, "group_id", 0, 0, groups - 1))


def _shortcut(raw: _Raw) -> Shortcut:
    return Shortcut(raw.line, _layers(raw, "from"), _activation(raw, "linear"))


def _scale(raw: _Raw) -> Scale:
    if len(layers := _layers(raw, "from")) != 1:
        raise raw.error("from", f"reads one other layer, not {len(layers)}")
    by = "element" if raw.kind == "sam" else "pixel" if _integer(raw, "scale_wh", 0, 0) else "channel"
    activation = _activation(raw, "linear")
    if activation in ("swish", "mish"):
        raise raw.error("activation", f"darknet itself leaves {activation} out here, so its meaning is not known")
    return Scale(raw.line, layers[0], by, activation)


def _yolo(raw: _Raw) -> Detection:
    anchors = _anchors(raw, _integer(raw, "num", 1, 1))
    mask = _layers(raw, "mask") if "mask" in raw.options else tuple(range(len(anchors)))
    for index in mask:
        if not 0 <= index < len(anchors):
            raise raw.error("mask", f"mask picks from {len(anchors)} anchors, numbered from 0; {index} is none")
    return Detection(
        line=raw.line,
        anchors=tuple(anchors[index] for index in mask),
        classes=_integer(raw, "classes", 20, 1),
        scale_x_y=_number_of(raw, "scale_x_y", re.split("[#;]", raw.options.get("scale_x_y", ("1", 0))[0])[0]),
        new_coords=bool(_integer(raw, "new_coords", 0, 0)),
        in_cells=False,
    )


def _region(raw: _Raw) -> Detection:
    if _integer(raw, "softmax", 0, 0) != 1:
        raise raw.error("softmax", "is read with softmax=1, which YOLOv2 has; without, the classes' meaning differs")
    anchors = tuple(_anchors(raw, _integer(raw, "num", 1, 1)))
    return Detection(raw.line, anchors, _integer(raw, "classes", 20, 1), 1.0, False, True)


def _anchors(raw: _Raw, count: int) -> list[tuple[float, float]]:
    """The (width, height) pairs that darknet would use: the first `count` ones."""
    numbers = [_number_of(raw, "anchors", item) for item in _items(raw, "anchors")]
    if len(numbers) < 2 * count or len(numbers) % 2:
        raise raw.error("anchors", f"num={count} anchors are {2 * count} widths and heights, not {len(numbers)}")
    return list(zip(numbers[: 2 * count : 2], numbers[1 : 2 * count : 2]))


def _dropout(raw: _Raw) -> Dropout:
    return Dropout(raw.line)


def _avgpool(raw: _Raw) -> AvgPool:
    return AvgPool(raw.line)


_PARSERS: dict[str, Callable[[_Raw], Section]] = {
    "convolutional": _convolutional,
    "conv": _convolutional,
    "maxpool": _maxpool,
    "max": _maxpool,
    "avgpool": _avgpool,
    "avg": _avgpool,
    "upsample": _upsample,
    "reorg": _reorg,
    "route": _route,
    "shortcut": _shortcut,
    "scale_channels": _scale,
    "sam": _scale,
    "dropout": _dropout,
    "yolo": _yolo,
    "region": _region,
}
