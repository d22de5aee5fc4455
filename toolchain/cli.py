"""The program `slimdet`: build, convert and inspect of this side, bench and detect of the device's.

Nothing of the build side is imported before a command needs it, so the program starts at once and works on a device
that has none of it.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from benchmarks.cli import bench
from benchmarks.device_command import with_devices
from deploy.cli import detect
from deploy.command_line import debug_option, json_option, refuse_to_overwrite, write_atomically, write_json
from deploy.contract import CLIENTS, PRECISIONS, Client
from deploy.errors import InputError
from toolchain.carried import carried_recipes

if TYPE_CHECKING:
    from toolchain.jobs import Watch

_BUILD_SIDE = ("tensorflow", "litert_quantizer", "pydantic", "yaml", "rich", "jinja2")
#: A job that takes longer is named while it runs.
_QUIET_SECONDS = 2.0
#: Where lines are not overwritten: how a job goes on is told after the first of these times, then each time after the
#: second.
_FIRST_SECONDS, _NEXT_SECONDS = 5.0, 10.0
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        try:
            version = metadata.version("slimdet")
        except metadata.PackageNotFoundError:
            version = "(run from a checkout that is not installed)"
        click.echo(f"slimdet {version}")
        context.exit()


version_option = click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)


def _need(command: str, modules: tuple[str, ...] = _BUILD_SIDE) -> None:
    """Raises InputError, one sentence, where the device side alone is installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"`slimdet {command}` belongs to the build side, which is not installed here ({', '.join(missing)} "
            "missing): "
            "pip install 'slimdet[build]'"
        )


@click.group()
@version_option
@debug_option
def slimdet() -> None:
    """Turns a trained detector into a verified, measured .tflite, and runs it.

    \b
    Example:
      slimdet build shapes --out out
      slimdet detect out/shapes_int8.tflite --source photos --out seen
    """


slimdet.add_command(bench)
slimdet.add_command(with_devices(detect, "deploy", None))


def _show_schema(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        _need("build --schema", ("pydantic", "yaml"))
        from toolchain.recipe import json_schema

        click.echo(json.dumps(json_schema(), indent=2))
        context.exit()


@slimdet.command(no_args_is_help=True)
@click.argument("recipe", metavar="RECIPE")
@click.option("--out", metavar="DIR", type=_FOLDER, required=True, help="Receives the files and the report.")
@click.option(
    "--skip", metavar="STAGE", multiple=True,
    help="Leave a stage out: one of the recipe's list, verify, compare or benchmark. May be repeated.",
)
@click.option(
    "--use-best", is_flag=True,
    help="Go on with no training that was begun: package the best that it has reached. A later build goes on with it.",
)  # fmt: skip
@click.option(
    "--from", "folder", metavar="DIR", type=_FOLDER,
    help="Where the recipe's relative paths start. Default: its own folder, for a carried recipe the current one.",
)  # fmt: skip
@json_option("Write the report's content here too, as DIR/report.json has it; - is standard output.")
@click.option(
    "--schema", is_flag=True, is_eager=True, expose_value=False, callback=_show_schema,
    help="Print a recipe's JSON schema, for editors, and end.",
)  # fmt: skip
@version_option
@debug_option
def build(
    recipe: str, out: Path, skip: tuple[str, ...], use_best: bool, folder: Path | None, json_file: str | None
) -> None:
    """Build all that a recipe asks for: a file, or the name of a recipe that the package carries.

    What is there already and still right is kept; what runs again says why. A build that was stopped goes on where it
    was, in the middle of a training too.

    \b
    Example:
      slimdet build shapes --out out
      slimdet build voc.yaml --out voc --skip benchmark
      slimdet build yolov4_tiny_tucker --from data --out tiny
    """
    _need("build")
    from toolchain.build import build as build_recipe
    from toolchain.build import check_skips
    from toolchain.build_network import model_files
    from toolchain.recipe import read_recipe

    recipe_file = read_recipe(recipe, folder)
    if json_file not in (None, "-"):
        refuse_to_overwrite("--json", str(json_file), [recipe_file.path, *model_files(recipe_file.recipe).values()])
    try:
        check_skips(frozenset(skip), recipe_file.recipe)
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="--skip") from error
    start = time.perf_counter()
    with _Display() as watch:
        content = build_recipe(recipe_file, out, frozenset(skip), watch, use_best=use_best)
    if json_file is not None:
        write_json(json_file, content)
    if json_file != "-":
        from toolchain.report import as_text

        click.echo(as_text(content))
        click.echo(f"\nbuilt in {time.perf_counter() - start:.1f} s; the report is {out / 'report.html'}")


