"""On a software GPU, in processes of its own, since a driver may end them. Skipped where there is none."""

import functools
import json
import os
from pathlib import Path

import ai_edge_litert
import numpy as np
import open_child
import pytest
import software_gpu
import tiny_tflite
import toy_detector
import toy_network
from ai_edge_litert import schema_py_generated as schema

from deploy.errors import BackendError
from deploy.interpreter import Model
from deploy.open_model import open_model

SIDE = 96
#: What TensorFlow Lite's classic detectors end in.
POSTPROCESS = "TFLite_Detection_PostProcess"


def detector(dtype: str) -> bytes:
    """Two 3x3 convolutions of stride 2 with ReLU6, then two 1x1 convolutions as outputs, all with seeded weights."""
    random, builder = np.random.default_rng(0), tiny_tflite.Builder()
    quantized = dtype == "int8"
    pixels = (1 / 255, -128) if quantized else (0.0, 0)
    source = builder.tensor("serving_default_image:0", (1, SIDE, SIDE, 3), dtype, *pixels)

    def conv(name: str, source: int, scale: float, shape: tuple[int, ...], stride: int, step: tuple[float, int]) -> int:
        kernel = random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        weight_step = float(np.abs(kernel).max() / 127)
        w = builder.tensor(
            f"{name} kernel",
            shape,
            dtype,
            weight_step if quantized else 0.0,
            data=np.rint(kernel / weight_step) if quantized else kernel,
        )
        b = builder.tensor(
            f"{name} bias",
            shape[:1],
            "int32" if quantized else "float32",
            scale * weight_step if quantized else 0.0,
            data=np.zeros(shape[:1]),
        )
        side = builder.graph.tensors[source].shape[1] // stride
        output = builder.tensor(name, (1, side, side, shape[0]), dtype, *(step if quantized else (0.0, 0)))
        options = schema.Conv2DOptionsT()
        options.padding, options.strideH, options.strideW = schema.Padding.SAME, stride, stride
        options.dilationHFactor = options.dilationWFactor = 1
        if stride > 1:
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU6
        builder.operation("CONV_2D", [source, w, b], [output], options)
        return output

    step = 6 / 255
    first = conv("first", source, 1 / 255, (8, 3, 3, 3), 2, (step, -128))
    second = conv("second", first, step, (16, 3, 3, 8), 2, (step, -128))
    boxes = conv("boxes", second, step, (4, 1, 1, 16), 1, (0.03, 0))
    scores = conv("scores", second, step, (6, 1, 1, 16), 1, (0.03, 5))
    return builder.finish({"image": source}, {"scores": scores, "boxes": boxes})


def five_dimensions() -> bytes:
    """What Keras 3's UpSampling2D converts to, between a LOGISTIC before and after."""
    builder = tiny_tflite.Builder()
    source = builder.tensor("image", (1, 2, 2, 3))
    before, after = builder.tensor("before", (1, 2, 2, 3)), builder.tensor("after", (1, 4, 2, 3))
    wide, twice = builder.tensor("wide", (1, 2, 1, 2, 3)), builder.tensor("twice", (1, 2, 2, 2, 3))
    times, output = builder.tensor("times", (5,), "int32", data=[1, 1, 2, 1, 1]), builder.tensor("out", (1, 4, 2, 3))
    builder.operation("LOGISTIC", [source], [before])
    builder.operation("RESHAPE", [before], [wide], reshape(1, 2, 1, 2, 3))
    builder.operation("TILE", [wide, times], [twice], schema.TileOptionsT())
    builder.operation("RESHAPE", [twice], [after], reshape(1, 4, 2, 3))
    builder.operation("LOGISTIC", [after], [output])
    return builder.finish({"image": source}, {"out": output})


def reshape(*shape: int) -> schema.ReshapeOptionsT:
    options = schema.ReshapeOptionsT()
    options.newShape = list(shape)
    return options


def sum_of(dtype: str) -> bytes:
    builder = tiny_tflite.Builder()
    source, output = builder.tensor("image", (1, 2, 2, 3), dtype), builder.tensor("out", (1, 2, 2, 3), dtype)
    builder.operation("ADD", [source, source], [output], schema.AddOptionsT())
    return builder.finish({"image": source}, {"out": output})


def through_int64() -> bytes:
    builder = tiny_tflite.Builder()
    source, output = builder.tensor("image", (1, 2, 2, 3)), builder.tensor("out", (1, 2, 2, 3))
    whole = builder.tensor("whole", (1, 2, 2, 3), "int64")
    for start, end, kinds in ((source, whole, ("FLOAT32", "INT64")), (whole, output, ("INT64", "FLOAT32"))):
        options = schema.CastOptionsT()
        options.inDataType, options.outDataType = (getattr(schema.TensorType, kind) for kind in kinds)
        builder.operation("CAST", [start], [end], options)
    return builder.finish({"image": source}, {"out": output})


