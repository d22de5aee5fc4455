"""A recipe: what to build of which model, as strict data.

A recipe is YAML. It is checked whole before anything runs: an unknown key is refused with its line and the nearest
known name, so that a typo never becomes a default; so is a combination that cannot work. Paths in it are relative to
its own folder; those of a recipe that the package carries, to the current one.

    name: voc-yolo-fastest
    model: {cfg: net.cfg, weights: net.weights, names: voc.names}
    input: {resize: stretch}
    precisions: [float32, int8]
    calibration: {pictures: calibration200/JPEGImages, count: 64}
    benchmark: {data: test991, split: test, protocol: darknet}
    package: {for: mediapipe}
"""

from __future__ import annotations

import hashlib
import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from deploy.contract import Client, Precision
from deploy.errors import InputError
from deploy.strict_yaml import Places, read_yaml
from toolchain.carried import built_in_networks, carried_recipes
from toolchain.nearest import nearest
from toolchain.recipe_checks import check_stages
from toolchain.recipe_data import Data, Split
from toolchain.recipe_settings import Impossible, Seed, Settings
from toolchain.recipe_stages import GraphStage


class Yolov4(Settings):
    """YOLOv4 on an EfficientNet, built here."""

    backbone: Literal["efficientnet-b0", "efficientnet-b1", "efficientnet-b2", "efficientnet-b3"] = "efficientnet-b1"
    head: Literal["full", "lite"] = "full"
    """lite has depthwise convolutions in place of the dense 3x3 ones."""
    labels: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...], Field(min_length=1)]
    """The classes' names."""
    size: tuple[Annotated[int, Field(ge=32, le=4096)], Annotated[int, Field(ge=32, le=4096)]] = (512, 512)
    """(height, width) of the input in pixels."""
    anchors: tuple[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], ...] | None = None
    """(width, height) in pixels of the input, small to large, equally many for each of three scales; YOLOv4's nine
    where it is left out."""


class Model(Settings):
    """The trained detector: darknet's cfg, weights and names; or a Keras file and its head; or a built-in network."""

    cfg: Path | None = None
    """darknet's network description."""
    weights: Path | None = None
    """darknet's weights; with yolov4, an .h5 of the whole network or of its backbone."""
    names: Path | None = None
    """One class name a line."""
    keras: Path | None = None
    """A .keras or legacy .h5 file."""
    head: Path | None = None
    """HEAD.yaml: what the Keras model's outputs mean."""
    yolov4: Yolov4 | None = None
    """YOLOv4 on an EfficientNet, with random weights or those of a Keras weights file."""
    allow_lambda: bool = False
    """Run the Python code that a Keras file carries. Only for files that you trust."""
    built_in: str | None = None
    """A network that this package carries. It begins with random weights."""
    seed: Seed = 1
    """Of a built-in network's random weights."""

    @model_validator(mode="after")
    def _one_kind(self) -> Model:
        given = [key for key in ("cfg", "keras", "built_in", "yolov4") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a model is one of cfg, keras, built_in or yolov4, but {' and '.join(given) or 'none'} came; give"
                " exactly one"
            )
        (kind,) = given
        keys = {"cfg": ("weights", "names"), "keras": ("head",)}.get(kind, ())
        for key in keys:
            if getattr(self, key) is None:
                raise ValueError(f"a model with {kind} needs {key!r} too; add it")
        more = {"keras": ["allow_lambda"], "built_in": ["seed"], "yolov4": ["seed", "weights"]}
        belong = {kind, *keys, *more.get(kind, [])}
        for key in sorted(self.model_fields_set - belong):
            raise ValueError(
                f"a model with {kind} takes no {key!r} (it belongs to another kind of model); leave it out"
            )
        return self


class InputSettings(Settings):
    """How a picture comes to the network's size."""

    resize: Literal["letterbox", "stretch"] | None = None
    """letterbox keeps the picture's proportions; stretch is what darknet does, and its published figures need. Without
    it: letterbox, or what HEAD.yaml says."""


class Calibration(Settings):
    """Pictures whose ranges fix the int8 scales. Never test pictures."""

    pictures: Path | None = None
    """A folder; those of data that are trained on where it is left out."""
    count: Annotated[int, Field(ge=1, le=10_000)] = 64
    """How many of them: of labelled data spread over the classes, else evenly spaced over all in their order."""
    ranges: Literal["mean", "minmax", "moving_average", "percentile", "mse"] = "mean"
    """Which range int8 lays over a tensor's values: from the mean least to the mean greatest of a picture; the least
    and the greatest of all; their moving averages; all but 0.005 % at each end; or that of the least squared error."""


