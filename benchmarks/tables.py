"""Results of the measurements as tables for a reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NONE = "-"


def accuracy_text(result: dict[str, Any]) -> str:
    """The result of `measure_accuracy` for a reader."""
    means = "   ".join(f"{name} {100 * result[name]:.2f}" for name in ("map", "map50", "map75") if name in result)
    sections = [
        f"{means}   ({result['protocol']}, {result['images']} pictures, {len(result['per_class'])} classes)",
        _classes_text(result),
        _misses_text(result),
        *_backends_text(result.get("backends", [])),
        table(
            ("seconds", "(decoding runs beside the rest)"),
            [
                (name.removesuffix("_s"), f"{result[name]:6.2f}")
                for name in ("decode_s", "preprocess_s", "invoke_s", "postprocess_s", "metric_s", "wall_s")
            ],
        ),
        f"{result['model']}: {result['precision']}, {result['resize']} to {result['input'][1]}x{result['input'][0]}, "
        f"conf {result['conf']}, iou {result['iou']}, {result['backend']}, "
        f"{result['threads']} thread{'s' * (result['threads'] > 1)}",
    ]
    if worst := result.get("worst"):
        sections.append(f"{len(worst['pictures'])} worst pictures in {worst['folder']}")
    return "\n\n".join(sections + _accuracy_notes(result))


def _classes_text(result: dict[str, Any]) -> str:
    conf = result["working_conf"]
    rows = [(name, 100 * one["ap"], one["truths"], one["working"]) for name, one in result["classes"].items()]
    rows.append(("all", 100 * result["map"], result["working"]["truths"], result["working"]))
    return table(
        ("class", "AP", "truths", f"detections from {conf:g}", "precision", "recall"),
        [
            (name, f"{ap:.2f}", str(truths), str(at["detections"]), _percent(at["precision"]), _percent(at["recall"]))
            for name, ap, truths, at in rows
        ],
    )


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _misses_text(result: dict[str, Any]) -> str:
    misses = result["misses"]

    def line(what: str, counts: dict[str, int]) -> str:
        return f"{sum(counts.values())} {what}: " + ", ".join(f"{name} {count}" for name, count in counts.items())

    text = f"{line('false positives', misses['false_positives'])}\n{line('missed truths', misses['false_negatives'])}"
    if confused := misses["confused"][:3]:
        told = ", ".join(f"{one['is']} taken for {one['taken_for']} {one['count']}" for one in confused)
        text += f"\nconfused most often: {told}"
    return text


def _backends_text(backends: Sequence[dict[str, Any]]) -> list[str]:
    """Nothing where there is one alone."""
    if len(backends) < 2:
        return []
    rows = [(one["backend"], f"{100 * one['map']:.3f}", *drift_cells(one["drift"])) for one in backends]
    return [f"{table(('backend', 'map', *DRIFT_COLUMNS), rows)}\n(against {backends[0]['backend']})"]


DRIFT_COLUMNS = (
    *("pairs", "1 - IoU p50", "p95", "max", "score +- p50", "p95", "max"),
    *("crossing", "only first", "only here"),
)


def drift_cells(drift: dict[str, Any] | None) -> tuple[str, ...]:
    """A cell for each of DRIFT_COLUMNS; see box_drift."""
    if drift is None:
        return (NONE,) * len(DRIFT_COLUMNS)
    spreads = [drift[key][part] for key in ("iou_loss", "score_difference") for part in ("median", "p95", "max")]
    counts = [str(drift[key]) for key in ("crossing", "only_first", "only_here")]
    return (str(drift["pairs"]), *(NONE if value is None else f"{value:.2g}" for value in spreads), *counts)


def _accuracy_notes(result: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the figure; one section, or none."""
    notes = []
    for key, words in (
        ("data_classes_without_partner", "classes of the data that the model does not know, NOT SCORED"),
        ("classes_without_truth", "classes without a truth that counts, not scored"),
        ("model_classes_without_partner", "classes of the model that the data do not have, not scored"),
        ("pictures_of_other_size_than_annotated", "pictures of another size than their annotation says"),
    ):
        if result[key]:
            notes.append(f"{words} ({len(result[key])}): {_first(result[key], 10)}")
    if result["skipped_count"]:
        reasons = [f"{one['id']}: {one['reason']}" for one in result["skipped"]]
        notes.append(f"pictures skipped, in the truth as well ({result['skipped_count']}):")
        notes += [f"  {reason}" for reason in reasons[:5]] + (["  …"] if len(reasons) > 5 else [])
    for key, words in (
        ("boxes_clipped", "cut at the picture's border"),
        ("boxes_dropped", "dropped, outside the picture or empty"),
    ):
        if result[key]:
            notes.append(f"boxes of the truth {words}: {result[key]}")
    return ["\n".join(notes)] if notes else []


