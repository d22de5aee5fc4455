"""What a model is made of, of our own files and of others'."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_detector
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import model_file
from deploy.errors import InputError
from toolchain import inspection
from toolchain.inspection import as_text, inspect_model
from toolchain.tflite_file import read_structure

CFG = """\
[net]
width=32
height=32
channels=3

[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=14
size=1
stride=1
activation=linear

[yolo]
mask=0,1
anchors=4,5, 6,7
classes=2
num=2
"""


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    (tmp_path / "net.cfg").write_text(CFG)
    (tmp_path / "net.names").write_text("cat\ndog\n")
    return tmp_path / "net.cfg"


def test_layers_totals_and_head_of_a_cfg(cfg: Path) -> None:
    found = inspect_model(str(cfg), None, cfg.with_suffix(".names"))
    json.dumps(found, allow_nan=False)
    by_name = {layer["name"]: layer for layer in found["layers"]}
    assert by_name["conv_0"]["shape"] == [16, 16, 4]
    assert by_name["conv_0"]["flops"] == 2 * 16 * 16 * 4 * 3 * 3 * 3
    assert by_name["conv_0"]["trainable"] == 3 * 3 * 3 * 4
    trainable = 3 * 3 * 3 * 4 + 2 * 4 + 4 * 14 + 14
    assert found["totals"]["trainable"] == trainable
    assert found["totals"]["non_trainable"] == 2 * 4
    assert found["totals"]["parameters"] == trainable + 2 * 4
    assert found["totals"]["flops"] == by_name["conv_0"]["flops"] + 2 * 16 * 16 * 14 * 4 + 16 * 16 * 14
    (scale,) = found["head"]["scales"]
    assert scale["stride"] == 2
    assert scale["anchors"] == [[4, 5], [6, 7]]
    assert found["labels"] == ["cat", "dog"]
    text = as_text(found)
    assert "conv_0" in text and f"{trainable + 8:,} parameters" in text and "stride 2: anchors 4x5  6x7" in text


def test_what_can_be_compressed(cfg: Path) -> None:
    found = inspect_model(str(cfg))
    first, last = found["compression"]["groups"]
    assert (first["name"], first["channels"], first["reason"]) == ("conv_0", 4, "")
    assert (last["layers"], last["reason"]) == (["conv_1"], "'conv_1' is an output of the network")
    reasons = {entry["layer"]: entry["reason"] for entry in found["compression"]["tucker"]}
    assert "reads the picture" in reasons["conv_0"] and "1x1" in reasons["conv_1"]
    text = as_text(found)
    assert "1 of 2 groups can be pruned" in text and "Tucker can split 0 of 2 convolutions: none" in text


def test_the_network_of_a_recipe(cfg: Path) -> None:
    recipe = cfg.with_suffix(".yaml")
    recipe.write_text(
        "name: net\nmodel: {yolov4: {backbone: efficientnet-b0, head: lite, labels: [cat], size: [64, 64]}}\n"
        "precisions: [float32]\n"
    )
    found = inspect_model(str(recipe))
    assert [layer["name"] for layer in found["layers"]][:2] == ["image", "stem_conv_pad"]
    assert found["labels"] == ["cat"] and len(found["head"]["scales"]) == 3
    with pytest.raises(InputError, match="names its model's files itself"):
        inspect_model(str(recipe), recipe)


def test_a_head_belongs_to_a_keras_model(cfg: Path) -> None:
    with pytest.raises(InputError, match="only a Keras model has a HEAD.yaml"):
        inspect_model(str(cfg), None, None, cfg)


def test_without_names_it_still_looks(cfg: Path) -> None:
    assert inspect_model(str(cfg))["totals"]["trainable"] > 0


def test_built_in_by_name(cfg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "built_in_networks", lambda: {"net": cfg})
    found = inspect_model("net")
    assert found["labels"] == ["cat", "dog"]
    with pytest.raises(InputError, match="the name of a built-in network .net.: there is no 'nett'"):
        inspect_model("nett")


def test_own_tflite(tmp_path: Path) -> None:
    path = toy_detector.write_toy(tmp_path / "toy.tflite")
    found = inspect_model(str(path))
    json.dumps(found, allow_nan=False)
    assert found["operation_counts"] == {"CONV_2D": 4, "AVERAGE_POOL_2D": 1}
    assert [tensor["name"] for tensor in found["inputs"]] == ["image"]
    assert found["metadata"]["labels"] == ["red", "blue"]
    assert found["delegated"] == {"nodes": 5, "total": 5}
    assert found["warnings"] == []
    assert "metadata: toy, float32, 32x32 RGB stretch, yolo head, 2 labels: red, blue" in as_text(found)


def test_tflite_without_metadata(tmp_path: Path) -> None:
    (tmp_path / "plain.tflite").write_bytes(toy_detector.tflite())
    found = inspect_model(str(tmp_path / "plain.tflite"))
    assert found["metadata"] is None
    assert len(found["warnings"]) == 1 and "has no slimdet metadata" in found["warnings"][0]
    assert as_text(found).count("warning:") == 1


def test_tflite_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(toy_detector.tflite())
    assert inspect_model(str(tmp_path / "model"))["kind"] == "tflite"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.tflite", b"", "has TFL3 at bytes 4 to 8"),
        ("a.tflite", b"\0\0\0\0TFL3", "damaged or cut short"),
        ("a.cfg", b"", "a.cfg"),
        ("a.cfg", b"\xff\xfe\0binary", "a.cfg"),
    ],
)
def test_what_is_no_model(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        inspect_model(str(tmp_path / name))


def test_a_folder_and_needless_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; name the file inside"):
        inspect_model(str(tmp_path))
    path = toy_detector.write_toy(tmp_path / "toy.tflite")
    with pytest.raises(InputError, match="comes alone"):
        inspect_model(str(path), tmp_path / "w")


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_damaged_flatbuffer_is_followed_or_refused_in_one_sentence(at: int, value: int) -> None:
    content = bytearray(toy_detector.tflite())
    content[at % len(content)] = value
    try:
        json.dumps(read_structure(bytes(content), "damaged.tflite"))
    except InputError as error:
        assert str(error).startswith("damaged.tflite: its flatbuffer cannot be followed")


def test_a_file_that_kills_the_runtime_is_refused(tmp_path: Path) -> None:
    content = bytearray(toy_detector.tflite())
    # An entry of the root table's layout: LiteRT 2.3 dies of SIGSEGV on it.
    content[18] = 0
    path = tmp_path / "deadly.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match="deadly.tflite"):
        inspect_model(str(path))


@pytest.mark.parametrize("part", np.linspace(0, 0.98, 10))
def test_cut_tflite_is_never_taken_for_whole(tmp_path: Path, part: float) -> None:
    content = model_file.write(toy_detector.tflite(), toy_detector.contract())
    path = tmp_path / "cut.tflite"
    path.write_bytes(content[: int(len(content) * part)])
    try:
        found = inspect_model(str(path))
    except InputError:
        return
    # Cut exactly between model and metadata, what is left is a whole .tflite without metadata, and is shown as that.
    assert found["metadata"] is None and "has no slimdet metadata" in found["warnings"][0]


@pytest.mark.real_data
def test_files_by_others(real_data: Path) -> None:
    folder = real_data / "tflite"
    ssd = inspect_model(str(folder / "coco_ssd_mobilenet_v1_1.0_quant_2018_06_29.tflite"))
    assert ssd["operation_counts"]["CUSTOM TFLite_Detection_PostProcess"] == 1
    assert ssd["inputs"][0]["scale"] == [0.0078125]
    assert len(ssd["metadata"]["labels"]) == 90
    assert not any("scale 1.0" in text for text in ssd["warnings"])
    bad = inspect_model(str(folder / "yolo-fastest-coco-uint8.tflite"))
    assert bad["metadata"] is None
    assert any("has the scale 1.0" in text for text in bad["warnings"])
    face = inspect_model(str(folder / "face_detection_short_range.tflite"))
    assert face["delegated"]["nodes"] == face["delegated"]["total"] == len(face["operations"])


@pytest.mark.real_data
def test_parameters_of_real_networks(real_data: Path) -> None:
    weights = real_data / "weights"
    published = {"voc-yolo-fastest": 315_726, "yolo-lite-voc-trial3-noBatch": 572_317, "yolov4-tiny": 6_062_814}
    for name, parameters in published.items():
        found = inspect_model(str(weights / f"{name}.cfg"), weights / f"{name}.weights")
        assert found["totals"]["parameters"] == parameters