class Int8(Settings):
    """How the int8 files are made."""

    equalize: bool = True
    """Bring the channels of every tensor to one size first, which changes nothing in float."""
    float_io: bool = False
    """Inputs and outputs are float32, and the file converts by itself; without it they are int8."""
    max_map_loss: Annotated[float, Field(ge=0, le=1)] | None = None
    """Adds the file NAME_int8_mixed.tflite: int8 with the fewest layers in float that loses no more mAP than this
    (0.005 is half a point)."""


class Verify(Settings):
    """Pictures on which every file is compared with the model it was made of."""

    pictures: Path | None = None
    """A folder; the calibration's where it is left out, else generated pictures."""
    count: Annotated[int, Field(ge=1, le=1000)] = 8


class Benchmark(Settings):
    """Latency of every file and, where there is data, its mAP."""

    data: Path | None = None
    """A folder in the layout of VOC, COCO or YOLO; the drawn scenes where it is left out."""
    split: Split | None = "test"
    """null: all pictures that the folder has."""
    protocol: Literal["voc07", "voc", "darknet", "coco"] = "voc"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    runs: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Least number of timed runs."""
    min_secs: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Least time of the timed runs together."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Package(Settings):
    """Beside each file, ones that other people's programs open: with decoding and suppression inside."""

    clients: Annotated[
        tuple[Client, ...],
        BeforeValidator(_as_tuple, json_schema_input_type=Client | tuple[Client, ...]),
        Field(min_length=1, alias="for"),
    ]
    """mediapipe: MediaPipe Tasks' ObjectDetector; task-library: TensorFlow Lite's Task Library; or a list of them."""


