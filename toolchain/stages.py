"""What each stage of a build does: one plain function of its settings and inputs that writes files and returns facts.

The table of all stages, and the order in which they follow each other, is in build.py; those that train are in
training_stages.py. A stage knows nothing but its Work, whose settings and inputs are exactly what its result is kept
under (cache.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.errors import InputError
from deploy.source import locate
from toolchain.graph import Graph
from toolchain.pass_report import to_json
from toolchain.stage_work import KEPT, SCENES, Facts, Work, save

TFLITE = "model.tflite"
REFERENCE = "reference.npz"
SAMPLE = "sample.jpg"
#: Seed of the pictures that stand in for real ones where none are given.
_DRAWN_SEED = 20_240_229
#: Pictures in the sample, side by side.
_SAMPLE_PICTURES = 3
_SAMPLE_HEIGHT = 480


def load(work: Work) -> Facts:
    """Reads the model into a graph, or builds it. Settings and inputs: read_model's."""
    graph, notes = read_model(work.settings, {name: work.path(name) for name in work.inputs})
    return {**save(graph, work.out), "notes": list(notes)}


def read_model(settings: Mapping[str, Any], files: Mapping[str, Path]) -> tuple[Graph, tuple[str, ...]]:
    """The network of a recipe, and what must be known of it. settings: resize, allow_lambda, seed, and yolov4, the
    recipe's Yolov4. files: cfg, weights, names; or keras, head; or for yolov4 weights, where there are any."""
    if settings["yolov4"]:
        return _yolov4(settings, files.get("weights"))
    from toolchain.one_file import Origin, read_origin

    origin = Origin(
        files.get("keras") or files["cfg"],
        files.get("weights"),
        files.get("names"),
        files.get("head"),
        settings["resize"],
        settings["allow_lambda"],
    )
    return read_origin(origin, seed=settings["seed"]), ()


def _yolov4(settings: Mapping[str, Any], weights: Path | None) -> tuple[Graph, tuple[str, ...]]:
    from toolchain.yolov4 import YoloV4, build_yolov4

    given = {key: value for key, value in settings["yolov4"].items() if value is not None}
    given |= {key: tuple(given[key]) for key in ("labels", "size")}
    if "anchors" in given:
        given["anchors"] = tuple((width, height) for width, height in given["anchors"])
    graph, notes = build_yolov4(YoloV4(**given), seed=settings["seed"], weights=weights)
    assert graph.input is not None
    return dataclasses.replace(graph, input=dataclasses.replace(graph.input, resize=settings["resize"])), notes


def scenes(work: Work) -> Facts:
    """Draws scenes in VOC layout. Settings: splits, seed, size."""
    from toolchain.scenes import write_scenes

    splits = work.settings["splits"]
    write_scenes(work.out / SCENES, splits=splits, seed=work.settings["seed"], size=work.settings["size"])
    return {"pictures": splits}


def tucker(work: Work) -> Facts:
    """Splits convolutions. Settings: the recipe's Tucker, weighted decided. Inputs: graph and, where it is weighted or
    corrected, pictures."""
    from toolchain.activations import patch_moments
    from toolchain.batch_norm_correction import corrected_batch_norms
    from toolchain.ranks import Ranks
    from toolchain.scope import select
    from toolchain.tucker import candidates, decompose

    settings, graph, pictures = work.settings, work.graph(), work.paths("pictures")
    chosen = select(graph, settings["include"], settings["exclude"])
    rule: dict[str, Any] = dict(settings["ranks"])
    # JSON has lists where the dataclass has tuples.
    rule["layers"] = {name: (first, last) for name, (first, last) in rule["layers"].items()}
    rule["v"] = rule["v"] and tuple(rule["v"])
    ranks = Ranks(**rule)
    keywords: dict[str, Any] = {"pointwise": settings["pointwise"], "timer": _timer(work)}
    trust = settings["allow_lambda"]
    if settings["weighted"]:
        layers = candidates(graph, chosen, settings["pointwise"], ranks.layers)
        looked = patch_moments(graph, layers, pictures, seed=settings["seed"], allow_lambda=trust)
        with looked as moments:
            result = decompose(graph, chosen, ranks, moments=moments, progress=work.progress, **keywords)
    else:
        result = decompose(graph, chosen, ranks, progress=work.progress, **keywords)
    changed = result.graph
    if settings["correct"]:
        changed = corrected_batch_norms(graph, changed, pictures, allow_lambda=trust, progress=work.progress)
    return {**save(changed, work.out), **to_json(result)}


