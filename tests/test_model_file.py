import dataclasses
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_tflite
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.contract import PostprocessHead
from deploy.errors import ContractError, InputError, SlimdetError
from deploy.model_file import read, write

BODY, CONTRACT = tiny_tflite.yolo()
WHOLE = write(BODY, CONTRACT)


def repacked(body: bytes, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO(body)
    with zipfile.ZipFile(file, "a", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_metadata(**changes: Any) -> bytes:
    """The file with other fields in slimdet.json; None takes a field away."""
    metadata = json.loads(members()["slimdet.json"]) | changes
    text = json.dumps({key: value for key, value in metadata.items() if value is not None}).encode()
    return repacked(BODY, members() | {"slimdet.json": text})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.tflite"


def refusal(path: Path, content: bytes, error: type[SlimdetError] = ContractError) -> str:
    """What `read` says of the content: one line that names the file."""
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_body_and_contract_come_back(path: Path) -> None:
    path.write_bytes(WHOLE)
    assert read(path) == (BODY, CONTRACT)
    assert read(str(path)) == (BODY, CONTRACT)


def test_the_file_is_a_plain_tflite() -> None:
    interpreter = Interpreter(model_content=WHOLE, num_threads=1)
    signatures = interpreter.get_signature_list()
    assert sorted(signatures["serving_default"]["outputs"]) == ["classes_16", "objectness_16", "wh_16", "xy_16"]


def test_the_file_is_a_clean_zip_archive(path: Path) -> None:
    path.write_bytes(WHOLE)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["slimdet.json", "labels.txt"]
        assert archive.testzip() is None
        assert archive.read("labels.txt") == b"red\nblue\n"
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert WHOLE[member.header_offset : member.header_offset + 4] == b"PK\3\4"
    if shutil.which("unzip"):
        # Offsets that were off by the flatbuffer's length would be a warning and exit code 1.
        done = subprocess.run(["unzip", "-t", str(path)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_same_input_gives_the_same_bytes_and_an_earlier_contract_is_replaced() -> None:
    assert write(BODY, CONTRACT) == WHOLE
    other = dataclasses.replace(CONTRACT, name="other")
    assert write(write(BODY, other), CONTRACT) == WHOLE


def test_a_contract_that_cannot_be_read_back_is_not_written() -> None:
    with pytest.raises(ContractError, match="labels"):
        write(BODY, dataclasses.replace(CONTRACT, labels=()))
    with pytest.raises(ContractError, match="at most 4194304 bytes"):
        write(BODY, dataclasses.replace(CONTRACT, measured={"text": "x" * 2**22}))


def test_another_archive_is_not_overwritten() -> None:
    with pytest.raises(ContractError, match="labelmap.txt"):
        write(repacked(BODY, {"labelmap.txt": b"cat\n"}), CONTRACT)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_in_its_model_is_refused(path: Path, share: float) -> None:
    assert "cut short" in refusal(path, WHOLE[: int(len(BODY) * share)], InputError)


def test_a_file_cut_at_any_place_behind_its_model_is_refused(path: Path) -> None:
    for length in range(len(BODY) + 50, len(WHOLE), 97):
        assert "cut short" in refusal(path, WHOLE[:length], InputError)


def test_an_altered_model_is_refused(path: Path) -> None:
    altered = bytearray(WHOLE)
    altered[len(BODY) // 2] ^= 1
    assert "altered or damaged" in refusal(path, bytes(altered))
    assert "altered or damaged" in refusal(path, repacked(BODY + b"\0\0\0\0", members()))


def test_altered_metadata_is_refused(path: Path) -> None:
    place = WHOLE.index(b'"precision": "float32"') + len('"precision": "floa')
    assert "slimdet.json is damaged" in refusal(path, WHOLE[:place] + b"x" + WHOLE[place + 1 :])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_damage_is_an_error_or_does_no_harm(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    altered = bytearray(WHOLE)
    for place in data.draw(st.lists(st.integers(0, len(WHOLE) - 1), min_size=1, max_size=3)):
        altered[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.tflite"
    path.write_bytes(altered)
    try:
        body, contract = read(path)
    except SlimdetError as error:
        assert "\n" not in str(error)
    else:
        assert (body, contract) == (BODY, CONTRACT)


def test_another_format_is_refused_before_anything_else(path: Path) -> None:
    text = refusal(path, with_metadata(format=2, contract={"from": "the future"}))
    assert "format 1" in text and "has 2" in text


def test_metadata_that_is_no_contract_is_refused(path: Path) -> None:
    assert "unknown or missing metadata" in refusal(path, with_metadata(body_sha256=None))
    assert "unknown or missing metadata" in refusal(path, with_metadata(extra=1))
    assert "contract is an object" in refusal(path, with_metadata(contract=[]))
    for text in (b"", b"{", b"\xff", b"NaN", b'{"format": NaN}', b'{"format": 1, "format": 1}', b"[" * 100_000):
        assert "slimdet.json is no JSON" in refusal(path, repacked(BODY, {"slimdet.json": text}))
    assert "not list" in refusal(path, repacked(BODY, {"slimdet.json": b"[1]"}))


def test_labels_that_disagree_are_refused(path: Path) -> None:
    assert "different classes" in refusal(path, repacked(BODY, members() | {"labels.txt": b"blue\nred\n"}))
    only = {"slimdet.json": members()["slimdet.json"]}
    assert "has no labels.txt" in refusal(path, repacked(BODY, only))


def test_a_zip_bomb_is_not_unpacked(path: Path) -> None:
    bomb = repacked(BODY, {"slimdet.json": b" " * (64 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 2**20
    assert "at most 4194304 bytes" in refusal(path, bomb)


def test_what_is_no_tflite_is_refused(path: Path, tmp_path: Path) -> None:
    for content in (b"", b"abc", b"PK\3\4TFL", b"x" * 100):
        assert "TFL3" in refusal(path, content, InputError)
    assert "damaged or cut short" in refusal(path, b"\x1c\0\0\0TFL3", InputError)
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "missing.tflite")


LABELS = {"labelmap.txt": b"cat\ndog\ncow\n"}


def test_a_foreign_detector_with_labels_is_understood(path: Path) -> None:
    content = repacked(tiny_tflite.postprocess(), LABELS, zipfile.ZIP_DEFLATED)
    path.write_bytes(content)
    body, contract = read(path)
    assert body == content
    assert contract.labels == ("cat", "dog", "cow")
    name = "TFLite_Detection_PostProcess"
    assert contract.head == PostprocessHead(name, f"{name}:1", f"{name}:2", f"{name}:3")
    # The input's own quantization, scale 1/128 and zero point 128, takes the pixels as they are.
    assert (contract.input.mean, contract.input.std) == ((128.0,) * 3, (128.0,) * 3)
    assert (contract.input.height, contract.input.width, contract.input.resize) == (4, 4, "stretch")


@pytest.mark.parametrize("first", ["???", "background"])
def test_a_background_line_is_no_class(path: Path, first: str) -> None:
    path.write_bytes(repacked(tiny_tflite.postprocess(), {"labelmap.txt": f"{first}\ncat\n???\ncow\n".encode()}))
    assert read(path)[1].labels == ("cat", "???", "cow")


def test_foreign_files_that_leave_something_to_guess_are_refused(path: Path) -> None:
    body = tiny_tflite.postprocess()
    assert "one label file" in refusal(path, body)
    assert "one label file" in refusal(path, repacked(body, {"readme.md": b"cat\n"}))
    assert "a.txt, b.txt" in refusal(path, repacked(body, {"a.txt": b"cat\n", "b.txt": b"dog\n"}))
    assert "names no class" in refusal(path, repacked(body, {"labelmap.txt": b""}))
    assert "not UTF-8" in refusal(path, repacked(body, {"labelmap.txt": b"\xff\n"}))
    assert "how pixels enter" in refusal(path, repacked(tiny_tflite.postprocess("float32"), LABELS))
    assert "no slimdet metadata" in refusal(path, repacked(BODY, LABELS))


def test_a_label_file_of_other_size_than_it_says_is_refused(path: Path) -> None:
    bomb = bytearray(repacked(tiny_tflite.postprocess(), {"labelmap.txt": b"a\n" * 10_000_000}, zipfile.ZIP_DEFLATED))
    central = bomb.rindex(b"PK\1\2")
    bomb[central + 24 : central + 28] = (100).to_bytes(4, "little")
    assert "damaged" in refusal(path, bytes(bomb))


@pytest.mark.real_data
def test_the_real_foreign_files(real_data: Path) -> None:
    folder = real_data / "tflite"
    _, contract = read(folder / "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite")
    assert contract.labels == tuple((folder / "coco_ssd_labelmap.txt").read_text().splitlines())
    assert (contract.input.height, contract.input.width) == (300, 300)
    for name in ("yolo-fastest-coco-float32", "yolo-fastest-coco-uint8", "face_detection_short_range"):
        with pytest.raises(ContractError, match="no slimdet metadata"):
            read(folder / f"{name}.tflite")
