import math

import numpy as np
import pytest

from deploy.contract import Scale, YoloHead

tf = pytest.importorskip("tensorflow")

from toolchain.distillation import FEATURES, attention_loss, feature_loss, objective, output_loss  # noqa: E402
from toolchain.graph import Graph, Node  # noqa: E402
from toolchain.loss import LossWeights, yolo_loss  # noqa: E402
from toolchain.training import Training  # noqa: E402

CLASSES, ANCHORS, ROWS, COLUMNS = 3, 2, 2, 3
SHAPE = (2, ROWS, COLUMNS, ANCHORS * (5 + CLASSES))


def make_head(box: str = "exp", activation: str = "sigmoid") -> YoloHead:
    return YoloHead((Scale(16, ((10.0, 14.0), (24.0, 20.0)), {"raw": "out"}, 1.05),), box, activation)


def raw(seed: int, spread: float = 1.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, SHAPE).astype(np.float32)


def divergence(teacher: float, student: float) -> float:
    p, q = (1 / (1 + math.exp(-logit)) for logit in (teacher, student))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def box_of(head: YoloHead, values: np.ndarray, row: int, column: int, anchor: int) -> np.ndarray:
    """By YoloHead's formulas, one box."""
    scale = head.scales[0]
    x, y, w, h = (float(value) for value in values[:4])
    center = [
        (1 / (1 + math.exp(-t)) * scale.scale_x_y - (scale.scale_x_y - 1) / 2 + cell) * scale.stride
        for t, cell in ((x, column), (y, row))
    ]
    size = [
        side * (math.exp(t) if head.box == "exp" else (2 / (1 + math.exp(-t))) ** 2)
        for t, side in zip((w, h), scale.anchors[anchor])
    ]
    low, high = ([c + sign * s / 2 for c, s in zip(center, size)] for sign in (-1, 1))
    return np.array([*low, *high], np.float32)


def shape_of(box: np.ndarray) -> tuple[float, float, float, float]:
    """Centre, width and height."""
    x1, y1, x2, y2 = (float(side) for side in box)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


@pytest.mark.parametrize("box", ["exp", "scaled"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_the_loss_is_the_sum_over_boxes_of_what_the_text_says(box: str, activation: str) -> None:
    head, student, teacher = make_head(box, activation), raw(1), raw(2)
    total = 0.0
    for picture, row, column, anchor in np.ndindex(2, ROWS, COLUMNS, ANCHORS):
        mine, theirs = (
            values[picture, row, column].reshape(ANCHORS, 5 + CLASSES)[anchor] for values in (student, teacher)
        )
        believed = 1 / (1 + math.exp(-theirs[4]))
        (x, y, w, h), (u, v, p, q) = (shape_of(box_of(head, values, row, column, anchor)) for values in (mine, theirs))
        apart = ((x - u) / p, (y - v) / q, math.log(w / p), math.log(h / q))
        learned = sum(math.sqrt(1 + d**2) - 1 for d in apart)
        if activation == "sigmoid":
            learned += sum(divergence(t, s) for t, s in zip(theirs[5:], mine[5:]))
        else:
            p, q = (np.exp(values[5:]) / np.exp(values[5:]).sum() for values in (theirs, mine))
            learned += float((p * np.log(p / q)).sum())
        total += divergence(theirs[4], mine[4]) + believed * learned
    found = float(output_loss(head, [tf.constant(student)], [tf.constant(teacher)]))
    # A sum of some hundred float32 terms.
    assert found == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_student_that_agrees_has_nothing_to_learn(activation: str) -> None:
    head, outputs = make_head(activation=activation), tf.Variable(raw(3))
    with tf.GradientTape() as tape:
        loss = output_loss(head, [tf.convert_to_tensor(outputs)], [tf.constant(raw(3))])
    assert float(loss) == pytest.approx(0, abs=1e-4)
    # Each is the difference of two equal numbers of at most some 100 pixels over 10, with float32's 24 bits.
    assert np.abs(tape.gradient(loss, outputs).numpy()).max() < 1e-5


def test_the_teacher_gets_no_gradient() -> None:
    teacher = tf.Variable(raw(4))
    with tf.GradientTape() as tape:
        loss = output_loss(make_head(), [tf.constant(raw(5))], [tf.convert_to_tensor(teacher)])
    assert tape.gradient(loss, teacher) is None


@pytest.mark.parametrize("logit", [-1e4, -90.0, 90.0, 1e4])
def test_loss_and_gradient_are_finite_at_extremes(logit: float) -> None:
    outputs = tf.Variable(np.full(SHAPE, logit, np.float32))
    with tf.GradientTape() as tape:
        loss = output_loss(make_head(), [tf.convert_to_tensor(outputs)], [tf.constant(raw(6))])
    assert math.isfinite(float(loss))
    assert np.isfinite(tape.gradient(loss, outputs).numpy()).all()


def test_attention_compares_where_and_not_how_much() -> None:
    features = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    # Ten times as strong, and every channel twice: the same places are active.
    assert float(attention_loss(10 * features, np.tile(features, 2))) == pytest.approx(0, abs=1e-6)
    one, other = np.zeros((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2, 3), np.float32)
    one[0, 0, 0], other[0, 1, 1] = 3, 1
    # Two unit vectors at right angles: |(1, 0) - (0, 1)|² = 2.
    assert float(attention_loss(one, other)) == pytest.approx(2)


def test_layers_with_the_teachers_channels_are_compared_value_by_value() -> None:
    teacher = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    assert float(feature_loss(teacher, teacher)) == 0
    # Nothing is all of it missing; half as strong, a quarter.
    assert float(feature_loss(np.zeros_like(teacher), teacher)) == pytest.approx(1)
    assert float(feature_loss(teacher / 2, teacher)) == pytest.approx(1 / 4)
    # The other channels, equally active: attention sees no difference, the values do.
    assert float(attention_loss(teacher[..., ::-1], teacher)) == pytest.approx(0, abs=1e-6)
    assert float(feature_loss(teacher[..., ::-1], teacher)) > 1
    fewer = teacher[..., :3]
    assert float(feature_loss(fewer, teacher)) == float(attention_loss(fewer, teacher))


def test_labels_and_teacher_are_added_by_weight() -> None:
    head = make_head()
    node = Node("out", "InputLayer", (), {"shape": SHAPE[1:]})
    graph = Graph("net", (node,), ("out",), head=head, labels=("a", "b", "c"))
    truth = np.array([[[5, 5, 20, 25, 1]], [[-1] * 5]], np.float32)
    student, teacher = tf.constant(raw(7)), tf.constant(raw(8))
    labels = float(yolo_loss(head, truth, [student], LossWeights()))
    taught = float(output_loss(head, [student], [teacher]))
    inner = tf.constant(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2))
    seen = FEATURES * float(feature_loss(inner, inner[:, ::-1]))

    def loss(training: Training, mine: list[tf.Tensor], theirs: list[tf.Tensor] | None) -> float:
        return float(objective(graph, training)(truth, mine, theirs))

    assert loss(Training(), [student], None) == pytest.approx(labels)
    assert loss(Training(labels=False, distill=0.5), [student], [teacher]) == pytest.approx(0.5 * taught)
    both = loss(Training(distill=2.0), [student, inner], [teacher, inner[:, ::-1]])
    assert both == pytest.approx(labels + 2 * (taught + seen), rel=1e-5)
