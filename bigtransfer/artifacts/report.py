"""`report.json`: all there is to say of the networks of a task; every page and table is made of it.

The first schema (before 2026-11-26) was flat where this one has parts; `upgraded` reads it.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from bigtransfer.artifacts.base import Artifact, Json, Part
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import ListedCell

Metric = Literal["top1", "map"]
"""What a task is measured by: top-1, or mAP where an image may have several labels."""


class ScoredCell(ListedCell):
    """A network of the grid, and how well it does."""

    val: dict[str, float]
    """Metric -> score on the validation split, in [0, 1]."""
    test: dict[str, float]

    def flat(self) -> dict[str, str | int | float]:
        """Return it as a row of a table, with its scores as `figures` names them."""
        return {
            **self.model_dump(include={"init", "examples_per_class", "seed"}),
            **self.figures(),
        }

    def figures(self) -> dict[str, float]:
        """Return its scores by one name each, e.g. `test_top1`."""
        return {f"val_{k}": v for k, v in self.val.items()} | {
            f"test_{k}": v for k, v in self.test.items()
        }


class SummaryRow(Part):
    """The networks that differ by their seed alone."""

    task: str
    init: Literal["upstream", "scratch"]
    examples_per_class: int | Literal["full"]
    metric: Metric
    median: float
    """Of the test score, over seeds; so the next three."""
    sd: float
    min: float
    max: float
    seeds: int
    """How many."""
    medians: dict[str, float]
    """The same of the other scores, by metric."""


class ClassScore(Part):
    """How well one class is recognised."""

    name: str
    images: int
    """Of the test split."""
    score: float | None
    """Recall, or average precision where images may have several labels; None: no image."""
    threshold: float | None = None
    """Probability from which on it is named, where images may have several labels."""


class PlaceMap(Part):
    """How the logit of a class adds up over the places of an image."""

    name: str
    """Of the class."""
    bias: float
    values: tuple[tuple[float, ...], ...]
    """Rows of places; their mean plus the bias is the logit."""

    @property
    def logit(self) -> float:
        """Return the logit of the class."""
        return fmean(value for row in self.values for value in row) + self.bias


class Mistake(Part):
    """A test image that was taken for something else."""

    path: str
    actual: str
    predicted: str
    probability: float
    picture: str
    """`data:` URI."""
    actual_probability: float | None = None
    """Of the class that it is labelled; None: not noted before 2026-11-26."""
    maps: tuple[PlaceMap, ...] = ()
    """Of the predicted class and of the one that it is labelled; none where places are too few,
    nor before 2026-11-26."""


class ReliabilityBin(Part):
    """Answers of about the same probability."""

    images: int
    confidence: float
    """Mean probability."""
    accuracy: float
    """Share that is right."""


class Reliability(Part):
    """How far probabilities can be believed on the test split."""

    error_raw: float
    """Expected calibration error without a temperature, in [0, 1]."""
    error: float
    """The same with the one that was fitted on the validation split."""
    bins: tuple[ReliabilityBin, ...]
    answered: float
    """Share of the images that it is not unsure of."""
    answered_accuracy: float | None
    """Share of those that is right; None: there are none."""
    asked: float | None = None
    """Share that was asked to be right; None: not noted before 2026-11-26."""


class DoubtedLabel(Part):
    """An image whose label should be looked at."""

    path: str
    split: str
    given: str
    likely: str
    given_probability: float
    likely_probability: float
    picture: str
    """`data:` URI."""


class LabelIssues(Part):
    """Labels that networks doubt which were not trained on the image."""

    sought: bool
    """Whether the networks are good enough to doubt anybody."""
    examined: int
    """Images that there was a network for."""
    found: int
    shown: tuple[DoubtedLabel, ...]
    """The most doubtful of them."""


class TaskReport(Artifact):
    """The report of one task."""

    FILE: ClassVar[str] = "report.json"
    WHAT: ClassVar[str] = "the report of a task"
    MAKER: ClassVar[str] = "evaluate"
    SCHEMA: ClassVar[int] = 2

    task: str
    dataset: str
    metric: Metric
    classes: tuple[str, ...]
    test_digest: str
    """Of the images and labels of the test split, whatever their order."""
    test_images: int
    shards_digest: str
    upstream_digest: str
    rows: tuple[SummaryRow, ...]
    cells: tuple[ScoredCell, ...]
    chosen: ScoredCell
    """The network that will be registered; what follows is about it."""
    architecture: str
    hyperrule: Json
    calibration: Calibration | MultiLabelCalibration
    per_class: tuple[ClassScore, ...]
    mistakes: tuple[Mistake, ...]
    """The worst ones."""
    confusion: tuple[tuple[int, ...], ...] | None
    """[actual][predicted] -> test images; this and the next two only for one label per image."""
    reliability: Reliability | None
    hits: str | None
    """A digit per test image, 1 if it is right, in an order that two reports share."""
    label_issues: LabelIssues
    baseline: float | None = None
    """Test top-1 of always naming the class with the most training images; None where images may
    have several labels, and before 2026-11-26."""
    largest_class: str | None = None
    """That class."""
    label_confusion: tuple[tuple[int, ...], ...] | None = None
    """[has the label, has it not][named, not named] -> pairs of a test image and a label, where
    images may have several; None else, and before 2026-11-26."""

    curves: dict[str, tuple[dict[str, float], ...]] = {}
    """Network -> `step` and what was noted for it while it was fine-tuned, of the chosen one and
    those that differ from it by their seed alone; empty where there are no steps, and before
    2026-11-26."""

    @property
    def headline(self) -> SummaryRow:
        """Return the row of the networks that the chosen one is the median of."""
        own = (self.chosen.init, self.chosen.examples_per_class)
        return next(row for row in self.rows if (row.init, row.examples_per_class) == own)

    @property
    def multi_label(self) -> bool:
        """Say whether an image may have several labels."""
        return self.metric == "map"

    @classmethod
    def upgraded(cls, raw: Json, schema: int) -> Json:
        """Return the first schema as the second."""
        return _of_first_schema(dict(raw))


def _of_first_schema(raw: dict[str, Any]) -> Json:
    several = raw.pop("multi_label")
    score = "average_precision" if several else "recall"
    shown, test = raw.pop("suspects"), raw.pop("calibration", None)
    raw["calibration"] = raw.pop("validation")
    raw["rows"] = [_row(row) for row in raw["rows"]]
    raw["cells"] = [_cell(cell) for cell in raw["cells"]]
    raw["chosen"] = _cell(raw["chosen"])
    raw["per_class"] = [
        {
            "name": row["class"],
            "images": row["images"],
            "score": row[score],
            "threshold": row.get("threshold"),
        }
        for row in raw["per_class"]
    ]
    raw["mistakes"] = [_only(Mistake, row) for row in raw["mistakes"]]
    raw["reliability"] = test and _only(Reliability, {**test, "bins": test["reliability"]})
    raw["label_issues"] = {
        "sought": raw.pop("suspects_sought"),
        "examined": raw.pop("suspects_examined"),
        "found": raw.pop("suspects_found"),
        "shown": [_only(DoubtedLabel, row) for row in shown],
    }
    return {"confusion": None, "hits": None, **raw}


def _only(kind: type[BaseModel], row: dict[str, Any]) -> Json:
    """Return what a part has a field for; younger fields than the row keep their default."""
    return {key: row[key] for key in kind.model_fields if key in row}


def _row(row: dict[str, Any]) -> Json:
    medians = {k.removesuffix("_median"): row[k] for k in row if k.endswith("_median")}
    return {**{k: row[k] for k in row if not k.endswith("_median")}, "medians": medians}


def _cell(cell: dict[str, Any]) -> Json:
    scores = {
        split: {k.removeprefix(f"{split}_"): cell[k] for k in cell if k.startswith(f"{split}_")}
        for split in ("val", "test")
    }
    return {**_only(ListedCell, cell), **scores}