@slimdet.command(no_args_is_help=True)
@click.argument("model", metavar="CFG|MODEL.keras|MODEL.h5", type=_FILE)
@click.argument("weights", metavar="[WEIGHTS]", type=_FILE, required=False)
@click.option("--names", metavar="FILE", type=_FILE, help="One class name a line; darknet models need it.")
@click.option(
    "--head", metavar="HEAD.yaml", type=_FILE, help="What a Keras model's outputs mean; Keras models need it."
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="float32", show_default=True, help="Of the file.")
@click.option("--calibration", metavar="DIR", type=_FOLDER, help="Pictures that fix the int8 scales; also verified on.")
@click.option("--float-io", is_flag=True, help="Of int8: inputs and outputs are float32, and the file converts itself.")
@click.option(
    "--max-map-loss", type=click.FloatRange(0, 1),
    help="Of int8_mixed: mAP that may be lost; 0.005, half a point, without it.",
)
@click.option(
    "--resize", type=click.Choice(("letterbox", "stretch")),
    help="How pictures come to the input's size; stretch is what darknet does. Default: letterbox, or HEAD.yaml's.",
)  # fmt: skip
@click.option(
    "--allow-lambda", is_flag=True, help="Run Python code inside a Keras file. Only for files that you trust."
)
@click.option(
    "--for", "clients", type=click.Choice(CLIENTS), multiple=True,
    help="Write a file for this program too, M_mediapipe.tflite or M_task-library.tflite. May be repeated.",
)  # fmt: skip
@click.option("-o", "--output", metavar="M.tflite", type=_FILE, required=True, help="The file to write.")
@json_option("Write what was done here as JSON; - is standard output.")
@version_option
@debug_option
def convert(
    model: Path, weights: Path | None, names: Path | None, head: Path | None, precision: str, calibration: Path | None,
    float_io: bool, max_map_loss: float | None, resize: Literal["letterbox", "stretch"] | None, allow_lambda: bool,
    clients: tuple[Client, ...], output: Path, json_file: str | None,
) -> None:  # fmt: skip
    """Convert one trained detector to one verified .tflite, without a recipe.

    Without --calibration it is verified on pictures that the program draws, and says so.

    \b
    Example:
      slimdet convert net.cfg net.weights --names voc.names --precision int8 --calibration photos -o net_int8.tflite
      slimdet convert net.keras --head net.yaml -o net.tflite
      slimdet convert net.cfg net.weights --names voc.names --resize stretch --for mediapipe -o net.tflite
    """
    is_keras = model.suffix.lower() in (".keras", ".h5", ".hdf5")
    if precision.startswith("int8") and calibration is None:
        raise click.UsageError("int8 is calibrated on pictures: add --calibration DIR")
    if float_io and not precision.startswith("int8"):
        raise click.UsageError(f"--float-io is for int8: a {precision} file has float inputs and outputs anyway")
    if max_map_loss is not None and precision != "int8_mixed":
        raise click.UsageError(f"--max-map-loss is for --precision int8_mixed, not {precision}")
    if is_keras and (weights or names or head is None):
        raise click.UsageError("a Keras model is MODEL --head HEAD.yaml, without WEIGHTS and --names")
    if not is_keras and (weights is None or names is None or head is not None or allow_lambda):
        raise click.UsageError("a darknet model is CFG WEIGHTS --names FILE, without --head and --allow-lambda")
    _need("convert")
    from toolchain.one_file import Origin, convert_file
    from toolchain.quantize import Int8

    origin = Origin(model, weights, names, head, resize, allow_lambda)
    int8 = Int8(float_io=float_io, max_map_loss=Int8.max_map_loss if max_map_loss is None else max_map_loss)
    with _Display() as watch:
        done = convert_file(
            origin, precision, output, calibration, clients=tuple(dict.fromkeys(clients)), int8=int8,
            started=watch.started, progress=watch.progress,
        )  # fmt: skip
    if json_file is not None:
        write_json(json_file, done)
    if json_file != "-":
        for line in done["summary"]:
            click.echo(line)