def computed_shape() -> bytes:
    builder = tiny_tflite.Builder()
    source = builder.tensor("image", (1, 2, 2, 3))
    half = builder.tensor("half", (2,), "int32", data=[1, 3])
    shape, output = builder.tensor("shape", (2,), "int32"), builder.tensor("out", (2, 6))
    builder.operation("ADD", [half, half], [shape], schema.AddOptionsT())
    builder.operation("RESHAPE", [source, shape], [output], schema.ReshapeOptionsT())
    return builder.finish({"image": source}, {"out": output})


MODELS = {
    "float32": lambda: detector("float32"),
    "int8": lambda: detector("int8"),
    "int32": lambda: sum_of("int32"),
    "without_signature": lambda: tiny_tflite.yolo(signatures=())[0],
    "two_signatures": lambda: tiny_tflite.yolo(signatures=("other", "serving_default"))[0],
    "five_dimensions": five_dimensions,
    "through_int64": through_int64,
    "computed_shape": computed_shape,
    "computed_shape_again": computed_shape,
    "postprocess": lambda: tiny_tflite.postprocess("float32"),
    "strided_1x1_int8": lambda: tiny_tflite.yolo("int8")[0],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        (found / f"{name}.tflite").write_bytes(make())
    return found


@pytest.fixture(scope="module")
def on_gpu(folder: Path) -> dict[str, dict]:
    """What one process said of all models, one after the other."""
    told, done = open_child.opened("gpu", [folder / f"{name}.tflite" for name in MODELS], software_gpu.settings())
    assert done.returncode == 0, done.stderr[-1000:]
    return dict(zip(MODELS, told, strict=True))


@functools.cache
def on_cpu(path: Path, backend: str = "cpu") -> dict[str, np.ndarray]:
    model = Model(path.read_bytes(), backend)
    return {name: array.copy() for name, array in model.run(open_child.example(model.inputs)).items()}


@pytest.mark.parametrize("name", ["float32", "int32", "without_signature", "two_signatures"])
def test_the_gpu_computes_what_the_cpu_computes(folder: Path, on_gpu: dict[str, dict], name: str) -> None:
    assert "error" not in on_gpu[name]
    expected, found = on_cpu(folder / f"{name}.tflite"), np.load(folder / f"{name}.tflite.npz")
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert np.abs(found[key] - array).max() <= 1e-4 * max(1, np.abs(array).max())


def test_int8_is_within_one_step(folder: Path, on_gpu: dict[str, dict]) -> None:
    expected, found = on_cpu(folder / "int8.tflite"), np.load(folder / "int8.tflite.npz")
    for key, array in expected.items():
        assert found[key].dtype == np.int8 and len(np.unique(array)) > 50
        assert np.abs(found[key].astype(int) - array).max() <= 1


def test_a_second_run_gives_the_same(folder: Path, on_gpu: dict[str, dict]) -> None:
    first, again = np.load(folder / "float32.tflite.npz"), np.load(folder / "float32.tflite.again.npz")
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])


def test_all_is_delegated_and_the_adapter_named(on_gpu: dict[str, dict]) -> None:
    for name, nodes in (("float32", 4), ("int8", 4), ("int32", 1)):
        told = on_gpu[name]
        assert (told["nodes"], told["delegated"]["state"], told["delegated"]["left"]) == (nodes, "all", [])
        assert told["delegated"]["adapter"] != "unavailable"
        if "swiftshader" in told["delegated"]["adapter"].lower():
            assert told["delegated"]["software"] is True
            assert "(software)" in told["words"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("five_dimensions", "refuses 3 of 5 nodes: RESHAPE x2 (Tensor dimensions must be less than 5), TILE ("),
        ("through_int64", "convert the model without int64 tensors"),
        ("computed_shape", "gpu needs fixed shapes"),
        ("computed_shape_again", "convert the model with a fixed input shape"),
        ("postprocess", f"give the file without {POSTPROCESS}"),
        ("strided_1x1_int8", "would compute wrong values: the GPU's runtime takes outputs of this file for larger"),
    ],
)
def test_what_a_gpu_cannot_compute_is_an_error_and_no_result(
    folder: Path, on_gpu: dict[str, dict], name: str, words: str
) -> None:
    assert on_gpu[name]["error"] == "BackendError"
    assert words in on_gpu[name]["message"]
    assert not (folder / f"{name}.tflite.npz").exists()
    on_cpu(folder / f"{name}.tflite")  # the file itself is in order


