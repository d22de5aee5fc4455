import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.contract import ROLES, Contract, Input, PostprocessHead, Scale, Tensor, YoloHead
from deploy.decode import decode
from deploy.detections import Detections
from deploy.errors import ContractError

WIDTH, HEIGHT = 96, 64
DEPTH = {"xy": 2, "wh": 2, "objectness": 1}


def make_contract(
    strides: tuple[int, ...] = (32, 16),
    classes: int = 3,
    quantized: tuple[str, float, int] | None = None,
    box: str = "exp",
    class_activation: str = "sigmoid",
    scale_x_y: float = 1.0,
) -> Contract:
    """Two anchors a scale; quantized: dtype, scale and zero point of all outputs."""
    scales, tensors = [], []
    for stride in strides:
        outputs = {role: f"{role}_{stride}" for role in ROLES}
        scales.append(Scale(stride, ((stride * 1.5, stride * 2.0), (stride * 0.5, 7.0)), outputs, scale_x_y))
        for role, name in outputs.items():
            shape = (1, HEIGHT // stride, WIDTH // stride, 2 * DEPTH.get(role, classes))
            tensors.append(Tensor(name, shape, *(quantized or ("float32", 0.0, 0))))
    labels = tuple(f"class {i}" for i in range(classes))
    head = YoloHead(tuple(scales), box, class_activation)
    return Contract("net", labels, Input("image", HEIGHT, WIDTH), head, "float32", tuple(tensors))


def random_outputs(contract: Contract, seed: int = 0, spread: float = 2.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    outputs = {}
    for tensor in contract.tensors:
        logits = rng.normal(0, spread, tensor.shape)
        if tensor.scale:
            limits = np.iinfo(tensor.dtype)
            logits = np.clip(np.rint(logits / tensor.scale) + tensor.zero_point, limits.min, limits.max)
        outputs[tensor.name] = logits.astype(tensor.dtype)
    return outputs


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


Scored = tuple[float, int, tuple[float, ...]]


def reference(outputs: dict[str, np.ndarray], contract: Contract) -> list[Scored]:
    """Every class of every box as (score, class, box): the equations of YoloHead, number by number, in double
    precision."""
    tensors = {tensor.name: tensor for tensor in contract.tensors}
    head, classes, found = contract.head, len(contract.labels), []
    for scale in head.scales:

        def logits(role: str, y: int, x: int, anchor: int, depth: int) -> list[float]:
            name = scale.outputs[role]
            raw = outputs[name][0, y, x, anchor * depth : (anchor + 1) * depth].astype(np.float64)
            tensor = tensors[name]
            return list((raw - tensor.zero_point) * tensor.scale if tensor.scale else raw)

        for y, x, a in np.ndindex(HEIGHT // scale.stride, WIDTH // scale.stride, 2):
            (tx, ty), (tw, th) = logits("xy", y, x, a, 2), logits("wh", y, x, a, 2)
            s, (pw, ph) = scale.scale_x_y, scale.anchors[a]
            cx = (sigmoid(tx) * s - (s - 1) / 2 + x) * scale.stride
            cy = (sigmoid(ty) * s - (s - 1) / 2 + y) * scale.stride
            w = pw * math.exp(tw) if head.box == "exp" else pw * (2 * sigmoid(tw)) ** 2
            h = ph * math.exp(th) if head.box == "exp" else ph * (2 * sigmoid(th)) ** 2
            t = logits("classes", y, x, a, classes)
            total = sum(math.exp(value - max(t)) for value in t)
            for c in range(classes):
                p = sigmoid(t[c]) if head.class_activation == "sigmoid" else math.exp(t[c] - max(t)) / total
                score = sigmoid(logits("objectness", y, x, a, 1)[0]) * p
                found.append((score, c, (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)))
    return found


def assert_equals_reference(found: Detections, expected: list[Scored], conf: float) -> None:
    """The same set in the same order. Scores are float32 products of two values: 8 steps of 2**-24; coordinates have an
    error of some steps of the largest number in their sum, and exp multiplies its argument's."""
    sure = [entry for entry in expected if entry[0] >= conf + 1e-6]
    near = [entry for entry in expected if conf - 1e-6 < entry[0] < conf + 1e-6]
    assert len(sure) <= len(found) <= len(sure) + len(near)
    if near:
        return
    assert found.class_ids.tolist() == [entry[1] for entry in sure]
    np.testing.assert_allclose(found.scores, [entry[0] for entry in sure], rtol=8 * 2.0**-23)
    boxes = np.array([entry[2] for entry in sure]).reshape(-1, 4)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-5, atol=1e-5 * max(1, np.abs(boxes).max(initial=0)))
    assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int32)


HEADS = [
    pytest.param({"class_activation": "softmax"}, id="v2"),
    pytest.param({}, id="v3"),
    pytest.param({"scale_x_y": 1.05}, id="v4"),
    pytest.param({"scale_x_y": 2.0, "box": "scaled"}, id="scaled v4"),
    pytest.param({"classes": 1, "strides": (16,)}, id="one class, one scale"),
]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("quantized", [None, ("int8", 0.0625, 10), ("uint8", 0.1, 120)], ids=["float", "int8", "uint8"])
@pytest.mark.parametrize("conf", [0.0, 0.005, 0.25, 0.9, 1.0])
def test_equals_the_equations(head: dict, quantized: tuple[str, float, int] | None, conf: float) -> None:
    contract = make_contract(quantized=quantized, **head)
    outputs = random_outputs(contract)
    found = decode(outputs, contract, conf)
    assert_equals_reference(found, reference(outputs, contract), conf)
    if conf == 0:
        boxes = sum(tensor.shape[1] * tensor.shape[2] * 2 for tensor in contract.tensors if "xy" in tensor.name)
        assert len(found) == boxes * len(contract.labels)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 2**32),
    st.floats(0, 1),
    st.floats(0.1, 30),
    st.sampled_from([None, ("int8", 0.2, -5)]),
    st.sampled_from(["sigmoid", "softmax"]),
)
def test_any_logits_and_thresholds(
    seed: int, conf: float, spread: float, quantized: tuple | None, activation: str
) -> None:
    contract = make_contract((32,), quantized=quantized, box="scaled", class_activation=activation)
    outputs = random_outputs(contract, seed, spread)
    assert_equals_reference(decode(outputs, contract, conf), reference(outputs, contract), conf)