@slimdet.command(no_args_is_help=True)
@click.argument("model", metavar="MODEL")
@click.argument("weights", metavar="[WEIGHTS]", type=_FILE, required=False)
@click.option("--names", metavar="FILE", type=_FILE, help="One class name a line, for a cfg.")
@click.option("--head", metavar="HEAD.yaml", type=_FILE, help="What a Keras model's outputs mean.")
@click.option(
    "--sensitivity", is_flag=True, help="Compress one layer at a time and measure what it costs, without training."
)
@click.option(
    "--against", metavar="FILE.tflite", type=_FILE, help="Of a .tflite: what it differs in from this one, by layer."
)
@click.option(
    "--pictures", metavar="DIR", type=_FOLDER, help="For --sensitivity and --against: pictures to compare on."
)
@click.option("--data", metavar="DIR", type=_FOLDER, help="For --sensitivity: measure mAP on this VOC folder instead.")
@click.option("--split", default="val", show_default=True, help="Of --data. Not the one that you report figures on.")
@click.option(
    "--ratio", "ratios", type=float, multiple=True, help="For --sensitivity, share removed. Default: 0.25, 0.5, 0.75."
)
@click.option(
    "--plot", metavar="FILE.png", type=_FILE, help="For --sensitivity and --against: draw the table."
)
@click.option(
    "--allow-lambda", is_flag=True, help="Run Python code inside a Keras file. Only for files that you trust."
)
@json_option("Write everything here as JSON; - is standard output.")
@version_option
@debug_option
def inspect(
    model: str, weights: Path | None, names: Path | None, head: Path | None, sensitivity: bool, against: Path | None,
    pictures: Path | None, data: Path | None, split: str, ratios: tuple[float, ...], plot: Path | None,
    allow_lambda: bool, json_file: str | None,
) -> None:  # fmt: skip
    """Show what a model is made of: a cfg (with weights or without), .keras, .h5, .tflite, a recipe, or a built-in
    network's name.

    Layers with shapes, parameters and FLOPs, the head, and what can be compressed: the groups of channels that are
    pruned together, and the convolutions that Tucker can split. Of a .tflite, by whomever, its tensors and operations,
    quantization, metadata, what XNNPACK takes, and what looks wrong; with --against where it parts from another.

    \b
    Example:
      slimdet inspect net.cfg net.weights --names voc.names
      slimdet inspect net_int8.tflite --json net.json
      slimdet inspect net_int8.tflite --against net_float32.tflite --pictures photos --plot worst.png
      slimdet inspect net.cfg net.weights --names voc.names --sensitivity --pictures photos --plot sensitivity.png
    """
    if Path(model).suffix.lower() in (".keras", ".h5", ".hdf5"):
        _need("inspect", ("tensorflow",))
    if Path(model).suffix.lower() in (".yaml", ".yml") or model in carried_recipes():
        _need("inspect", ("pydantic", "yaml"))
    if against is not None:
        asked = {
            "WEIGHTS": weights, "--names": names, "--head": head, "--sensitivity": sensitivity, "--data": data,
            "--ratio": ratios,
        }  # fmt: skip
        if given := [option for option, value in asked.items() if value]:
            raise click.UsageError(f"--against compares two .tflite files, without {', '.join(given)}")
        found = _against(Path(model), against, pictures, plot, json_file)
    elif not sensitivity:
        asked = {"--pictures": pictures, "--data": data, "--ratio": ratios, "--plot": plot}
        if given := [option for option, value in asked.items() if value]:
            raise click.UsageError(f"{', '.join(given)} belong{'s' * (len(given) == 1)} to --sensitivity")
        from toolchain.inspection import as_text, inspect_model

        found = inspect_model(model, weights, names, head, allow_lambda=allow_lambda)
        if json_file != "-":
            click.echo(as_text(found))
    else:
        if pictures and data:
            raise click.UsageError("--pictures compares outputs, --data measures mAP: give one of them")
        _need("inspect --sensitivity", (*_BUILD_SIDE, "tensorly", "matplotlib"))
        found = _sensitivity(model, weights, names, head, pictures, data, split, ratios, plot, allow_lambda, json_file)
    if json_file is not None:
        write_json(json_file, found)