#: Kinds of operations that a reader is shown, the longest first; the JSON has all.
_OPS_SHOWN = 10


def latency_text(result: dict[str, Any]) -> str:
    """The result of `measure_latency` for a reader."""
    names = ("p50", "p90", "p95", "p99", "min", "max", "mean", "std")
    rows = [(part, *(f"{times[f'{name}_ms']:.3f}" for name in names)) for part, times in result["parts"].items()]
    memory = result["peak_memory_mb"]
    cold = ", ".join(f"{name.removesuffix('_ms')} {took:.0f}" for name, took in result["cold_start"].items())
    once = [
        ("p50 is within", f"{_interval(result['intervals']['p50_ms'])} ms, 95 %"),
        ("p95 is within", f"{_interval(result['intervals']['p95_ms'])} ms, 95 %"),
        ("load", f"{result['load_ms']:.2f} ms"),
        ("allocate", f"{result['allocate_ms']:.2f} ms"),
        ("first invoke", f"{result['first_ms']:.2f} ms"),
        ("cold start", f"{result['cold_start_ms']:.0f} ms ({cold})"),
        ("processor time", f"{result['cpu_ms']:.2f} ms an invoke"),
        ("peak memory", memory if isinstance(memory, str) else f"{memory:.0f} MB"),
        ("delegated", _delegated_words(result)),
        ("runs", f"{result['runs']} in {result['measured_s']:.2f} s, after {result['warmup_runs']} to warm up"),
        ("ended by", result["stopped_by"]),
        ("backend", f"{result['backend']}, {_threads(result['threads'])}"),
        *_machine(result, result["pinned_cores"]),
    ]
    profile = [_profile_text(result["profile"])] if "profile" in result else []
    return "\n\n".join([table(("ms", *names), rows), table(("", ""), once), *profile, *_warned(result)])


def sweep_text(results: Sequence[dict[str, Any]]) -> str:
    """Results of `measure_latency` with several numbers of threads for a reader."""
    rows = []
    for result in results:
        low, high = result["intervals"]["p50_ms"]
        figures = [result["p50_ms"], low, high, result["p95_ms"], result["cpu_ms"], result["cold_start_ms"]]
        numbers = [f"{figure:.3f}" for figure in figures]
        rows.append((str(result["threads"]), *numbers, _number(result["peak_memory_mb"])))
    head = ("threads", "p50 ms", "from", "to", "p95 ms", "processor ms", "cold start ms", "peak MB")
    profiles = [
        f"{_threads(result['threads'])}:\n{_profile_text(result['profile'])}"
        for result in results
        if "profile" in result
    ]
    warned = [f"{_threads(result['threads'])}:\n{text}" for result in results for text in _warned(result)]
    note = "from and to: 95 % interval of the median; one fresh process for each line, one after the other"
    return "\n\n".join([table(head, rows), note, *profiles, *warned])


