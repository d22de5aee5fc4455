"""Draws detections into a picture: a box in its class's colour, and a filled label with the class and the score.

Pillow writes the text. OpenCV before 5 shows "???" for every letter beyond ASCII, and the font that Pillow carries an
empty box, so other letters are looked for in the machine's own fonts.
"""

from __future__ import annotations

import colorsys
import dataclasses
import functools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deploy.detections import Detections

#: Fonts that cover much and are common, by the file names under which Pillow finds them on Linux, macOS and Windows.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "Arial Unicode.ttf",
    "arialuni.ttf",
    "arial.ttf",
    "msyh.ttc",
    "meiryo.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
)
#: A code point that is no character, so that every font shows its sign for a missing one.
_NO_CHARACTER = "\U0010ffff"
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Captions:
    """How each class is written in a picture, decided once for a model."""

    #: By class number.
    texts: tuple[str, ...]
    #: File name of the font; None is the one that Pillow carries.
    font: str | None
    #: Labels whose letters no font of this machine has: their text is "class" and the number instead.
    illegible: tuple[str, ...]


def captions(labels: Sequence[str]) -> Captions:
    """Chooses one font for all labels: Pillow's own if they are ASCII, else the first that lacks the fewest of them."""
    labels = [" ".join("".join(c if c.isprintable() else " " for c in label).split()) for label in labels]
    letters = set("".join(labels))
    font_name, illegible = None, {label for label in labels if not label.isascii()}
    for name in _FONTS:
        if not illegible:
            break
        try:
            missing = _missing(letters, name)
        except OSError:
            continue  # not on this machine
        left = {label for label in labels if not missing.isdisjoint(label)}
        if len(left) < len(illegible):
            font_name, illegible = name, left
    texts = [label if label and label not in illegible else f"class {number}" for number, label in enumerate(labels)]
    return Captions(tuple(texts), font_name, tuple(label for label in labels if label in illegible))


def _missing(letters: Iterable[str], font_name: str) -> set[str]:
    """Those of the letters that the font lacks."""
    font = _font(font_name, 16)
    nothing = _mask(_NO_CHARACTER, font).tobytes()
    return {c for c in letters if not c.isspace() and _mask(c, font).tobytes() == nothing}


