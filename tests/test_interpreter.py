import dataclasses
import gc

import numpy as np
import pytest
import tiny_tflite
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from deploy.backend import CPU_BACKENDS
from deploy.contract import PostprocessHead, Tensor
from deploy.delegated import Delegated, Left
from deploy.errors import BackendError, ContractError, InputError
from deploy.interpreter import Model, check

BODY, CONTRACT = tiny_tflite.yolo()
BODY8, CONTRACT8 = tiny_tflite.yolo("int8")


def dots(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((1, tiny_tflite.HEIGHT, tiny_tflite.WIDTH, 3), np.float32)


def test_tensors_stand_under_their_signature_names() -> None:
    model = Model(BODY8)
    assert model.inputs == CONTRACT8.tensors[:1]
    assert set(model.outputs) == set(CONTRACT8.tensors[1:])


def test_without_a_signature_they_stand_under_their_own() -> None:
    content, _ = tiny_tflite.yolo(signatures=())
    model = Model(content)
    assert [tensor.name for tensor in model.inputs] == ["serving_default_image:0"]
    assert sorted(tensor.name for tensor in model.outputs) == [
        f"StatefulPartitionedCall:{role}" for role in ("classes", "objectness", "wh", "xy")
    ]


def test_of_several_signatures_the_default_one_is_run() -> None:
    Model(tiny_tflite.yolo(signatures=("other", "serving_default"))[0])
    Model(tiny_tflite.yolo(signatures=("only",))[0])
    with pytest.raises(InputError, match="'serving_default' is run, but this file has one, two"):
        Model(tiny_tflite.yolo(signatures=("one", "two"))[0])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_backend_computes_the_network(backend: str, threads: int) -> None:
    picture = dots(0)
    outputs = Model(BODY, backend, threads).run({"image": picture})
    red, blue = picture[0, ::16, ::16, 0], picture[0, ::16, ::16, 2]
    # Logits of at most 18, in float32: a few steps of 2**-23 * 18 = 2e-6.
    np.testing.assert_allclose(outputs["objectness_16"][0, ..., 1], 12 * red + 12 * blue - 6, atol=1e-5)
    np.testing.assert_allclose(outputs["classes_16"][0, ..., 3], 8 * blue - 4, atol=1e-5)


@pytest.mark.parametrize("body", [BODY, BODY8])
def test_outputs_are_the_ones_of_the_plain_interpreter(body: bytes) -> None:
    picture = dots(1)
    if body is BODY8:
        picture = np.rint(picture * 255 - 128).astype(np.int8)
    plain = Interpreter(model_content=body)
    outputs = plain.get_signature_runner("serving_default")(image=picture)
    ours = Model(body).run({"image": picture})
    assert ours.keys() == outputs.keys()
    for name, array in ours.items():
        assert array.dtype == outputs[name].dtype
        np.testing.assert_array_equal(array, outputs[name])


def test_held_outputs_do_not_block_the_next_run_and_show_it() -> None:
    model = Model(BODY)
    held = model.run({"image": dots(2)})
    first = {name: array.copy() for name, array in held.items()}
    again = model.run({"image": dots(3)})
    for name, array in again.items():
        np.testing.assert_array_equal(array, held[name])
    assert (first["objectness_16"] != again["objectness_16"]).any()


def test_outputs_outlive_the_model() -> None:
    model = Model(BODY)
    held = model.run({"image": dots(4)})
    copies = {name: array.copy() for name, array in held.items()}
    del model
    gc.collect()
    others = [Model(BODY).run({"image": dots(seed)}) for seed in range(5)]
    assert len(others) == 5
    for name, array in held.items():
        np.testing.assert_array_equal(array, copies[name])


def test_outputs_are_read_only() -> None:
    outputs = Model(BODY).run({"image": dots(5)})
    with pytest.raises(ValueError, match="read-only"):
        outputs["xy_16"][...] = 0


def test_an_output_that_moves_in_memory_is_copied() -> None:
    # RESHAPE to a shape that is itself computed: its memory is there only after a run, and another in each.
    builder = tiny_tflite.Builder()
    source = builder.tensor("image", (1, 2, 2, 3))
    half = builder.tensor("half", (2,), "int32", data=[1, 3])
    shape, output = builder.tensor("shape", (2,), "int32"), builder.tensor("output", (2, 6))
    builder.operation("ADD", [half, half], [shape], schema.AddOptionsT())
    builder.operation("RESHAPE", [source, shape], [output], schema.ReshapeOptionsT())
    model = Model(builder.finish({"image": source}, {"output": output}), "cpu-builtin")
    ones = model.run({"image": np.ones((1, 2, 2, 3), np.float32)})["output"]
    twos = model.run({"image": np.full((1, 2, 2, 3), 2, np.float32)})["output"]
    np.testing.assert_array_equal(ones, np.ones((2, 12 // 2), np.float32))
    np.testing.assert_array_equal(twos, np.full((2, 12 // 2), 2, np.float32))


def test_wrong_inputs_are_refused_by_name_shape_and_dtype() -> None:
    model = Model(BODY)
    with pytest.raises(InputError, match="the file reads image"):
        model.run({})
    with pytest.raises(InputError, match="'image' is float32 .*, not nothing"):
        model.run({"picture": dots(0)})
    with pytest.raises(InputError, match=r"not float64 \(1, 32, 64, 3\)"):
        model.run({"image": dots(0).astype(np.float64)})
    with pytest.raises(InputError, match=r"not float32 \(32, 64, 3\)"):
        model.run({"image": dots(0)[0]})


def test_delegated_counts_what_xnnpack_took() -> None:
    assert Model(BODY).delegated == Model(BODY8).delegated == Delegated(4, 4)
    assert Model(BODY, "cpu-builtin").delegated == Delegated(0, 4, (Left("CONV_2D", 4),))
    # DEQUANTIZE of uint8 and RESHAPE; the custom operation stays.
    delegated = Model(tiny_tflite.postprocess()).delegated
    assert delegated.total == 3 and 1 <= delegated.nodes <= 2
    assert "TFLite_Detection_PostProcess" in [left.op for left in delegated.left]


def test_outputs_of_an_operation_come_in_its_order() -> None:
    model = Model(tiny_tflite.postprocess())
    name = "TFLite_Detection_PostProcess"
    assert model.outputs_of(name) == [(name, f"{name}:1", f"{name}:2", f"{name}:3")]
    assert model.outputs_of("CONV_2D") == []
    assert model.outputs_of("RESHAPE") == [("",)]


@pytest.mark.parametrize("backend", ["", "CPU", "xnnpack", "cpu "])
def test_unknown_backends_are_refused(backend: str) -> None:
    with pytest.raises(BackendError, match="a backend is one of cpu, cpu-builtin, cpu-reference"):
        Model(BODY, backend)


def test_what_an_npu_would_need_is_said() -> None:
    with pytest.raises(BackendError, match="npu needs a chip with its maker's runtime and compiler"):
        Model(BODY, "npu")


def test_the_interpreter_never_stands_in_for_a_gpu() -> None:
    with pytest.raises(BackendError, match="the interpreter has no backend gpu"):
        Model(BODY, "gpu")


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_threads_out_of_range_are_refused(threads: int) -> None:
    with pytest.raises(InputError, match="from 1 to 256"):
        Model(BODY, threads=threads)


def test_damaged_content_is_refused() -> None:
    for content in (b"", BODY[:4], b"\0" * 100):
        with pytest.raises(InputError, match="TFL3"):
            Model(content)
    for content in (BODY[:8], BODY[:-200], BODY[: len(BODY) // 2]):
        with pytest.raises(InputError, match="damaged or cut short"):
            Model(content)


def test_tensor_names_that_are_no_text_are_refused() -> None:
    content = tiny_tflite.postprocess()
    name = Model(content).inputs[0].name.encode()
    with pytest.raises(InputError, match="a tensor's name is no text"):
        Model(content.replace(name, b"\xff" * len(name))).outputs_of("TFLite_Detection_PostProcess")


def test_an_operation_that_the_runtime_lacks_is_named() -> None:
    with pytest.raises(BackendError, match="FlexSomething"):
        Model(tiny_tflite.postprocess(operation="FlexSomething"))


@pytest.mark.parametrize(("body", "contract"), [(BODY, CONTRACT), (BODY8, CONTRACT8)])
def test_a_contract_of_the_file_is_accepted(body: bytes, contract: tiny_tflite.Contract) -> None:
    check(Model(body), contract)


def changed(index: int, **changes: object) -> tiny_tflite.Contract:
    tensors = list(CONTRACT8.tensors)
    tensors[index] = dataclasses.replace(tensors[index], **changes)
    return dataclasses.replace(CONTRACT8, tensors=tuple(tensors))


@pytest.mark.parametrize(
    ("index", "changes", "name"),
    [
        (0, {"shape": (1, 64, 32, 3)}, "image"),
        (0, {"dtype": "uint8"}, "image"),
        (0, {"scale": 0.0039}, "image"),
        (0, {"zero_point": 0}, "image"),
        (1, {"shape": (1, 2, 4, 6)}, "xy_16"),
        (3, {"scale": 0.2}, "objectness_16"),
        (4, {"name": "scores_16"}, "classes_16"),
    ],
)
def test_metadata_that_contradicts_a_tensor_is_refused_by_its_name(index: int, changes: dict, name: str) -> None:
    with pytest.raises(ContractError, match=f"tensor '{name}' is"):
        check(Model(BODY8), changed(index, **changes))


def test_missing_and_additional_tensors_are_refused() -> None:
    model = Model(BODY8)
    with pytest.raises(ContractError, match="the metadata says missing"):
        check(model, dataclasses.replace(CONTRACT8, tensors=CONTRACT8.tensors[:-1]))
    with pytest.raises(ContractError, match="'more' is missing"):
        check(model, dataclasses.replace(CONTRACT8, tensors=(*CONTRACT8.tensors, Tensor("more", (1,), "int8"))))


def test_a_head_or_input_that_does_not_fit_the_tensors_is_refused() -> None:
    model, head = Model(BODY), CONTRACT.head
    scale = head.scales[0]

    def refusal(**changes: object) -> str:
        with pytest.raises(ContractError) as caught:
            check(model, dataclasses.replace(CONTRACT, **changes))
        return str(caught.value)

    def with_scale(**changes: object) -> object:
        return dataclasses.replace(head, scales=(dataclasses.replace(scale, **changes),))

    assert "'classes_16'" in refusal(labels=("red", "green", "blue"))
    assert "'xy_16'" in refusal(head=with_scale(anchors=scale.anchors[:1]))
    assert "'xy_16'" in refusal(head=with_scale(stride=8))
    assert "stride 15" in refusal(head=with_scale(stride=15))
    assert "'nowhere'" in refusal(head=with_scale(outputs={**scale.outputs, "wh": "nowhere"}))
    assert "its input 'image'" in refusal(input=dataclasses.replace(CONTRACT.input, height=64))
    assert "its input 'picture'" in refusal(input=dataclasses.replace(CONTRACT.input, name="picture"))
    assert "'xy_16'" in refusal(head=PostprocessHead("xy_16", "wh_16", "objectness_16", "classes_16"))


def test_a_file_with_two_inputs_is_no_detector() -> None:
    builder = tiny_tflite.Builder()
    inputs = {name: builder.tensor(name, (1, 2, 2, 3)) for name in ("a", "b")}
    output = builder.tensor("sum", (1, 2, 2, 3))
    builder.operation("ADD", list(inputs.values()), [output], schema.AddOptionsT())
    model = Model(builder.finish(inputs, {"sum": output}))
    with pytest.raises(ContractError, match="2 inputs"):
        check(model, dataclasses.replace(CONTRACT, tensors=(*model.inputs, *model.outputs)))