def compare_text(result: dict[str, Any]) -> str:
    """The result of `compare` for a reader."""
    from benchmarks.budget import limit_text

    rows, names = [], _file_names([row["model"] for row in result["models"]])
    for row in result["models"]:
        numbers = (row["p50_ms"], row["speedup"], *row["speedup_interval"])
        rows.append((names[row["model"]], *(f"{figure:.3f}" for figure in numbers)))
    settings, first = result["settings"], rows[0][0]
    how = (
        f"{result['rounds']} rounds in {len(result['rounds_of_processes'])} processes and "
        f"{result['measured_s']:.1f} s, ended by {result['stopped_by']}; {settings['backend']}, "
        f"{_threads(settings['threads'])}; from and to: 95 % interval of the speed-up over\n{first}"
    )
    limits = [limit_text({**row, "model": names[row["model"]]}) for row in result["gate"]]
    gate = ["\n".join(limits)] if limits else []
    return "\n\n".join(
        [table(("model", "p50 ms", "speed-up", "from", "to"), rows), how, *gate, *_warned(result)]
    )


def _file_names(paths: Sequence[str]) -> dict[str, str]:
    """By path the file's name alone, where that tells them apart."""
    names = {path: path.replace("\\", "/").rpartition("/")[2] for path in paths}
    return names if len(set(names.values())) == len(names) else {path: path for path in paths}


def _machine(result: dict[str, Any], pinned: Any) -> list[tuple[str, str]]:
    """What is known of the machine, and what it does not tell."""
    governors = result["machine"]["before"]["governors"]
    throttled = result["machine"]["change"]["throttled"]
    return [
        ("machine", f"{result['environment']['cpu']}, {result['environment']['cores']} cores"),
        ("pinned", pinned if isinstance(pinned, str) else f"to cores {', '.join(map(str, pinned))}"),
        ("governor", governors if isinstance(governors, str) else ", ".join(governors)),
        ("clock", _before_and_after(result, "frequency_mhz", "MHz")),
        ("temperature", _before_and_after(result, "temperature_c", "°C")),
        ("throttled", throttled if isinstance(throttled, str) else f"{throttled} times"),
        ("others used", f"{_number(result['machine']['change']['others_cores'], 2)} cores meanwhile"),
    ]


def _before_and_after(result: dict[str, Any], key: str, unit: str) -> str:
    first, last = result["machine"]["before"][key], result["machine"]["after"][key]
    return first if isinstance(first, str) else f"{first:.0f} {unit} before, {_number(last)} after"


def _profile_text(profile: dict[str, Any] | str) -> str:
    if isinstance(profile, str):
        return f"operations {profile}"
    rows = [
        (kind["op"], kind["where"], str(kind["count"]), f"{kind['ms']:.3f}", f"{100 * kind['share']:.1f}")
        for kind in profile["ops"][:_OPS_SHOWN]
    ]
    left = len(profile["ops"]) - len(rows)
    text = table(("operation", "where", "count", "ms", "%"), rows)
    return text + (f"\n… and {left} kinds more" if left > 0 else "")


def _warned(result: dict[str, Any]) -> list[str]:
    return ["\n".join(f"warning: {text}" for text in result["warnings"])] if result["warnings"] else []


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _interval(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _number(value: float | str, digits: int = 0) -> str:
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def _delegated_words(result: dict[str, Any]) -> str:
    told, words = result["delegation"], f"{result['delegated_nodes']} of {result['nodes']} nodes"
    if told["adapter"] is not None:
        words += f" on {told['adapter']}"
    left = [f"{one['op']} x{one['count']}" for one in told["left"]]
    return f"{words}; left: {_first(left, 5)}" if left else words


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left; the others to the right if they are numbers all."""
    lines = [head, *rows] if any(head) else list(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    numbers = [all(_is_number(row[column]) or row[column] == NONE for row in rows) for column in range(len(head))]

    def cell(text: str, column: int) -> str:
        return text.rjust(widths[column]) if numbers[column] and column else text.ljust(widths[column])

    return "\n".join("  ".join(cell(text, column) for column, text in enumerate(line)).rstrip() for line in lines)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
