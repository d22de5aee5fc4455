import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploy.errors import InputError
from deploy.picture import MOST_PIXELS, picture_size, read_picture, to_bgr

COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
RGB = np.kron(COLOURS, np.ones((16, 16, 1), np.uint8))
BGR = RGB[..., ::-1]


def encoded(format: str, picture: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (picture or Image.fromarray(RGB)).save(file, format, **options)
    return file.getvalue()


def read(tmp_path: Path, content: bytes, name: str = "picture") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return read_picture(tmp_path / name)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG2000", "TGA", "ICO", "PCX"])
def test_formats_without_loss_come_as_they_are(tmp_path: Path, format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    picture = read(tmp_path, encoded(format, **options))
    assert (picture.dtype, picture.shape) == (np.uint8, (32, 32, 3))
    np.testing.assert_array_equal(picture, BGR)


def test_jpeg_is_what_opencv_reads(tmp_path: Path) -> None:
    content = encoded("JPEG", quality=90)
    picture = read(tmp_path, content)
    np.testing.assert_array_equal(picture, cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR))
    assert abs(picture.astype(int) - BGR).mean() < 5


def test_progressive_jpeg_and_bytes_behind_the_end_are_read(tmp_path: Path) -> None:
    content = encoded("JPEG", progressive=True)
    np.testing.assert_array_equal(read(tmp_path, content), read(tmp_path, content + b"\xff\xda trailer of a camera"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    shape = Image.fromarray(RGB[:, :16].copy())  # 32 high, 16 wide: red over blue
    picture = read(tmp_path, encoded("JPEG", shape, quality=95, subsampling=0, exif=exif.tobytes()))
    red_at = {1: (0, 0), 2: (0, 0), 3: (31, 0), 4: (31, 0), 5: (0, 0), 6: (0, 31), 7: (0, 31), 8: (0, 0)}[orientation]
    assert picture.shape == ((32, 16, 3) if orientation < 5 else (16, 32, 3))
    assert abs(picture[red_at].astype(int) - [0, 0, 255]).max() < 30


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_picture_as_it_is_read(tmp_path: Path, format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read(tmp_path, encoded(format, Image.fromarray(RGB[:, :10].copy()), exif=exif.tobytes()))
    assert picture_size(tmp_path / "picture") == picture.shape[1::-1]
    assert sorted(picture.shape[:2]) == [10, 32]


def test_a_damaged_orientation_is_none(tmp_path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0"  # ends within the orientation's entry
    assert read(tmp_path, encoded("JPEG", exif=exif)).shape == (32, 32, 3)
    assert picture_size(tmp_path / "picture") == (32, 32)


def test_the_size_of_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(encoded("JPEG")[:-4])
    with pytest.raises(InputError, match="cut short"):
        picture_size(tmp_path / "cut.jpg")
    with pytest.raises(InputError, match="cannot read"):
        picture_size(tmp_path / "none.jpg")


def test_grey_transparency_palette_and_16_bits(tmp_path: Path) -> None:
    grey = Image.fromarray(RGB).convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read(tmp_path, encoded("PNG", grey)), expected)
    rgba = Image.fromarray(np.dstack([RGB, np.full((32, 32), 7, np.uint8)]))
    np.testing.assert_array_equal(read(tmp_path, encoded("PNG", rgba)), BGR)
    np.testing.assert_array_equal(read(tmp_path, encoded("PNG", Image.fromarray(RGB).quantize(4))), BGR)
    wide = cv2.imencode(".png", BGR.astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(read(tmp_path, wide), BGR)


def test_one_pixel_wide(tmp_path: Path) -> None:
    assert read(tmp_path, encoded("PNG", Image.fromarray(RGB[:, :1].copy()))).shape == (32, 1, 3)


@pytest.mark.parametrize("content", [b"\0", b"no picture at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="no picture, or a damaged one"):
        read(tmp_path, content)


def test_missing_and_empty_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0 bytes"):
        read(tmp_path, b"")
    with pytest.raises(InputError, match="No such file"):
        read_picture(tmp_path / "missing.jpg")
    with pytest.raises(InputError, match="directory"):
        read_picture(tmp_path)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
def test_a_picture_that_is_cut_short_is_refused(tmp_path: Path, format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = encoded(format, noise)
    with pytest.raises(InputError, match="cut short|damaged"):
        read(tmp_path, content[: int(len(content) * share)])


def test_a_png_that_is_cut_short_is_refused_before_libpng_writes_to_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="cut short"):
        read(tmp_path, encoded("PNG", noise)[:-1000])
    assert capfd.readouterr().err == ""


def test_a_jpeg_with_a_thumbnail_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    thumbnail = encoded("JPEG")
    content = encoded("JPEG", noise)
    content = content[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + content[2:]
    assert read(tmp_path, content).shape == (64, 64, 3)
    with pytest.raises(InputError, match="cut short"):
        read(tmp_path, content[: len(content) - 1000])


@pytest.mark.parametrize(("width", "height"), [(65535, 65535), (2**31 - 1, 2**31 - 1), (MOST_PIXELS // 1000 + 1, 1000)])
def test_giant_declared_sizes_are_refused_before_memory_is_taken(tmp_path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match=f"{MOST_PIXELS} pixels"):
        read(tmp_path, content)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
def test_any_damage_is_an_input_error_or_a_picture(
    tmp_path_factory: pytest.TempPathFactory, format: str, data: st.DataObject
) -> None:
    content = bytearray(encoded(format))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        picture = read(tmp_path_factory.getbasetemp(), bytes(content), "damaged")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3


def test_arrays_of_all_kinds_become_bgr() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(to_bgr(grey), expected)
    np.testing.assert_array_equal(to_bgr(grey[..., None]), expected)
    assert to_bgr(expected) is expected
    np.testing.assert_array_equal(to_bgr(np.dstack([expected, grey])), expected)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros(3, np.uint8),
    ],
)
def test_other_arrays_are_refused(picture: np.ndarray) -> None:
    with pytest.raises(InputError, match="a picture is uint8"):
        to_bgr(picture)
