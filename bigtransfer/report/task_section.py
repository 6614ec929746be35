"""What the report page shows of one task."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigtransfer.artifacts.calibration import Calibration
from bigtransfer.artifacts.registration import Registration
from bigtransfer.artifacts.report import Mistake, PlaceMap, ReliabilityBin, TaskReport
from bigtransfer.progress import counted
from bigtransfer.report import charts, page
from bigtransfer.report.headline import (
    baseline_of,
    interval_of,
    interval_text,
    is_beaten,
)
from bigtransfer.report.table import METRICS
from bigtransfer.report.words import (
    abstention_in_words,
    effort_in_words,
    percent,
    training_in_words,
)

SHOWN_AT = 160
"""Longest side of a mistake's picture, CSS pixels."""
_SHOWN_FIRST = 12
"""Mistakes that are shown before one asks for more."""
_CONFUSED_SHOWN = 8
_CLASSES_IN_FULL = 20
"""A confusion matrix of more classes shows those that are confused alone."""
_CONFUSED_CLASSES = 16
_FEWEST_PER_BIN = 20
_RAISES, _LOWERS = (232, 89, 12), (28, 100, 200)
_MOST_OPAQUE = 210


@dataclass(frozen=True)
class Fact:
    """A line of the list of facts."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Overlay:
    """How the logit of a class adds up over places, to lay over a picture."""

    name: str
    logit: float
    bias: float
    picture: str
    """`data:` URI, a pixel per place."""


@dataclass(frozen=True)
class ShownMistake:
    """A mistake as it is drawn."""

    path: str
    predicted: str
    actual: str
    probability: str
    actual_probability: str
    picture: str
    width: int
    """CSS pixels; so the height."""
    height: int
    coarse: bool
    """Whether its pixels are to be seen as such."""
    overlays: tuple[Overlay, ...]


def task_section(
    name: str, result: TaskReport, registration: Path | None, number: int
) -> page.Shown:
    """Return what the template is given of a task.

    Args:
        name: As the page calls it.
        result: Its report.
        registration: Its registration file, if it has one.
        number: Of the task on the page, for anchors.
    """
    mistakes = [shown_mistake(own) for own in result.mistakes]
    registered = Registration.read_file(registration) if registration else None
    shown: dict[str, object] = {
        "name": name,
        "anchor": f"task-{number}",
        "report": result,
        "metric_name": METRICS[result.metric],
        "median_row": result.headline,
        "facts": facts_of(result, registered),
        "few_shot": charts.few_shot(result.rows)
        if len({row.examples_per_class for row in result.rows}) > 1
        else "",
        "curves": charts.fine_tuning(result.curves, result.chosen.folder, result.metric)
        if any(len(rows) > 1 for rows in result.curves.values())
        else [],
        "per_class": sorted(
            result.per_class, key=lambda row: 2.0 if row.score is None else row.score
        ),
        "registration": registered,
        "gates": _gates(registered),
        "standing": "chosen" if registered is None else "registered",
        "mistakes": mistakes[:_SHOWN_FIRST],
        "more_mistakes": mistakes[_SHOWN_FIRST:],
        "places": _places(result.mistakes),
        "confusion_svg": "",
        "confusion_note": "",
        "confused": [],
        "reliability_svg": "",
        "bins": (),
        "abstention": "",
    }
    if result.confusion is not None:
        shown |= _confusion(np.array(result.confusion), result.classes)
    if result.reliability is not None and isinstance(result.calibration, Calibration):
        bins = merged(result.reliability.bins)
        shown["reliability_svg"] = charts.reliability(bins) if len(bins) > 1 else ""
        shown["bins"] = bins
        shown["abstention"] = abstention_in_words(
            result.reliability, result.calibration, result.chosen.test["top1"], result.test_images
        )
    return shown


def _gates(registered: Registration | None) -> list[dict[str, str]]:
    """Return what each gate says of the registered version, as rows."""
    found = []
    for name, text in (registered.gates if registered else {}).items():
        verdict, _, reason = text.partition(": ")
        found.append({"name": name.replace("_", " "), "verdict": verdict, "reason": reason})
    return found


def facts_of(result: TaskReport, registration: Registration | None) -> list[Fact]:
    """Return the figures of the chosen network, each with what it is to be measured by."""
    test, row = result.chosen.test, result.headline
    score = test[result.metric]
    own = None if result.multi_label else score
    facts = [
        Fact(f"test {METRICS[result.metric]}", percent(score), interval_text(result, row, own))
    ]
    if row.seeds > 1:
        spread = f"{percent(row.min)} to {percent(row.max)}, median {percent(row.median)}"
        facts.append(Fact("its seeds", counted(row.seeds, "network"), spread))
    if baseline := baseline_of(result):
        common = "" if result.multi_label else ", the most common class of the training images"
        beaten = is_beaten(baseline, interval_of(result, row, own))
        doubt = "" if beaten else ": not clearly beaten"
        facts.append(Fact("baseline", percent(baseline.share), baseline.words + common + doubt))
    if result.multi_label:
        facts.append(Fact("micro-F1", percent(test["micro_f1"])))
    elif len(result.classes) > 5 and "top5" in test:
        facts.append(Fact("top-5", percent(test["top5"]), f"of {len(result.classes):,} classes"))
    if (balanced := test.get("balanced_accuracy")) is not None:
        even = percent(1 / len(result.classes))
        facts.append(
            Fact(
                "balanced accuracy",
                percent(balanced),
                f"mean over classes of how many of their images are recognised; always saying one "
                f"class gets {even}",
            )
        )
    if (f1 := test.get("macro_f1")) is not None:
        facts.append(Fact("macro-F1", percent(f1), "mean over classes"))
    if words := training_in_words(result.hyperrule):
        facts.append(Fact("fine-tuning", words))
    group = [
        cell
        for cell in result.cells
        if (cell.init, cell.examples_per_class) == (row.init, row.examples_per_class)
    ]
    if effort := effort_in_words(group):
        facts.append(Fact("it took", effort))
    if registration:
        version = f"{registration.name}, version {registration.version}"
        alias = f"{registration.alias_in_words} ({registration.reason})"
        facts.append(Fact("in MLflow", version, alias))
    return facts


def merged(
    bins: Sequence[ReliabilityBin], fewest: int = _FEWEST_PER_BIN
) -> tuple[ReliabilityBin, ...]:
    """Return bins of at least so many images each, neighbours taken together from below.

    Args:
        bins: From the least sure to the surest.
        fewest: Images; what is left above joins the bin before it.
    """
    groups: list[list[ReliabilityBin]] = [[]]
    for own in bins:
        if sum(member.images for member in groups[-1]) >= fewest:
            groups.append([])
        groups[-1].append(own)
    if len(groups) > 1 and sum(member.images for member in groups[-1]) < fewest:
        rest = groups.pop()
        groups[-1] += rest
    return tuple(_together(group) for group in groups if group)


def _together(group: Sequence[ReliabilityBin]) -> ReliabilityBin:
    images = sum(own.images for own in group)
    return ReliabilityBin(
        images=images,
        confidence=sum(own.images * own.confidence for own in group) / images,
        accuracy=sum(own.images * own.accuracy for own in group) / images,
    )


def _confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> dict[str, object]:
    """Return the matrix, or of many classes that of the confused ones, and the worst pairs."""
    if len(classes) <= _CLASSES_IN_FULL:
        numbers, note = list(range(len(classes))), ""
    else:
        numbers = confused_classes(matrix, _CONFUSED_CLASSES)
        inside = int(matrix[np.ix_(numbers, numbers)].sum())
        outside = int(matrix[numbers].sum()) - inside
        note = (
            f"The {len(numbers)} of {len(classes):,} classes that are most often taken for each "
            f"other; {outside:,} of their {inside + outside:,} images were taken for classes that "
            "are not shown."
        )
    svg = charts.confusion(matrix[np.ix_(numbers, numbers)], [classes[n] for n in numbers])
    pairs = [
        {
            "actual": classes[i],
            "predicted": classes[j],
            "images": int(matrix[i, j]),
            "total": int(matrix[i].sum()),
        }
        for i, j in _pairs(matrix)[:_CONFUSED_SHOWN]
    ]
    return {
        "confusion_svg": svg if numbers else "",
        "confusion_note": note,
        "confused": pairs if len(classes) > 2 else [],  # of two, the matrix says it all
    }


def confused_classes(matrix: NDArray[np.int64], most: int) -> list[int]:
    """Return the classes of the pairs that are confused most, each pair side by side.

    Args:
        matrix: (C, C), row = true class.
        most: Classes; none where nothing is confused.
    """
    chosen: list[int] = []
    for pair in _pairs(matrix):
        fresh = [own for own in pair if own not in chosen]
        if len(chosen) + len(fresh) > most:
            break
        chosen += fresh
    return chosen


def _pairs(matrix: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return (true, predicted) of every confusion, the most frequent first."""
    classes = len(matrix)
    wrong = matrix * (1 - np.eye(classes, dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[: int((wrong > 0).sum())]
    return [divmod(int(i), classes) for i in order]


def shown_mistake(mistake: Mistake) -> ShownMistake:
    """Return a mistake as the page draws it."""
    with Image.open(io.BytesIO(base64.b64decode(mistake.picture.partition(",")[2]))) as image:
        width, height = image.size
    scale = SHOWN_AT / max(width, height)
    known = mistake.actual_probability is not None
    return ShownMistake(
        path=mistake.path,
        predicted=_readable(mistake.predicted),
        actual=_readable(mistake.actual),
        probability=percent(mistake.probability),
        actual_probability=percent(mistake.actual_probability or 0.0) if known else "",
        picture=mistake.picture,
        width=max(1, round(width * scale)),
        height=max(1, round(height * scale)),
        coarse=mistake.picture.startswith("data:image/png"),
        overlays=overlays_of(mistake.maps),
    )


def overlays_of(maps: Sequence[PlaceMap]) -> tuple[Overlay, ...]:
    """Return maps as pictures to lay over an image, all on one scale.

    Orange places raise the logit, blue ones lower it; the more opaque, the more.
    """
    largest = max((abs(value) for own in maps for row in own.values for value in row), default=0.0)
    return tuple(
        Overlay(
            name=_readable(own.name),
            logit=own.logit,
            bias=own.bias,
            picture=_drawn(np.array(own.values), largest or 1.0),
        )
        for own in maps
    )


def _drawn(values: NDArray[np.float64], largest: float) -> str:
    pixels = np.empty((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where(values[..., None] >= 0, _RAISES, _LOWERS)
    pixels[..., 3] = np.round(np.abs(values) / largest * _MOST_OPAQUE)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _places(mistakes: Sequence[Mistake]) -> str:
    """Return how many places the maps have, e.g. `8 x 8`; empty where there are none."""
    for own in mistakes:
        if own.maps:
            values = own.maps[0].values
            return f"{len(values)} × {len(values[0])}"
    return ""


def _readable(name: str) -> str:
    return name.replace("_", " ")
