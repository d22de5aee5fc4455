"""Standard metadata: what stands in its tables, read by their places in the schema as another program would."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_tflite
from flatbuffers import number_types
from flatbuffers.table import Table

from deploy import model_file
from deploy.contract import Input
from deploy.detector import Detector
from deploy.errors import ContractError
from toolchain.flatbuffer_graph import unpacked
from toolchain.tflite_metadata import Output, with_metadata, with_own_metadata

INPUT = Input("image", 32, 64, "stretch", "RGB", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
NAMES = ("xy_16", "wh_16", "objectness_16", "classes_16")


def metadata(tflite: bytes) -> bytes:
    model = unpacked(tflite)
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    return bytes(model.buffers[entry.buffer].data)


def offset(buffer: bytes, place: int) -> int:
    return int.from_bytes(buffer[place : place + 4], "little")


class Fields:
    """A table whose fields are read by their places."""

    def __init__(self, buffer: bytes, place: int) -> None:
        self.table = Table(buffer, place)

    def _at(self, field: int) -> int:
        return self.table.Offset(4 + 2 * field)

    def text(self, field: int) -> str:
        return self.table.String(self._at(field) + self.table.Pos).decode()

    def number(self, field: int, kind: Any) -> Any:
        return self.table.Get(kind, self._at(field) + self.table.Pos)

    def below(self, field: int) -> "Fields":
        return Fields(self.table.Bytes, self.table.Indirect(self._at(field) + self.table.Pos))

    def union(self, field: int) -> "Fields":
        place = self._at(field) + self.table.Pos
        return Fields(self.table.Bytes, place + offset(self.table.Bytes, place))

    def tables(self, field: int) -> list["Fields"]:
        if not self._at(field):
            return []
        start = self.table.Vector(self._at(field))
        length = self.table.VectorLen(self._at(field))
        return [Fields(self.table.Bytes, self.table.Indirect(start + 4 * index)) for index in range(length)]

    def numbers(self, field: int, kind: Any) -> list[Any]:
        return list(self.table.GetVectorAsNumpy(kind, self._at(field)))


def root(content: bytes) -> Fields:
    assert content[4:8] == b"M001"
    return Fields(content, offset(content, 0))


def described(**outputs: Output) -> Fields:
    content, _ = tiny_tflite.yolo()
    every = {name: Output(name, f"about {name}") for name in NAMES} | outputs
    return root(metadata(with_metadata(content, "net", "a detector", INPUT, every)))


def test_the_model_and_its_input() -> None:
    found = described()
    assert (found.text(0), found.text(1), found.text(7)) == ("net", "a detector", "1.0.0")
    (subgraph,) = found.tables(3)
    (picture,) = subgraph.tables(2)
    assert picture.text(0) == "image" and "red, green, blue" in picture.text(1)
    content = picture.below(3)
    assert content.number(0, number_types.Uint8Flags) == 2  # ImageProperties
    image = content.union(1)
    assert image.number(0, number_types.Int8Flags) == 1  # RGB
    size = image.below(1)
    assert [size.number(field, number_types.Uint32Flags) for field in (0, 1)] == [64, 32]  # width, height
    (unit,) = picture.tables(4)
    assert unit.number(0, number_types.Uint8Flags) == 1  # NormalizationOptions
    assert unit.union(1).numbers(0, number_types.Float32Flags) == list(INPUT.mean)
    assert unit.union(1).numbers(1, number_types.Float32Flags) == list(INPUT.std)
    low = np.array([-1 / 4, -2 / 5, -3 / 6], np.float32)
    assert picture.below(5).numbers(1, number_types.Float32Flags) == low.tolist()


def test_outputs_stand_in_the_subgraphs_order_with_what_they_hold() -> None:
    (subgraph,) = described(
        wh_16=Output("location", "boxes", boxes=(1, 0, 3, 2)),
        classes_16=Output("score", "scores", labels="axis", threshold=0.25),
        objectness_16=Output("category", "classes", labels="value"),
    ).tables(3)
    xy, wh, objectness, classes = subgraph.tables(3)
    assert [output.text(0) for output in (xy, wh, objectness, classes)] == ["xy_16", "location", "category", "score"]
    assert xy.text(1) == "about xy_16" and xy.tables(4) == xy.tables(6) == []
    content = wh.below(3)
    assert content.number(0, number_types.Uint8Flags) == 3  # BoundingBoxProperties
    assert content.union(1).numbers(0, number_types.Uint32Flags) == [1, 0, 3, 2]
    kinds = [content.union(1).number(field, number_types.Int8Flags) for field in (1, 2)]
    assert kinds == [1, 0]  # BOUNDARIES, RATIO
    for output, kind in ((classes, 2), (objectness, 3)):  # TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS
        (labels,) = output.tables(6)
        assert (labels.text(0), labels.number(2, number_types.Int8Flags)) == ("labels.txt", kind)
    (unit,) = classes.tables(4)
    assert unit.number(0, number_types.Uint8Flags) == 3  # ScoreThresholdingOptions
    assert unit.union(1).number(0, number_types.Float32Flags) == 0.25


def test_earlier_metadata_is_replaced_and_the_bytes_are_always_the_same() -> None:
    content, _ = tiny_tflite.yolo()
    outputs = {name: Output(name, name) for name in NAMES}
    once = with_metadata(content, "first", "", INPUT, outputs)
    assert once == with_metadata(content, "first", "", INPUT, outputs)
    twice = with_metadata(once, "second", "", INPUT, outputs)
    assert root(metadata(twice)).text(0) == "second" and b"first" not in twice


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_our_own_file_tells_it_and_detects_as_before(tmp_path: Path, dtype: str) -> None:
    content, contract = tiny_tflite.yolo(dtype, color="BGR")
    (tmp_path / "plain.tflite").write_bytes(model_file.write(content, contract))
    (tmp_path / "told.tflite").write_bytes(model_file.write(with_own_metadata(content, contract), contract))
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[::16, ::16, 2] = 255
    plain, told = (Detector(tmp_path / f"{name}.tflite").detect(picture) for name in ("plain", "told"))
    assert len(plain) > 0
    np.testing.assert_array_equal(told.boxes, plain.boxes)
    np.testing.assert_array_equal(told.scores, plain.scores)

    body, _ = model_file.read(tmp_path / "told.tflite")
    (subgraph,) = root(metadata(body)).tables(3)
    (picture_table,) = subgraph.tables(2)
    assert "blue, green, red" in picture_table.text(1) and "grey bars" in picture_table.text(1)
    assert picture_table.below(3).union(1).number(0, number_types.Int8Flags) == 0  # UNKNOWN: the schema has no BGR
    outputs = subgraph.tables(3)
    assert [output.text(0) for output in outputs] == list(NAMES)
    assert [len(output.tables(6)) for output in outputs] == [0, 0, 0, 1]


def test_a_changed_byte_of_the_metadata_is_refused(tmp_path: Path) -> None:
    content, contract = tiny_tflite.yolo()
    written = bytearray(model_file.write(with_own_metadata(content, contract), contract))
    written[written.index(b"M001")] ^= 1
    (tmp_path / "m.tflite").write_bytes(written)
    with pytest.raises(ContractError, match="altered or damaged"):
        model_file.read(tmp_path / "m.tflite")