def one_box(**logits: object) -> tuple[dict[str, np.ndarray], Contract]:
    """Everything off but one box, in row 1, column 2 of stride 32, anchor 1."""
    contract = make_contract((32,))
    outputs = {tensor.name: np.full(tensor.shape, -50, np.float32) for tensor in contract.tensors}
    for role, depth, default in (("xy", 2, 0), ("wh", 2, 0), ("objectness", 1, 9), ("classes", 3, [-9, 9, -9])):
        outputs[f"{role}_32"][0, 1, 2, depth : 2 * depth] = logits.get(role, default)
    return outputs, contract


def test_cell_and_anchor_are_told_from_the_place() -> None:
    found = decode(*one_box(), 0.5)
    # Centre of cell (2, 1) of 32 pixels, anchor 1 is 16 x 7.
    x, y = (2 + 0.5) * 32, (1 + 0.5) * 32
    assert found.boxes.tolist() == [[x - 8, y - 3.5, x + 8, y + 3.5]]
    assert found.class_ids.tolist() == [1]
    assert found.scores[0] == pytest.approx(sigmoid(9) ** 2, rel=1e-6)


def test_a_box_can_have_several_classes() -> None:
    found = decode(*one_box(classes=[9, -9, 8]), 0.5)
    assert found.class_ids.tolist() == [0, 2]
    assert found.boxes[0].tolist() == found.boxes[1].tolist()


def test_the_threshold_is_inclusive() -> None:
    # sigmoid(0) * sigmoid(100) is 0.5 exactly, also in float32.
    outputs, contract = one_box(objectness=0, classes=[-9, 100, -9])
    assert len(decode(outputs, contract, 0.5)) == 1
    assert len(decode(outputs, contract, 0.5000001)) == 0
    outputs, contract = one_box(objectness=100, classes=[-9, 100, -9])
    assert len(decode(outputs, contract, 1.0)) == 1