class Recipe(Settings):
    """What to build of which model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Names the files: NAME_int8.tflite."""
    model: Model
    input: InputSettings = InputSettings()
    data: Data | None = None
    stages: Annotated[tuple[GraphStage, ...], Field(max_length=100)] = ()
    """What is done to the network before it is converted, in this order."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("float32", "int8")
    """One file is made for each."""
    calibration: Calibration | None = None
    int8: Int8 = Int8()
    verify: Verify = Verify()
    benchmark: Benchmark = Benchmark()
    package: Package | None = None

    @property
    def clients(self) -> tuple[Client, ...]:
        """Whose programs get files of their own."""
        return self.package.clients if self.package else ()

    @property
    def all_precisions(self) -> tuple[Precision, ...]:
        """Of the files that are made."""
        mixed = self.int8.max_map_loss is not None and "int8_mixed" not in self.precisions
        return (*self.precisions, "int8_mixed") if mixed else self.precisions

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if len(set(self.precisions)) < len(self.precisions):
            raise Impossible(
                ("precisions",),
                f"each precision is listed once, but precisions is {list(self.precisions)}; remove the repeated one",
            )
        if len(set(self.clients)) < len(self.clients):
            raise Impossible(
                ("package", "for"),
                f"each program is listed once, but for is {list(self.clients)}; remove the repeated one",
            )
        if self.clients and self.input.resize != "stretch":
            raise Impossible(
                ("package",),
                f"{' and '.join(self.clients)} stretch pictures to the network's size, and never put them between grey "
                "bars; add `input: {resize: stretch}`, which a network that was trained with bars pays for, or leave "
                "package out",
            )
        pictures = self.calibration.pictures if self.calibration else None
        if any(precision.startswith("int8") for precision in self.all_precisions) and not (pictures or self.data):
            raise Impossible(
                ("precisions",),
                "int8 needs pictures to calibrate on, and the recipe names none; add `calibration: {pictures: "
                "FOLDER}` or leave int8 out",
            )
        if self.calibration and not (pictures or self.data):
            raise Impossible(
                ("calibration",), "calibration needs `pictures`, or `data` whose pictures it can take; add one of them"
            )
        check_stages(self.stages, self.data, pictures=bool(pictures or self.data))
        scenes = self.data is not None and self.data.scenes is not None
        if self.benchmark.data is None and not scenes:
            for key in sorted({"split", "protocol"} & self.benchmark.model_fields_set):
                raise Impossible(
                    ("benchmark", key),
                    f"benchmark's {key!r} needs pictures with truths; add `data: FOLDER` to benchmark or leave "
                    f"{key} out",
                )
        if scenes and self.benchmark.data is None and self.benchmark.split != "test":
            raise Impossible(
                ("benchmark", "split"),
                f"the drawn scenes are measured on the split test, not {self.benchmark.split!r}; leave split out",
            )
        return self


class RecipeFile(Settings):
    """A recipe, its paths made absolute, and where it came from."""

    recipe: Recipe
    path: Path
    sha256: str


def read_recipe(path_or_name: str, folder: Path | None = None) -> RecipeFile:
    """Reads a recipe file, or the carried recipe of that name.

    Relative paths in it start in folder; without it in the recipe's own, those of a carried one in the current folder.

    Raises InputError with file, line and column for anything that is not a recipe, and for a built-in network that
    there is not. Whether the files that it names exist is found out by the stage that reads them.
    """
    path = Path(path_or_name)
    carried = carried_recipes()
    start = folder or path.parent
    if not path.is_file():
        if path_or_name not in carried:
            raise InputError(
                f"a recipe is a file or the name of a carried one ({', '.join(carried) or 'none'}): "
                f"there is no file {path_or_name!r}{nearest(path_or_name, list(carried))}"
            )
        path, start = carried[path_or_name], folder or Path.cwd()
    content, value, places = read_yaml(path, "recipe", "`slimdet build --schema`")
    recipe = _validate(value, path, places)
    if recipe.model.built_in is not None and recipe.model.built_in not in built_in_networks():
        networks = list(built_in_networks())
        raise InputError(
            f"{places.text(path, ('model', 'built_in'))}: there is no built-in network {recipe.model.built_in!r}"
            f"{nearest(recipe.model.built_in, networks)}; there is {', '.join(networks) or 'none'}"
        )
    return RecipeFile(
        recipe=_absolute(recipe, start.absolute()), path=path, sha256=hashlib.sha256(content).hexdigest()
    )


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema (draft 2020-12), for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _validate(value: Any, path: Path, places: Places) -> Recipe:
    try:
        # JSON's rules, not Python's: exact types, but lists become tuples and strings paths.
        return Recipe.model_validate_json(json.dumps(value))
    except ValidationError as error:
        problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: places.line_and_column(_place(problem)))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise InputError(f"{places.text(path, _place(first))}: {_sentence(first)}{more}")


def _place(problem: Any) -> tuple[str | int, ...]:
    cause = problem.get("ctx", {}).get("error")
    return (*problem["loc"], *(cause.place if isinstance(cause, Impossible) else ()))


def _sentence(problem: Any) -> str:
    """One of pydantic's errors in words."""
    *parents, last = problem["loc"] or ("recipe",)
    where = f"in {_dotted(parents)}" if parents else "in a recipe"
    match problem["type"]:
        case "extra_forbidden":
            known = _keys_at(tuple(parents))
            near = nearest(str(last), known) or f"; known keys are {', '.join(known)}"
            return f"unknown key {str(last)!r} {where}{near}"
        case "missing":
            return f"the key {str(last)!r} is missing {where}; add it"
        case "value_error":
            return str(problem["ctx"]["error"])
    text = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{_dotted(problem['loc'])}: {text}, but {repr(problem['input'])[:80]} came; change it"


def _dotted(place: Any) -> str:
    return ".".join(str(part) for part in place) or "the recipe"


def _keys_at(place: tuple[str | int, ...]) -> list[str]:
    """The keys of the part of a recipe that stands at that place."""
    model: type[BaseModel] = Recipe
    for part in place:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation)
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel]:
    """The settings class inside `X`, `X | None` or `tuple[X, ...]`."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    for inner in get_args(annotation):
        if inner not in (None, type(None), ...):
            return _model_in(inner)
    raise TypeError(f"{annotation} holds no settings")


def _absolute(settings: Any, folder: Path) -> Any:
    """The same settings with every path in them made absolute; relative ones start in the recipe's folder."""
    if isinstance(settings, Path):
        return folder / settings
    if isinstance(settings, tuple):
        return tuple(_absolute(item, folder) for item in settings)
    if isinstance(settings, Settings):
        return settings.model_copy(
            update={key: _absolute(getattr(settings, key), folder) for key in settings.model_fields_set}
        )
    return settings
