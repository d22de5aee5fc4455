import math

import numpy as np
import pytest

from deploy.contract import ROLES, Contract, Input, Scale, Tensor, YoloHead
from deploy.decode import decode

tf = pytest.importorskip("tensorflow")

from toolchain.loss import LossWeights, assign, boxes_of, ciou_loss, grid, take_apart, yolo_loss  # noqa: E402

#: The whole loss is a sum of some hundred float32 terms of about 1; the reference is float64.
SUM_TOLERANCE = 1e-5
CLASSES = 3
HEIGHT, WIDTH = 64, 96


def make_head(box: str = "exp", activation: str = "sigmoid", scale_x_y: float = 1.05) -> YoloHead:
    big = Scale(32, ((40.0, 30.0), (60.0, 60.0)), {"raw": "big"}, scale_x_y)
    small = Scale(16, ((10.0, 14.0), (20.0, 16.0), (24.0, 40.0)), {"raw": "small"}, scale_x_y)
    return YoloHead((big, small), box, activation)


def random_raw(head: YoloHead, batch: int, seed: int, spread: float = 1.5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [(batch, HEIGHT // s.stride, WIDTH // s.stride, len(s.anchors) * (5 + CLASSES)) for s in head.scales]
    return [rng.normal(0, spread, shape).astype(np.float32) for shape in shapes]


def random_truth(batch: int, seed: int, most: int = 4) -> np.ndarray:
    """Boxes inside the picture, of different numbers, the last picture's none."""
    rng = np.random.default_rng(seed)
    truth = np.full((batch, most, 5), -1, np.float32)
    for row in range(batch - 1):
        for index in range(rng.integers(1, most + 1)):
            size = rng.uniform(4, 60, 2)
            corner = rng.uniform(0, [WIDTH, HEIGHT] - size)
            truth[row, index] = (*corner, *(corner + size), rng.integers(CLASSES))
    return truth


def sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.float64(value)))


def cross_entropy(logit: float, wanted: float) -> float:
    return float(max(logit, 0) - logit * wanted + math.log1p(math.exp(-abs(logit))))


def iou_of(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - inter)


def ciou_reference(one: np.ndarray, other: np.ndarray) -> float:
    """Zheng et al. 2020, equations 8 to 11, one pair in plain float64."""
    one, other = np.float64(one), np.float64(other)
    iou = iou_of(one, other)
    around = np.maximum(one[2:], other[2:]) - np.minimum(one[:2], other[:2])
    apart = (one[:2] + one[2:]) / 2 - (other[:2] + other[2:]) / 2
    angles = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (one, other)]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (1 - iou + v) if v else 0.0
    return 1 - iou + (apart @ apart) / (around @ around) + alpha * v


def decoded(head: YoloHead, scale: Scale, raw: np.ndarray) -> np.ndarray:
    """Boxes (h, w, A, 4) of one picture's raw tensor (h, w, A*(5+C)), by YoloHead's formulas in float64."""
    height, width, _ = raw.shape
    values = np.float64(raw).reshape(height, width, len(scale.anchors), 5 + CLASSES)
    cells = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)[:, :, None]
    widen = scale.scale_x_y
    center = (sigmoid(values[..., :2]) * widen - (widen - 1) / 2 + cells) * scale.stride
    size = np.exp(values[..., 2:4]) if head.box == "exp" else (2 * sigmoid(values[..., 2:4])) ** 2
    half = size * scale.anchors / 2
    return np.concatenate([center - half, center + half], axis=-1)


def boxes_in(head: YoloHead, scale: Scale, raw: np.ndarray) -> np.ndarray:
    """Boxes (batch, h*w*A, 4) as the loss decodes them."""
    places = grid(raw, scale)
    values = take_apart(tf.constant(raw), scale).values
    return np.asarray(boxes_of(values, places.cells, places.anchors, head, scale))