def prune(work: Work) -> Facts:
    """Removes channels. Settings: the recipe's Prune, correct decided. Inputs: graph and, where it is corrected or
    chosen by pictures, pictures."""
    from toolchain import activations
    from toolchain.batch_norm_correction import write_kept
    from toolchain.channels import analyse
    from toolchain.criteria import scored_nodes
    from toolchain.least_squares_correction import Statistics, folded
    from toolchain.prune import Pruning
    from toolchain.prune import prune as prune_channels
    from toolchain.reconstruction import measured_sources
    from toolchain.scope import select

    settings, graph, pictures = work.settings, work.graph(), work.paths("pictures")
    chosen = select(graph, settings["include"], settings["exclude"])
    keys = ("ratio", "flops", "criterion", "cut", "policy", "multiple")
    pruning = Pruning(**{key: settings[key] for key in keys})
    trust = settings["allow_lambda"]
    channels = analyse(graph, chosen)

    def means(nodes: Sequence[str]) -> Mapping[str, np.ndarray]:
        return activations.channel_means(graph, nodes, pictures, allow_lambda=trust)

    taylor = None
    if pruning.ratio is not None and pruning.criterion == "taylor":
        nodes = scored_nodes(graph, [layer for group in channels.groups for layer in group.layers])
        wanted = list(nodes.values())
        scores = activations.taylor_scores(graph, wanted, pictures, seed=settings["seed"], allow_lambda=trust)
        taylor = {layer: scores[node] for layer, node in nodes.items()}

    correct, told = settings["correct"], work.progress
    made = functools.partial(prune_channels, graph, chosen, pruning, timer=_timer(work))
    if pruning.flops is not None:
        sources = measured_sources(graph, channels)
        moments = activations.channel_moments(
            graph, sources, pictures, seed=settings["seed"], allow_lambda=trust, progress=told
        )

        def mean_of(nodes: Sequence[str]) -> Mapping[str, np.ndarray]:
            return {name: moments[name].mean for name in nodes}

        def statistics(layer: str) -> Statistics:
            found = moments[graph.by_name[layer].inputs[0]]
            return found.mean, found.covariance

        result = made(moments=moments, means=mean_of if correct else None)
        # Batch norms stay: their statistics are those of all places, and these corrections are right where detections
        # are made. MobileNetV2-YOLOv3-Nano-voc with 0.8 of its FLOPs has 59.1 mAP so, and 54.1 with them put right too.
        changed = folded(graph, result.graph, result.kept, statistics) if correct else result.graph
    else:
        result = made(taylor=taylor, means=means if correct else None)
        changed = result.graph
        if correct:
            changed = _corrected(work, graph, changed, result.kept, pictures)
    write_kept(work.out / KEPT, graph, result.kept)
    return {**save(changed, work.out), **to_json(result)}


def _corrected(
    work: Work, before: Graph, after: Graph, kept: Mapping[str, np.ndarray], pictures: Sequence[Path]
) -> Graph:
    """The pruned network, its biases corrected, with the removed channels folded in and its batch norms put right."""
    from toolchain import activations
    from toolchain.batch_norm_correction import corrected_batch_norms
    from toolchain.least_squares_correction import folded, of_channels, readers

    trust = work.settings["allow_lambda"]
    layers = readers(before, kept)
    looked = activations.patch_moments(before, layers, pictures, seed=work.settings["seed"], allow_lambda=trust)
    with looked as moments:
        channels = {name: before.by_name[name].weights["kernel"].shape[2] for name in layers}
        after = folded(before, after, kept, lambda name: of_channels(moments(name), channels[name]))
    return corrected_batch_norms(before, after, pictures, kept=kept, allow_lambda=trust, progress=work.progress)


def _timer(work: Work) -> Callable[..., Mapping[str, tuple[float, float]]] | None:
    """What times single layers where the stage keeps only what is faster."""
    precision = work.settings["keep_if_faster"]
    if precision is None:
        return None
    from toolchain.layer_timing import time_candidates

    return functools.partial(time_candidates, precision=precision, progress=work.progress)