def _against(
    model: Path, against: Path, pictures: Path | None, plot: Path | None, json_file: str | None
) -> dict[str, Any]:
    from toolchain import comparison_report, file_comparison
    from toolchain.quantize import evenly_spaced
    from toolchain.reference import VERIFICATION_PICTURES
    from toolchain.stages import draw_pictures, pictures_in

    if plot is not None:
        _need("inspect --plot", ("matplotlib",))
        refuse_to_overwrite("--plot", str(plot), [model, against, *([json_file] if json_file else [])])
    given = evenly_spaced(pictures_in(pictures), VERIFICATION_PICTURES) if pictures else []
    with tempfile.TemporaryDirectory(prefix="slimdet-") as folder, _Display() as watch:
        watch.started("comparison")
        looked = given or draw_pictures(Path(folder), VERIFICATION_PICTURES, 416)
        found = file_comparison.compare_files(model, against, looked, progress=watch.progress)
    found["drawn_pictures"] = not given
    if plot is not None:
        write_atomically(plot, comparison_report.plot(found))
    if json_file != "-":
        if not given:
            click.echo("no pictures were given: drawn ones stand in for them, and tell less; add --pictures DIR")
        click.echo(comparison_report.as_text(found))
    return found


def _sensitivity(
    model: str, weights: Path | None, names: Path | None, head: Path | None, pictures: Path | None,
    data: Path | None, split: str, ratios: tuple[float, ...], plot: Path | None, allow_lambda: bool,
    json_file: str | None,
) -> dict[str, Any]:  # fmt: skip
    from toolchain import sensitivity
    from toolchain.inspection import read_network
    from toolchain.quantize import evenly_spaced
    from toolchain.reference import VERIFICATION_PICTURES
    from toolchain.stages import draw_pictures, pictures_in

    if plot is not None:
        sources = [path for path in (Path(model), weights, names, head) if path is not None]
        refuse_to_overwrite("--plot", str(plot), [*sources, *([json_file] if json_file else [])])
    given = evenly_spaced(pictures_in(pictures), VERIFICATION_PICTURES) if pictures else []
    graph = read_network(model, weights, names, head, allow_lambda=allow_lambda)
    with tempfile.TemporaryDirectory(prefix="slimdet-") as folder, _Display() as watch:
        watch.started("sensitivity")
        truths = sensitivity.Truths(data, split) if data else None
        looked = given or draw_pictures(Path(folder), VERIFICATION_PICTURES, 416) if truths is None else ()
        found = sensitivity.measure_sensitivity(
            graph, looked, truths, ratios=ratios or sensitivity.RATIOS, allow_lambda=allow_lambda,
            progress=watch.progress,
        )  # fmt: skip
    found["drawn_pictures"] = truths is None and not given
    if plot is not None:
        write_atomically(plot, sensitivity.plot(found))
    if json_file != "-":
        if found["drawn_pictures"]:
            click.echo("no pictures were given: drawn ones stand in for them, and tell less; add --pictures DIR")
        click.echo(sensitivity.as_text(found))
    return found


class _Display:
    """Shows on standard error how a build goes on: what runs, for how long, and what is left where that is known."""

    def __enter__(self) -> Watch:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        from toolchain.jobs import Watch

        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn(),
            TextColumn("{task.fields[told]}", markup=False), console=self._console, transient=True,
        )  # fmt: skip
        if self._console.is_terminal:
            self._bar.start()
        self._task: Any = None
        self._timer: threading.Timer | None = None
        self._next = 0.0
        return Watch(self._started, self._progress, self._finished)

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._console.is_terminal:
            self._bar.stop()

    def _started(self, job: str) -> None:
        self._end()
        self._task = self._bar.add_task(job, total=None, told="")
        self._job, self._begun = job, time.monotonic()
        self._next = self._begun + _FIRST_SECONDS
        if not self._console.is_terminal:
            self._timer = threading.Timer(_QUIET_SECONDS, self._console.print, [f"{job:18} runs"])
            self._timer.daemon = True
            self._timer.start()

    def _progress(self, done: float, total: float, text: str = "") -> None:
        now = time.monotonic()
        if not text and total:
            text = f"{100 * done / total:.0f} %"
            text += f", {(now - self._begun) * (total - done) / done:.0f} s left" if done else ""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total or None, told=text)
        if not self._console.is_terminal and text and now >= self._next:
            self._next = now + _NEXT_SECONDS
            self._console.print(f"{self._job:18} {text}")

    def _finished(self, job: str, result: Any) -> None:
        self._end()
        told = f"ran in {result.seconds:.1f} s: {result.reason}" if result.ran else "kept"
        self._console.print(f"{job:18} {told}")

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