@pytest.mark.parametrize("quantized", [("int8", 0.25, 4), ("uint8", 0.25, 132)])
def test_the_threshold_is_inclusive_in_quantized_units(quantized: tuple[str, float, int]) -> None:
    # Logits 0 and 24: scores of 0.5 within a step of float32.
    contract = make_contract((32,), quantized=quantized)
    least = np.iinfo(quantized[0]).min
    outputs = {tensor.name: np.full(tensor.shape, least, quantized[0]) for tensor in contract.tensors}
    outputs["objectness_32"][0, 1, 2, 1] = quantized[2]
    outputs["classes_32"][0, 1, 2, 3] = quantized[2] + 24 * 4
    assert len(decode(outputs, contract, 0.499999)) == 1
    assert len(decode(outputs, contract, 0.500001)) == 0


@pytest.mark.parametrize("tw", [20.0, 100.0, 3e38, np.inf])
def test_huge_widths_are_finite_and_cover_everything(tw: float) -> None:
    outputs, contract = one_box(wh=tw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes = decode(outputs, contract, 0.5).boxes
    assert np.isfinite(boxes).all()
    assert (boxes[:, :2] < -WIDTH).all() and (boxes[:, 2:] > 2 * WIDTH).all()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert np.isfinite(areas).all()


@pytest.mark.parametrize("box", ["exp", "scaled"])
def test_tiny_widths_have_no_area_and_do_not_warn(box: str) -> None:
    outputs, contract = one_box(wh=-np.inf)
    contract = dataclasses.replace(contract, head=dataclasses.replace(contract.head, box=box))
    found = decode(outputs, contract, 0.5)
    assert (found.boxes[:, :2] == found.boxes[:, 2:]).all()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_nan_gives_no_detection_and_no_warning(role: str, activation: str) -> None:
    outputs, contract = one_box(**{role: np.nan})
    contract = dataclasses.replace(contract, head=dataclasses.replace(contract.head, class_activation=activation))
    for conf in (0.0, 0.5):
        found = decode(outputs, contract, conf)
        assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()
    assert len(found) == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38, -3e38])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_no_logit_warns_or_gives_what_is_not_finite(value: float, activation: str) -> None:
    contract = make_contract((32,), class_activation=activation)
    outputs = {tensor.name: np.full(tensor.shape, value, np.float32) for tensor in contract.tensors}
    found = decode(outputs, contract, 0.0)
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()


def test_nothing_found_has_the_right_shapes() -> None:
    contract = make_contract()
    outputs = {tensor.name: np.full(tensor.shape, -50, np.float32) for tensor in contract.tensors}
    found = decode(outputs, contract, 0.5)
    assert (found.boxes.shape, found.scores.shape, found.class_ids.shape) == ((0, 4), (0,), (0,))
    assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int32)


FINISHED = Contract("ssd", ("cat", "dog"), Input("image", 50, 100), PostprocessHead("b", "c", "s", "n"), "int8")


def finished(count: object, classes: object = (1, 0, 1), scores: object = (0.5, 0.4, 0.9)) -> dict[str, np.ndarray]:
    boxes = np.array([[[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1], [0.2, 0.2, 0.4, 0.4]]], np.float32)
    arrays = (boxes, np.float32([classes]), np.float32([scores]), np.float32([count]))
    return dict(zip("bcsn", arrays, strict=True))


def test_finished_boxes_come_in_pixels() -> None:
    found = decode(finished(2), FINISHED, 0.4)
    np.testing.assert_allclose(found.boxes, [[20, 5, 60, 25], [0, 0, 100, 50]], rtol=1e-6)
    assert found.class_ids.tolist() == [1, 0]
    assert found.scores.tolist() == np.float32([0.5, 0.4]).tolist()


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (3, 3), (1000, 3), (-5, 0), (np.nan, 0), (np.inf, 3)])
def test_only_rows_up_to_the_count_are_read(count: float, expected: int) -> None:
    assert len(decode(finished(count), FINISHED, 0.1)) == expected


def test_rows_past_the_count_may_hold_anything() -> None:
    outputs = finished(1, (0, 1e30, np.nan), (0.5, 1e30, np.nan))
    outputs["b"][0, 1:] = np.nan
    assert len(decode(outputs, FINISHED, 0.1)) == 1
    outputs["n"][0] = 3
    assert len(decode(outputs, FINISHED, 0.1)) == 1


@pytest.mark.parametrize("class_id", [2, -1, 1e30])
def test_a_class_without_a_label_is_refused(class_id: float) -> None:
    with pytest.raises(ContractError, match="names 2 classes, but detected class"):
        decode(finished(3, (0, class_id, 0)), FINISHED, 0.1)