def colour(class_id: int) -> tuple[int, int, int]:
    """The class's colour as BGR, 0..255; the same in every picture and every run.

    Hues a golden ratio apart never repeat and keep neighbouring classes apart; three brightnesses take turns.
    """
    hue = class_id * (5**0.5 - 1) / 2 % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.8, 0.6)[class_id % 3])
    return round(blue * 255), round(green * 255), round(red * 255)


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, BGR: whichever has the greater contrast ratio to the background (WCAG 2.1)."""
    values = (v / 255 for v in background)
    blue, green, red = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    luminance = 0.0722 * blue + 0.7152 * green + 0.2126 * red
    # (1 + .05) / (luminance + .05) against (luminance + .05) / (0 + .05)
    return _WHITE if 1.05 * 0.05 > (luminance + 0.05) ** 2 else _BLACK


def draw(picture: np.ndarray, detections: Detections, written: Captions) -> None:
    """Draws into the picture itself, uint8 (h, w, 3) BGR: all boxes, then all labels, the best detection on top.

    Lines and letters grow with the picture. A label stands on its box, inside it where there is no room above, and
    never leaves the picture. Boxes are finite, in pixels of the picture.
    """
    classes = [int(class_id) for class_id in detections.class_ids]
    scored = zip(classes, detections.scores, strict=True)
    texts = [(caption(written, number), f"{score:.2f}") for number, score in scored]
    draw_boxes(picture, detections.boxes, texts, [colour(number) for number in classes], written.font)


def draw_boxes(
    picture: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str | tuple[str, str]],
    colours: Sequence[tuple[int, int, int]],
    font: str | None = None,
) -> None:
    """Draws n boxes, the first on top, as draw does. boxes: (n, 4) x1, y1, x2, y2, finite; texts: of the labels, "" for
    none, or what stays and what changes from frame to frame; colours: BGR, 0..255; font: see Captions."""
    mean_side = (picture.shape[0] + picture.shape[1]) / 2
    thickness = max(1, round(mean_side / 270))
    letter_height = _letter_height(picture)
    last_first = range(len(boxes))[::-1]
    corners = np.rint(boxes).astype(int).tolist()
    for i in last_first:
        left, top, right, bottom = corners[i]
        # Pixel i covers i to i + 1, so the last pixel of the box is the one before its edge.
        opposite = max(left, right - 1), max(top, bottom - 1)
        cv2.rectangle(picture, (left, top), opposite, colours[i], thickness)
    for i in last_first:
        if texts[i]:
            drawn = _label_of(texts[i], colours[i], letter_height, font)
            _place(picture, drawn, corners[i][0] - thickness // 2, corners[i][1] - thickness // 2, corners[i][1])


def _label_of(
    text: str | tuple[str, str], background: tuple[int, int, int], letter_height: int, font: str | None
) -> np.ndarray:
    """A label of two parts is put together of their own, which are cached: written anew it costs 0.7 ms."""
    if isinstance(text, str):
        return label(text, background, letter_height, font)
    first, second = (label(part, background, letter_height, font) for part in text)
    if first.shape[0] != second.shape[0]:  # letters taller than their line
        return label(" ".join(text), background, letter_height, font)
    return np.hstack([first, second[:, max(2, letter_height // 5) :]])


def draw_label(
    picture: np.ndarray, text: str, background: tuple[int, int, int], at: tuple[int, int], font: str | None = None
) -> None:
    """Draws a label whose foot, or head where there is no room above, is at the point: x, y in pixels."""
    if text:
        _place(picture, label(text, background, _letter_height(picture), font), at[0], at[1], at[1])


def _letter_height(picture: np.ndarray) -> int:
    return max(11, round((picture.shape[0] + picture.shape[1]) / 2 / 45))


def _place(picture: np.ndarray, drawn: np.ndarray, left: int, bottom: int, otherwise_top: int) -> None:
    """Copies the label into the picture with its foot at bottom, or its head at otherwise_top if that is too high."""
    drawn = drawn[: picture.shape[0], : picture.shape[1]]
    height, width = drawn.shape[:2]
    top = bottom - height if bottom >= height else otherwise_top
    top = min(max(top, 0), picture.shape[0] - height)
    left = min(max(left, 0), picture.shape[1] - width)
    picture[top : top + height, left : left + width] = drawn


def caption(written: Captions, class_id: int) -> str:
    """How the class is written: its text, or "class" and its number where the file has none."""
    return written.texts[class_id] if 0 <= class_id < len(written.texts) else f"class {class_id}"


# A video shows the same labels again and again, and one costs 0.2 ms to write.
@functools.lru_cache(maxsize=1024)
def label(text: str, background: tuple[int, int, int], letter_height: int, font_name: str | None) -> np.ndarray:
    """A filled label with its text, uint8 (h, w, 3) BGR, which must not be written to. background: BGR."""
    font = _font(font_name, letter_height)
    mask = _mask(text, font)
    gap = max(2, letter_height // 5)
    # Every label of a size is equally high, whatever letters it has.
    ascent, descent = font.getmetrics()
    alpha = np.zeros((max(ascent + descent, mask.shape[0]) + gap // 2 * 2, mask.shape[1] + 2 * gap, 1), np.float32)
    alpha[gap // 2 : gap // 2 + mask.shape[0], gap : gap + mask.shape[1], 0] = mask.astype(np.float32) / 255
    behind, letters = (np.array(v, np.float32) for v in (background, text_colour(background)))
    finished = np.rint(behind * (1 - alpha) + letters * alpha).astype(np.uint8)
    finished.flags.writeable = False  # the cache hands out the same array again
    return finished


@functools.lru_cache(maxsize=64)
def _font(name: str | None, letter_height: int) -> ImageFont.FreeTypeFont:
    """Raises OSError where the machine has no such font."""
    if name is not None:
        return ImageFont.truetype(name, letter_height)
    font = ImageFont.load_default(letter_height)
    assert isinstance(font, ImageFont.FreeTypeFont)  # what Pillow promises where a size is given
    return font


def _mask(text: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Coverage of each pixel, uint8 (h, w), from the top of the tallest letter's line."""
    _, _, right, bottom = (round(v) for v in font.getbbox(text))
    image = Image.new("L", (max(right, 1), max(bottom, 1)))
    ImageDraw.Draw(image).text((0, 0), text, font=font, fill=255)
    return np.asarray(image)
