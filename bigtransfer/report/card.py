"""The model card: what a network is, what made it, how good it is, and what it is not for."""

from __future__ import annotations

from bigtransfer.artifacts.calibration import Calibration
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.artifacts.weights import TunedMeta
from bigtransfer.report.task_section import facts_of
from bigtransfer.report.words import percent

_CLASSES_SHOWN = 20
_WORST = 5


def model_card(result: TaskReport, meta: TunedMeta, *, commit: str) -> str:
    """Return the card of the network that will be registered, as Markdown.

    Args:
        result: The report of its task.
        meta: Of its checkpoint.
        commit: Of the project.
    """
    chosen = result.chosen
    lines = [
        f"# {_cell(result.task)}: {meta.architecture}, {_examples(meta)}",
        "",
        "## What it is",
        "",
        f"A BiT network (ResNet-v2, {meta.architecture}, {meta.norm}) that was fine-tuned to "
        f"{_cell(result.task)} from {_begin(meta)}. It takes pictures of any size, squeezed to "
        f"{meta.crop} x {meta.crop} pixels, and names "
        + ("all labels that a picture has" if result.multi_label else "one class for each")
        + f" of {len(meta.classes):,}: {_classes(meta.classes)}.",
        "",
        "## Data",
        "",
        *_table(
            ("dataset", result.dataset),
            ("shards", result.shards_digest),
            ("test split", f"{result.test_digest}, {result.test_images:,} images"),
            ("trained on", ", ".join(meta.train_on)),
            ("upstream weights", result.upstream_digest or "none: from scratch"),
            ("commit", commit or "not known"),
        ),
        "",
        "## Results",
        "",
        *_table(*((fact.name, _with(fact.value, fact.note)) for fact in facts_of(result, None))),
        "",
        *_weakest(result),
        "## Limits",
        "",
        *(f"- {line}" for line in _limits(result, meta)),
        "",
        "## Intended use",
        "",
        "Pictures of the kind that it was trained and tested on, with a person who looks at unsure "
        "answers. Nobody has tested it on other cameras, places or times, nor for decisions about "
        "people.",
        "",
        "## Gates",
        "",
        f"`bigtransfer explain` of the registered version prints what each gate said, who promoted "
        f"it and why. It is seed {chosen.seed}, the median of its setting on validation images; "
        "the test split decided nothing.",
    ]
    return "\n".join(lines) + "\n"


def _with(value: str, note: str) -> str:
    return f"{value} ({note})" if note else value


def _cell(text: object) -> str:
    """Return a text as a cell of a table: on one line, with no bar of its own."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _table(*rows: tuple[str, object]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)]


def _examples(meta: TunedMeta) -> str:
    if meta.examples_per_class == "full":
        return "all training images"
    return f"{meta.examples_per_class} training images per class"


def _begin(meta: TunedMeta) -> str:
    return "random weights" if meta.init == "scratch" else "upstream weights"


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{_cell(name)}`" for name in names[:_CLASSES_SHOWN])
    more = len(names) - _CLASSES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def _weakest(result: TaskReport) -> list[str]:
    scored = [row for row in result.per_class if row.score is not None]
    worst = sorted(scored, key=lambda row: row.score or 0.0)[:_WORST]
    if not worst:
        return []
    said = ", ".join(f"`{_cell(row.name)}` {percent(row.score or 0.0)}" for row in worst)
    what = "average precision" if result.multi_label else "recall"
    return [f"Lowest {what} of a class: {said}.", ""]


def _limits(result: TaskReport, meta: TunedMeta) -> list[str]:
    found = ["It answers every picture with the classes above, also one that shows none of them."]
    own = meta.calibration
    if isinstance(own, Calibration):
        if not own.calibrated:
            found.append(f"Its probabilities are not calibrated: {own.why_not}.")
        elif own.abstain_below is None:
            found.append("No threshold makes its answers sure: all are marked unsure.")
        else:
            found.append(f"Answers below {own.abstain_below:.2f} are marked unsure.")
    if "val" in meta.train_on:
        found.append("It was trained on its validation images, so nothing can be compared with it")
    if result.label_issues.found:
        doubted = result.label_issues.found
        found.append(f"{doubted:,} labels of its data are doubted; its report shows them.")
    if result.headline.seeds == 1:
        found.append("One seed was trained: how much of its score is luck cannot be said.")
    return [line if line.endswith(".") else f"{line}." for line in found]