def pictures(work: Work) -> Facts:
    """Draws pictures to verify on where the recipe names none. Settings: count, size."""
    draw_pictures(work.out, work.settings["count"], work.settings["size"])
    return {}


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures right in a folder, sorted by name. Raises InputError where there is none, or no folder."""
    found = locate(str(folder))
    if found.kind != "folder":
        raise InputError(f"pictures come from a folder, but {folder} is a {found.kind}; name the folder")
    return found.files


def draw_pictures(folder: Path, count: int, size: int) -> tuple[Path, ...]:
    """Draws pictures, size x size, that stand in for real ones; always the same. Returns their paths."""
    import cv2

    from toolchain.scenes import draw_scene

    for index in range(count):
        picture, _, _ = draw_scene((_DRAWN_SEED,), index, size)
        (folder / f"{index:04d}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return tuple(sorted(folder.glob("*.png")))


def convert(work: Work) -> Facts:
    """Makes the float32 .tflite, and what the model itself computes on the verification's pictures. Settings:
    allow_lambda. Inputs: graph, pictures."""
    from toolchain.convert import convert as convert_graph

    graph = work.graph()
    made = convert_graph(
        graph,
        "float32",
        work.out / TFLITE,
        pictures=work.paths("pictures"),
        reference=work.out / REFERENCE,
        allow_lambda=work.settings["allow_lambda"],
    )
    return {"notes": list(made.notes)}


def quantize(work: Work) -> Facts:
    """Derives another precision from the float32 file. Settings: precision, allow_lambda and, for int8, quantize.Int8
    as int8. Inputs: graph, float32, pictures to calibrate on, and validation to measure int8_mixed on."""
    from toolchain.convert import convert as convert_graph
    from toolchain.quantize import Int8

    graph = work.graph()
    made = convert_graph(
        graph,
        work.settings["precision"],
        work.out / TFLITE,
        pictures=work.paths("pictures"),
        validation=work.paths("validation"),
        int8=Int8(**work.settings.get("int8", {})),
        float_file=work.file("float32", TFLITE),
        allow_lambda=work.settings["allow_lambda"],
        progress=work.progress,
    )
    return {"notes": list(made.notes), "calibration": dataclasses.asdict(made.calibration)}


def verify(work: Work) -> Facts:
    """Holds a file against the model. Settings: precision. Inputs: graph, tflite, reference, pictures (which
    reference is about)."""
    from toolchain import verify as verification
    from toolchain.package import contract_of

    graph = work.graph()
    content = work.file("tflite", TFLITE).read_bytes()
    contract = contract_of(graph, content, work.settings["precision"])
    reference = work.file("reference", REFERENCE)
    return verification.to_json(verification.verify(graph, content, contract, reference=reference))


def package(work: Work) -> Facts:
    """Puts the contract into the file. Settings: file, precision, lineage, measured. Inputs: graph, tflite."""
    from toolchain.package import package as package_file

    settings = work.settings
    graph = work.graph()
    destination = work.out / settings["file"]
    package_file(
        work.file("tflite", TFLITE),
        graph,
        settings["precision"],
        destination,
        lineage=settings["lineage"],
        measured=settings["measured"],
    )
    return {"bytes": destination.stat().st_size}


def compare(work: Work) -> Facts:
    """Compares a quantized file with the float32 one, layer by layer. Settings: scaled, whether its channels were.
    Inputs: graph, tflite, float32, pictures."""
    from toolchain.file_comparison import compare_files

    tflite, float32 = (work.file(name, TFLITE) for name in ("tflite", "float32"))
    found = compare_files(
        tflite, float32, work.paths("pictures"), work.progress, input=work.graph().input, scaled=work.settings["scaled"]
    )
    # Where the cache keeps the files is no part of the result.
    return {key: value for key, value in found.items() if key not in ("file", "against")}


def decode(work: Work) -> Facts:
    """Makes of a packaged file one that another program opens. Settings: file, source, client. Inputs: packaged."""
    from toolchain.decoded_file import write_decoded

    settings = work.settings
    destination = work.out / settings["file"]
    notes = write_decoded(work.file("packaged", settings["source"]), settings["client"], destination)
    return {"bytes": destination.stat().st_size, "notes": list(notes)}


def benchmark(work: Work) -> Facts:
    """Measures a packaged file. Settings: the recipe's Benchmark and file. Inputs: model and, where there is data,
    data or scenes."""
    from benchmarks.accuracy import measure_accuracy
    from benchmarks.latency import measure_latency

    settings = work.settings
    model = work.file("model", settings["file"])
    threads = settings["threads"]
    data = work.path("data") if "data" in work.inputs else None
    if "scenes" in work.inputs:
        data = work.file("scenes", SCENES)
    latency = measure_latency(
        model, threads=threads, runs=settings["runs"], min_secs=settings["min_secs"], progress=work.progress
    )
    facts = {"latency": latency}
    if data is not None:
        split, protocol = settings["split"], settings["protocol"]
        accuracy = measure_accuracy(model, data, split, protocol, threads=threads, progress=work.progress)
        facts["accuracy"] = accuracy
        _draw_sample(model, data, split, work.out / SAMPLE)
    return facts


def _draw_sample(model: Path, data: Path, split: str, destination: Path) -> None:
    """The split's first pictures with the model's boxes, side by side, equally high."""
    import cv2

    from benchmarks.dataset import read_dataset
    from deploy.detector import Detector
    from deploy.draw import captions, draw
    from deploy.picture import read_picture

    detector = Detector(model)
    written = captions(detector.contract.labels)
    drawn = []
    for picture in read_dataset(data, split).pictures[:_SAMPLE_PICTURES]:
        try:
            pixels = read_picture(picture.path)
        except InputError:
            continue  # the accuracy's facts name it
        # Drawn after scaling, so that lines and letters are equally large in all.
        height, width = pixels.shape[:2]
        size = (max(1, round(width * _SAMPLE_HEIGHT / height)), _SAMPLE_HEIGHT)
        scaled = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        found = detector.detect(pixels)
        boxes = found.boxes * np.array([size[0] / width, size[1] / height] * 2, np.float32)
        draw(scaled, dataclasses.replace(found, boxes=boxes), written)
        drawn.append(scaled)
    if drawn:
        destination.write_bytes(cv2.imencode(".jpg", np.hstack(drawn), (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes())


def report(work: Work) -> Facts:
    """Writes report.json, report.md and report.html. Settings: the report's content. Inputs: the benchmark whose
    sample is shown."""
    from toolchain.report import write_report

    write_report(work.settings, work.file("sample", SAMPLE) if "sample" in work.inputs else None, work.out)
    return {}
