"""What a compressed network learns from the one that it was made of, on pictures alone.

The teacher's outputs are the truth, all of them, each as much as the teacher believes in it (Mehta and Ozturk 2018,
Object detection at 200 frames per second, equations 4 to 6: objectness scales what is learned of boxes and classes).
With p the teacher's probabilities, q the student's and o the teacher's objectness, of every box of a picture

    L = D(o ‖ q_o) + o · (Σ_d (√(1 + d²) - 1) + Σ_c D(p_c ‖ q_c))        D: Kullback-Leibler divergence

which is 0, and flat, where the two agree; an IoU has a cusp there, and its gradient never rests. The four d are how far
a box is from the teacher's: its centre's distance over the teacher's width and height, and the logarithms of the two
sizes' ratios (Girshick et al. 2014, Rich feature hierarchies, appendix C, with the teacher's box as the proposal).
Inner layers with the teacher's channels, as behind a pruning of what lies within blocks, are compared value by value
(Romero et al. 2015, FitNets: hints for thin deep nets, equation 3, without a regressor), as a share of what the teacher
computes there: |s - t|²/|t|². Others are compared by where they are active, whatever their number of channels
(Zagoruyko and Komodakis 2017, Paying more attention to attention, equation 2): with A the mean over the channels of the
squared activations, as a vector,  | A_s/|A_s| - A_t/|A_t| |².

Only the process that trains imports this module: it needs Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keras import ops

from deploy.contract import Scale, YoloHead
from toolchain.graph import Graph
from toolchain.loss import LossWeights, Tensor, boxes_of, cross_entropy, grid, take_apart, yolo_loss
from toolchain.training import Training

#: In pixels: a box that the scaled encoding makes narrower than any object.
_LEAST_SIDE = 1e-3
#: Of a vector's length, against division by 0.
_TINY = 1e-12

#: How much a layer's comparison, which is 1 where a layer computes nothing, counts beside the outputs' loss, a sum over
#: a picture's boxes that a network in use leaves some tens of.
FEATURES = 3.0

#: (truth, the student's outputs, the teacher's or None) to a scalar. Outputs are lists, the graph's raw ones first and
#: those of the compared layers behind.
Objective = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor] | None], Tensor]


def objective(graph: Graph, training: Training) -> Objective:
    """What a training makes small: the YOLO loss where it learns from labels, and distillation by its weight."""
    head = graph.head
    assert head is not None
    order = [graph.outputs.index(scale.outputs["raw"]) for scale in head.scales]
    raw = len(graph.outputs)

    def loss(truth: Tensor, outputs: Sequence[Tensor], teacher: Sequence[Tensor] | None) -> Tensor:
        total = ops.zeros(())
        if training.labels:
            total += yolo_loss(head, truth, [outputs[index] for index in order], LossWeights())
        if training.distill:
            assert teacher is not None
            learned = output_loss(head, [outputs[index] for index in order], [teacher[index] for index in order])
            for mine, theirs in zip(outputs[raw:], teacher[raw:], strict=True):
                learned += FEATURES * feature_loss(mine, theirs)
            total += training.distill * learned
        return total

    return loss


def output_loss(head: YoloHead, outputs: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """L above, the sum over a picture's boxes averaged over the pictures, a scalar. Both: raw tensors in the order of
    head.scales."""
    total = ops.zeros(())
    for scale, mine, theirs in zip(head.scales, outputs, teacher, strict=True):
        total += ops.mean(_scale_loss(head, scale, mine, ops.stop_gradient(theirs)))
    return total


def _scale_loss(head: YoloHead, scale: Scale, outputs: Tensor, teacher: Tensor) -> Tensor:
    places = grid(outputs, scale)
    mine, theirs = take_apart(outputs, scale), take_apart(teacher, scale)
    objectness = ops.sigmoid(theirs.objectness)
    boxes, wanted = (
        boxes_of(prediction.values, places.cells, places.anchors, head, scale) for prediction in (mine, theirs)
    )
    if head.class_activation == "softmax":
        probabilities = ops.softmax(theirs.classes)
        logarithms = ops.log_softmax(theirs.classes) - ops.log_softmax(mine.classes)
        classes = ops.sum(probabilities * logarithms, axis=-1)
    else:
        classes = ops.sum(_divergence(theirs.classes, mine.classes), axis=-1)
    learned = objectness * (_box_loss(boxes, wanted) + classes)
    return ops.sum(_divergence(theirs.objectness, mine.objectness) + learned, axis=1)


def _box_loss(boxes: Tensor, teacher: Tensor) -> Tensor:
    """Of every pair of boxes (…, 4) as x1, y1, x2, y2 the sum of √(1 + d²) - 1."""
    size, wanted = (ops.maximum(one[..., 2:] - one[..., :2], _LEAST_SIDE) for one in (boxes, teacher))
    apart = (boxes[..., 2:] + boxes[..., :2] - teacher[..., 2:] - teacher[..., :2]) / 2 / wanted
    ratio = ops.log(size / wanted)
    return ops.sum(ops.sqrt(1 + ops.square(apart)) + ops.sqrt(1 + ops.square(ratio)) - 2, axis=-1)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Of every pair of logits the divergence of the probabilities, D(σ(teacher) ‖ σ(student))."""
    wanted = ops.sigmoid(teacher)
    return cross_entropy(wanted, student) - cross_entropy(wanted, teacher)


def feature_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """Of two layers' outputs (batch, h, w, channels): a scalar, 0 where they are equal."""
    if features.shape[-1] != teacher.shape[-1]:
        return attention_loss(features, teacher)
    mine, theirs = (ops.cast(one, "float32") for one in (features, ops.stop_gradient(teacher)))
    wrong, whole = (ops.sum(ops.square(one), axis=(1, 2, 3)) for one in (mine - theirs, theirs))
    return ops.mean(wrong) / (ops.mean(whole) + _TINY)


def attention_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """Of two layers' outputs (batch, h, w, channels), whose channels may differ in number: a scalar, 0 to 4."""
    mine, theirs = _attention(features), _attention(ops.stop_gradient(teacher))
    return ops.mean(ops.sum(ops.square(mine - theirs), axis=1))


def _attention(features: Tensor) -> Tensor:
    area = features.shape[1] * features.shape[2]
    flat = ops.reshape(ops.mean(ops.square(ops.cast(features, "float32")), axis=-1), (-1, area))
    return flat / ops.sqrt(ops.sum(ops.square(flat), axis=1, keepdims=True) + _TINY)