def test_full_precision_computes_the_same_here(folder: Path) -> None:
    path = folder / "float32.tflite"
    told, _ = open_child.opened("gpu:fp32", [path], software_gpu.settings())
    assert told[0]["delegated"]["state"] == "all"
    for key, array in on_cpu(path).items():
        np.testing.assert_allclose(np.load(f"{path}.npz")[key], array, atol=1e-4 * np.abs(array).max())


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_what_the_toolchain_made_is_as_close_to_xnnpack_as_the_runtimes_own_kernels_are(precision: str) -> None:
    variables = software_gpu.settings()
    path = toy_network.converted() / f"{precision}.tflite"
    told, _ = open_child.opened("gpu", [path], variables)
    assert told[0]["delegated"]["state"] == "all"
    expected, other, found = on_cpu(path), on_cpu(path, "cpu-builtin"), np.load(f"{path}.npz")
    # int8 differs by a step where two ways to round do, and carries that on through nine layers.
    bound = 1.0 if precision == "int8" else 1e-4
    for key, array in expected.items():
        size = 1.0 if precision == "int8" else np.abs(array).max()
        apart = np.abs(other[key].astype(float) - array).max()
        assert np.abs(found[key].astype(float) - array).max() <= apart + bound * size


@pytest.mark.parametrize("dtype", ["int64", "int16"])
def test_types_that_have_no_way_in_are_refused_without_a_gpu(dtype: str) -> None:
    with pytest.raises(BackendError, match=f"'image' is {dtype}; convert the model"):
        open_model(sum_of(dtype), "gpu")


def test_a_missing_driver_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sum.tflite"
    path.write_bytes(sum_of("float32"))
    # Vulkan's own words come once a process, ours every time.
    variables = {**software_gpu.settings(), "VK_ICD_FILENAMES": "/nonexistent", "VK_DRIVER_FILES": "/nonexistent"}
    told, _ = open_child.opened("gpu", [path, path], variables)
    assert told[0] == told[1]
    assert told[0]["error"] == "BackendError"
    assert "needs a GPU with a driver, and none was found (vkCreateInstance" in told[0]["message"]
    assert not (tmp_path / "sum.tflite.npz").exists()


def test_a_missing_loader_is_an_error(tmp_path: Path) -> None:
    variables = software_gpu.settings()
    if "LD_LIBRARY_PATH" not in variables:
        pytest.skip("the Vulkan loader is found without a setting of ours, so none hides it")
    path = tmp_path / "sum.tflite"
    path.write_bytes(sum_of("float32"))
    told, _ = open_child.opened("gpu", [path, path], {**variables, "LD_LIBRARY_PATH": ""})
    assert told[0] == told[1]
    assert "needs the Vulkan loader, which this machine lacks" in told[0]["message"]


def without_gpu_library(folder: Path) -> Path:
    """A folder for PYTHONPATH whose ai_edge_litert is the installed one, less the GPU's library."""
    package = folder / "ai_edge_litert"
    package.mkdir()
    for path in Path(ai_edge_litert.__file__).parent.iterdir():
        if "WebGpu" not in path.name:
            os.symlink(path, package / path.name)
    return folder


def test_a_missing_gpu_library_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sum.tflite"
    path.write_bytes(sum_of("float32"))
    variables = {**software_gpu.settings(), "PYTHONPATH": str(without_gpu_library(tmp_path))}
    told, _ = open_child.opened("gpu", [path], variables)
    assert told[0]["error"] == "BackendError"
    assert "needs LiteRT's GPU library" in told[0]["message"]
    assert not (tmp_path / "sum.tflite.npz").exists()
    assert "error" not in open_child.opened("cpu", [path], variables)[0][0]


def test_detect_says_what_computed_and_keeps_the_runtimes_talk_back(tmp_path: Path) -> None:
    variables = software_gpu.settings()
    model = toy_detector.write_toy(tmp_path / "toy.tflite")
    picture = toy_network.write_pictures(tmp_path / "pictures", 1)[0]
    command = ["-m", "deploy", "detect", str(model), "--source", str(picture), "--jsonl", "-"]
    done = open_child.child([*command, "--backend", "gpu"], variables)
    assert done.returncode == 0
    assert done.stderr.startswith("gpu: 5 of 5 nodes on ")
    assert "Accelerator" not in done.stderr and "INFO" not in done.stderr
    found, expected = (json.loads(run.stdout) for run in (done, open_child.child(command)))
    assert [one["label"] for one in found["detections"]] == [one["label"] for one in expected["detections"]]


def test_latency_warns_of_a_software_gpu_and_tells_what_was_delegated(tmp_path: Path) -> None:
    variables = software_gpu.settings()
    model = toy_detector.write_toy(tmp_path / "toy.tflite")
    command = ["-m", "benchmarks", "latency", str(model), "--runs", "2", "--min-secs", "0", "--warmup-min-secs", "0"]
    done = open_child.child([*command, "--backend", "gpu", "--json", "-"], variables)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["delegated_nodes"], result["nodes"], result["delegation"]["state"]) == (5, 5, "all")
    warned = any("its times are no GPU's" in warning for warning in result["warnings"])
    assert warned == (result["delegation"]["software"] is True)