def loss_reference(head: YoloHead, truth: np.ndarray, outputs: list[np.ndarray], weights: LossWeights) -> float:
    """The same loss, one picture, cell and truth after the other."""
    anchors = [anchor for scale in head.scales for anchor in scale.anchors]
    total = 0.0
    for row, rows in enumerate(truth):
        real = [np.float64(box) for box in rows if box[4] >= 0]
        given: list[list[int]] = []
        for box in real:
            size = box[2:4] - box[:2]
            fits = [iou_of(np.array([0, 0, *size]), np.array([0, 0, *anchor])) for anchor in anchors]
            given.append([k for k, fit in enumerate(fits) if fit > weights.anchor_iou or k == int(np.argmax(fits))])
        first = 0
        for scale, output in zip(head.scales, outputs):
            count = len(scale.anchors)
            boxes = decoded(head, scale, output[row])
            values = output[row].reshape(*boxes.shape[:3], 5 + CLASSES)
            objects = set()
            for box, chosen in zip(real, given):
                column, line = (int((box[axis] + box[axis + 2]) / 2 // scale.stride) for axis in (0, 1))
                for anchor in (k - first for k in chosen if first <= k < first + count):
                    objects.add((line, column, anchor))
                    total += weights.box * ciou_reference(boxes[line, column, anchor], box[:4])
                    logits = np.float64(values[line, column, anchor, 5:])
                    if head.class_activation == "softmax":
                        total += weights.classes * (np.log(np.exp(logits).sum()) - logits[int(box[4])])
                    else:
                        wanted = np.eye(CLASSES)[int(box[4])]
                        total += weights.classes * sum(cross_entropy(*pair) for pair in zip(logits, wanted))
            for place in np.ndindex(*boxes.shape[:3]):
                overlap = max((iou_of(boxes[place], box) for box in real), default=0.0)
                if place in objects or overlap <= weights.ignore_iou:
                    total += weights.objectness * cross_entropy(float(values[(*place, 4)]), float(place in objects))
            first += count
    return total / len(truth)


@pytest.mark.parametrize("box", ["exp", "scaled"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_loss_is_the_sum_over_cells_and_truths(box: str, activation: str) -> None:
    head = make_head(box, activation)
    outputs, truth = random_raw(head, 3, seed=1), random_truth(3, seed=2)
    weights = LossWeights(box=0.7, objectness=1.3, classes=0.9, ignore_iou=0.3)
    found = float(yolo_loss(head, tf.constant(truth), [tf.constant(raw) for raw in outputs], weights))
    assert found == pytest.approx(loss_reference(head, truth, outputs, weights), rel=SUM_TOLERANCE)


@pytest.mark.parametrize("box", ["exp", "scaled"])
def test_the_ignore_threshold_matters_in_that_comparison(box: str) -> None:
    head = make_head(box)
    outputs, truth = random_raw(head, 3, seed=1), random_truth(3, seed=2)
    strict, lax = (loss_reference(head, truth, outputs, LossWeights(ignore_iou=iou)) for iou in (0.3, 1.0))
    assert strict < lax - 0.01


@pytest.mark.parametrize("box", ["exp", "scaled"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_boxes_and_scores_are_those_that_the_device_decodes(box: str, activation: str) -> None:
    head = make_head(box, activation, scale_x_y=1.1)
    for scale, raw in zip(head.scales, random_raw(head, 1, seed=3)):
        count, shape = len(scale.anchors), raw.shape[:3]
        values = raw.reshape(*shape, count, 5 + CLASSES)
        columns = {"xy": slice(0, 2), "wh": slice(2, 4), "objectness": slice(4, 5), "classes": slice(5, None)}
        outputs = {role: np.ascontiguousarray(values[..., columns[role]]).reshape(*shape, -1) for role in ROLES}
        split = Scale(scale.stride, scale.anchors, {role: role for role in ROLES}, 1.1)
        tensors = tuple(Tensor(role, outputs[role].shape, "float32") for role in ROLES)
        labels = tuple("abc"[:CLASSES])
        device_head = YoloHead((split,), box, activation)
        contract = Contract("net", labels, Input("image", HEIGHT, WIDTH), device_head, "float32", tensors)
        expected = decode(outputs, contract, 0.0)

        found = take_apart(tf.constant(raw), scale)
        chances = tf.nn.softmax(found.classes) if activation == "softmax" else tf.sigmoid(found.classes)
        scores = (tf.sigmoid(found.objectness)[..., None] * chances).numpy().reshape(-1)
        boxes = np.repeat(boxes_in(head, scale, raw).reshape(-1, 4), CLASSES, axis=0)
        assert len(expected.scores) == len(scores) == np.prod(shape) * count * CLASSES
        # Some float32 operations on coordinates of up to 1000 pixels, and on scores below 1.
        np.testing.assert_allclose(boxes, expected.boxes, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(scores, expected.scores, rtol=1e-5, atol=1e-6)


def test_ciou_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 50, (2, 200, 2)), rng.uniform(1, 60, (2, 200, 2))
    boxes, truth = np.concatenate([corner, corner + size], axis=2).astype(np.float32)
    expected = [ciou_reference(*pair) for pair in zip(boxes, truth)]
    found = ciou_loss(tf.constant(boxes), tf.constant(truth)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_ciou_by_hand() -> None:
    boxes = tf.constant([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], tf.float32)
    truth = tf.constant([[0, 0, 10, 10], [20, 0, 30, 10], [5, 0, 15, 10]], tf.float32)
    expected = [0, 1 + 20**2 / (30**2 + 10**2), 1 - 50 / 150 + 5**2 / (15**2 + 10**2)]
    np.testing.assert_allclose(ciou_loss(boxes, truth).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_aspects_weight_is_a_constant_to_the_gradient() -> None:
    boxes, truth = tf.constant([[0.0, 0, 20, 10]]), tf.constant([[0.0, 0, 10, 20]])
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        loss = ciou_loss(boxes, truth)
    found = tape.gradient(loss, boxes).numpy()[0, 2]
    # d/dw of 1 - IoU (inter 100, union 300, + 10 a pixel of width), of apart/diagonal² and of α·v with α held.
    iou, v = 1 / 3, 4 / math.pi**2 * (math.atan(2) - math.atan(0.5)) ** 2
    slope_iou = 100 * 10 / 300**2
    slope_apart = (2 * 5 * 0.5 * 800 - 50 * 2 * 20) / 800**2
    slope_v = 8 / math.pi**2 * (math.atan(2) - math.atan(0.5)) * 10 / (20**2 + 10**2)
    assert found == pytest.approx(slope_iou + slope_apart + v / (1 - iou + v) * slope_v, rel=1e-4)


def test_a_truth_goes_to_its_best_anchor_and_all_that_fit_well() -> None:
    head = make_head()
    truth = np.full((1, 4, 5), -1, np.float32)
    truth[0, 0] = (5, 5, 15, 19, 0)  # 10x14: small's first exactly; 140/320 of the second, 140/960 of the third
    truth[0, 1] = (0, 0, 96, 2, 1)  # 96x2 fits none; 2*60/(192+3600-120) = .033 is less than 2*20/(192+320-40) = .085
    truth[0, 2] = (0, 0, 60, 60, 2)  # 60x60: big's second; 1200/3600 of its first, 960/3600 of small's third
    big, small = assign(head, tf.constant(truth), 0.213)
    assert big.numpy()[0].tolist() == [[False, False], [False, False], [True, True], [False, False]]
    assert small.numpy()[0].tolist() == [[True, True, False], [False, True, False], [False, False, True], [False] * 3]


@pytest.mark.parametrize("most", [1, 3])
def test_a_picture_without_objects_is_all_background(most: int) -> None:
    head = make_head()
    outputs = random_raw(head, 2, seed=4)
    truth = tf.fill((2, most, 5), -1.0)
    found = float(yolo_loss(head, truth, [tf.constant(raw) for raw in outputs], LossWeights()))
    logits = np.concatenate([raw.reshape(-1, 5 + CLASSES)[:, 4] for raw in outputs]).astype(np.float64)
    assert found == pytest.approx(np.log1p(np.exp(logits)).sum() / 2, rel=SUM_TOLERANCE)


@pytest.mark.parametrize("box", ["exp", "scaled"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("logit", [-1e4, -90.0, 0.0, 90.0, 1e4])
def test_loss_and_gradient_are_finite_at_extremes(box: str, activation: str, logit: float) -> None:
    head = make_head(box, activation)
    truth = np.full((2, 4, 5), -1, np.float32)
    # Everything, nothing, nothing in the last corner, a line.
    truth[0] = [(0, 0, 96, 64, 0), (30, 30, 30, 30, 1), (96, 64, 96, 64, 2), (10, 10, 10, 40, 0)]
    outputs = [tf.Variable(np.full_like(raw, logit)) for raw in random_raw(head, 2, seed=0)]
    with tf.GradientTape() as tape:
        loss = yolo_loss(head, tf.constant(truth), [tf.convert_to_tensor(raw) for raw in outputs], LossWeights())
    assert math.isfinite(float(loss))
    assert all(np.isfinite(gradient.numpy()).all() for gradient in tape.gradient(loss, outputs))


def test_gradient_descent_on_the_logits_alone_finds_the_truth() -> None:
    head = make_head()
    truth = random_truth(2, seed=6, most=1)
    outputs = [tf.Variable(raw * 0.1) for raw in random_raw(head, 2, seed=7)]
    optimizer = tf.keras.optimizers.Adam(0.2)
    optimizer.build(outputs)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = yolo_loss(head, tf.constant(truth), [tf.convert_to_tensor(raw) for raw in outputs], LossWeights())
        optimizer.apply_gradients(zip(tape.gradient(loss, outputs), outputs))

    for _ in range(150):
        step()
    best = []
    for scale, raw in zip(head.scales, outputs):
        found = take_apart(tf.convert_to_tensor(raw), scale)
        chances = tf.sigmoid(found.objectness)[..., None] * tf.sigmoid(found.classes)
        for box, label in np.argwhere(chances[0].numpy() > 0.8):
            best.append((boxes_in(head, scale, raw.numpy())[0, box], label))
    assert best
    assert all(iou_of(box, truth[0, 0]) > 0.9 and label == truth[0, 0, 4] for box, label in best)
