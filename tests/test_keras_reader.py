"""Files of Keras 3, and files that are not to be trusted."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_models import assert_same_graph, outputs, randomize

from deploy.errors import GraphError, InputError
from toolchain.graph import Graph, Node
from toolchain.keras_reader import from_keras, read_keras
from toolchain.keras_writer import to_keras
from toolchain.shapes import shapes


def _net() -> Any:
    import keras

    entry = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv", activation="relu", kernel_regularizer="l2")(entry)
    x = keras.layers.BatchNormalization(name="normal")(x)
    x = x * 2.0 + keras.ops.reshape(keras.ops.softmax(x), (-1, 6, 6, 4))
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    return randomize(keras.Model(entry, [keras.layers.Add(name="sum")([x, x]), x[..., :2]], name="net"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same model in both of Keras 3's formats."""
    folder = tmp_path_factory.mktemp("saved")
    _save(_net(), folder / "net.keras")
    _save(_net(), folder / "net.h5")
    return folder


def _save(model: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_files_of_keras_3(saved: Path, tmp_path: Path, name: str) -> None:
    # The suffix says nothing.
    path = tmp_path / "model"
    path.write_bytes((saved / name).read_bytes())
    graph = read_keras(path)
    expected = from_keras(_net())
    assert [(node.op, node.shared_with) for node in graph.nodes] == [
        (node.op, node.shared_with) for node in expected.nodes
    ]
    picture = np.random.default_rng(1).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    for found, wanted in zip(outputs(to_keras(graph), picture), outputs(_net(), picture), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_graph_of_ours_comes_back_from_its_saved_model(tmp_path: Path) -> None:
    nodes = (
        Node("image", "InputLayer", (), {"shape": [4, 6, 8]}),
        Node("reorg", "DarknetReorg", ("image",), {"stride": 2}),
        Node("part", "Slice", ("reorg",), {"axis": -1, "start": 4, "stop": 20}),
        Node("large", "Resize", ("part",), {"height": 4, "width": 6, "interpolation": "nearest"}),
        Node("framed", "MirrorPad", ("large",), {"padding": [[1, 1], [0, 2]], "mode": "symmetric"}),
    )
    graph = Graph("net", nodes, ("framed",))
    to_keras(graph).save(tmp_path / "net.keras")
    assert_same_graph(read_keras(tmp_path / "net.keras"), graph)


def test_an_open_input_size_is_given(tmp_path: Path) -> None:
    import keras

    entry = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same")(entry)
    _save(keras.Model(entry, keras.layers.RandomContrast(0.1)(x) / 3.0), tmp_path / "net.keras")
    with pytest.raises(GraphError, match="give the input size"):
        read_keras(tmp_path / "net.keras")
    graph = read_keras(tmp_path / "net.keras", input_size=(32, 48))
    assert shapes(graph)[graph.outputs[0]] == (16, 24, 4)
    assert shapes(read_keras(tmp_path / "net.keras", input_size=(64, 64)))[graph.outputs[0]] == (32, 32, 4)


def test_lambda_runs_only_where_it_is_allowed(tmp_path: Path) -> None:
    import keras

    entry = keras.Input((4, 4, 3))
    _save(keras.Model(entry, keras.layers.Lambda(lambda x: x * 3, name="code")(entry)), tmp_path / "net.keras")
    with pytest.raises(GraphError, match="a Lambda runs code from the file: 'code' in .*net.keras"):
        read_keras(tmp_path / "net.keras")
    graph = read_keras(tmp_path / "net.keras", allow_lambda=True)
    with pytest.raises(GraphError, match="a Lambda runs code"):
        to_keras(graph)
    picture = np.ones((1, 4, 4, 3), np.float32)
    np.testing.assert_array_equal(outputs(to_keras(graph, allow_lambda=True), picture)[0], 3 * picture)


def test_cut_files_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    for name in ("net.keras", "net.h5"):
        content = (saved / name).read_bytes()
        for part in (0, 0.001, 0.1, 0.5, 0.9, 0.999):
            path.write_bytes(content[: int(len(content) * part)])
            with pytest.raises(InputError, match="cut") as caught:
                read_keras(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04\x95", b"PK\x03\x04 no zip", b"\x89HDF\r\n\x1a\n no hdf", b"[net]\nwidth=416\n"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.keras").write_bytes(content)
    with pytest.raises(InputError, match="net.keras"):
        read_keras(tmp_path / "net.keras")
    with pytest.raises(InputError, match="cannot read .*none.keras"):
        read_keras(tmp_path / "none.keras")


def _changed(
    saved: Path, target: Path, *, drop: str = "", compression: int = zipfile.ZIP_STORED, **entries: bytes
) -> Path:
    """The .keras file with some of its entries (dots as underscores) replaced."""
    with zipfile.ZipFile(saved / "net.keras") as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name != drop}
    for name in files:
        files[name] = entries.pop(name.replace(".", "_"), files[name])
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target


def _config(saved: Path) -> dict[str, Any]:
    with zipfile.ZipFile(saved / "net.keras") as archive:
        config: dict[str, Any] = json.loads(archive.read("config.json"))
    return config


def test_bombs_are_refused_before_they_unpack(saved: Path, tmp_path: Path) -> None:
    bomb = _changed(saved, tmp_path / "net.keras", compression=zipfile.ZIP_DEFLATED, config_json=b" " * (63 * 2**20))
    with pytest.raises(InputError, match="unpacks to about its own size: config.json"):
        read_keras(bomb)
    config = _config(saved)
    (attention,) = [layer for layer in config["config"]["layers"] if layer["class_name"] == "MultiHeadAttention"]
    attention["config"]["key_dim"] = 10**10
    with pytest.raises(InputError, match="wants .* numbers, the file has"):
        read_keras(_changed(saved, tmp_path / "net.keras", config_json=json.dumps(config).encode()))
    deep = b"[" * 100_000 + b"]" * 100_000
    with pytest.raises(InputError, match="config is JSON"):
        read_keras(_changed(saved, tmp_path / "net.keras", config_json=deep))


def test_weights_outside_the_file_or_without_end_are_refused(saved: Path, tmp_path: Path) -> None:
    import h5py

    for name in ("external", "linked", "huge"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            if name == "external":
                file.create_dataset("w", (4,), "f4", external=[("/etc/hostname", 0, 16)])
            elif name == "linked":
                file["w"] = h5py.ExternalLink("/tmp/other.h5", "/w")
            else:
                file.create_dataset("w", (10**6, 10**6), "f4", chunks=(100, 100))
        with pytest.raises(InputError, match="weights are in the file itself: '/?w'"):
            read_keras(_changed(saved, tmp_path / "net.keras", model_weights_h5=buffer.getvalue()))


def test_missing_and_wrong_parts_are_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    with pytest.raises(InputError, match="has no model.weights.h5"):
        read_keras(_changed(saved, path, drop="model.weights.h5"))
    with pytest.raises(InputError, match="has no config.json"):
        read_keras(_changed(saved, path, drop="config.json"))
    for wrong in (b"{}", b"[]", b"{", b'{"class_name": "Functional", "config": {}}', b"\xff\xfe"):
        with pytest.raises(InputError, match="net.keras") as caught:
            read_keras(_changed(saved, path, config_json=wrong))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"class_name": "Mine", "module": "mine", "registered_name": "Custom>Mine"},
            "'conv' in .* is or uses 'Custom>Mine'",
        ),
        ({"class_name": "system", "module": "os", "registered_name": None}, "'conv' in .* is or uses 'system'"),
        ({"class_name": "Popen", "module": "keras.subprocess", "registered_name": "Mine"}, "is or uses 'Mine'"),
        ({"class_name": "Lambda"}, "a Lambda runs code from the file: 'conv' in "),
        ({"class_name": "get_file", "module": "keras.utils", "registered_name": None}, "net.keras"),
    ],
)
def test_objects_that_are_not_kerass_own_are_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    config = _config(saved)
    config["config"]["layers"][1] |= change
    path = _changed(saved, tmp_path / "net.keras", config_json=json.dumps(config).encode())
    with pytest.raises((GraphError, InputError), match=sentence) as caught:
        read_keras(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_weights_alone_is_refused(tmp_path: Path) -> None:
    _net().save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(InputError, match="has only weights; save it with model.save"):
        read_keras(tmp_path / "net.weights.h5")
