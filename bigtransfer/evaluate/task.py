"""Score every fine-tuned cell of a task on its test split, and say all there is to say of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from bigtransfer.artifacts.answers import Answers
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.cells import Cells
from bigtransfer.artifacts.evidence import Evidence
from bigtransfer.artifacts.report import (
    DoubtedLabel,
    LabelIssues,
    Metric,
    ScoredCell,
    SummaryRow,
    TaskReport,
)
from bigtransfer.config import EvaluateParams
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import CheckpointError
from bigtransfer.evaluate.account import (
    Account,
    digest_of_split,
    picture_of,
    validation_answers,
    validation_calibration,
    with_one_label,
    with_several_labels,
)
from bigtransfer.evaluate.scoring import Scorer
from bigtransfer.metrics.accuracy import median_and_sd, most_confused
from bigtransfer.metrics.label_issues import find_label_issues
from bigtransfer.model.checkpoint import read_curve
from bigtransfer.model.processor import device_named, use_cpu
from bigtransfer.progress import tracked
from bigtransfer.report.table import by_shots
from bigtransfer.storage import (
    as_csv,
    as_json,
    new_folder,
    verify_folder,
    write_text,
)
from bigtransfer.storage.places import Place

_DOUBTED_SHOWN = 24
_MOST_ROWS_SHOWN = 30
"""Of a confusion matrix: what a person can read."""
_FIT_TO_DOUBT = 0.75
"""Networks with a lower top-1 on validation are wrong too often themselves to doubt a label."""


@dataclass(frozen=True)
class Outputs:
    """Where an evaluation is written."""

    report: Path
    """Folder: `report.json` (all that the page needs), `per_class.csv`, `suspects.csv`, and what
    the gates of its promotion need (`evidence.json`, `validation.parquet`)."""
    metrics: Path
    """JSON file of the medians, nested for `dvc metrics`."""
    cells: Path
    """CSV file, a row per cell."""
    predictions: Path
    """CSV file, a row per test image."""


def evaluate(
    params: EvaluateParams,
    checkpoints: Path,
    shards_place: Place,
    outputs: Outputs,
    log: Callable[[int, dict[str, float]], None],
) -> TaskReport:
    """Score the cells of a task and write its report.

    The report and the predictions are those of the cell that will be registered: from upstream,
    the most examples, the seed with the median validation score.

    Args:
        params: How.
        checkpoints: Written by `finetune`.
        shards_place: Shards of the task's dataset; needs the splits val and test.
        outputs: Where the results go.
        log: Receives each cell's scores, as `<cell>/<metric>`.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: If the checkpoints are damaged or were trained on other data.
    """
    use_cpu(params.threads)
    verify_folder(checkpoints, CheckpointError)
    listed = Cells.read(checkpoints)
    shards = open_shards(shards_place)
    if shards.digest != listed.shards_digest and shards.content_digest != listed.content_digest:
        raise CheckpointError(
            f"checkpoints {str(checkpoints)!r} were trained on other shards than "
            f"{str(shards_place)!r}; run `finetune` again"
        )
    scorer = Scorer(checkpoints, shards, params.batch_size, device_named(params.device))
    metric: Metric = "map" if shards.summary.multi_label else "top1"
    unscored = [
        ScoredCell(**cell.model_dump(), val=scorer.on_validation(cell.folder), test={})
        for cell in listed.cells
    ]
    group = choose(unscored)
    folder = median_cell(group, metric).folder
    scorer.keep([folder, *(cell.folder for cell in group)])
    cells = []
    shown = tracked(unscored, f"evaluate {listed.task}", len(unscored), unit="cell")
    for cell in shown:
        cells.append(cell.model_copy(update={"test": scorer.on_test(cell.folder)}))
        figures = cells[-1].figures().items()
        log(0, {f"{cell.folder}/{name}": value for name, value in figures})
    chosen = next(cell for cell in cells if cell.folder == folder)
    logits, meta = scorer.logits(folder, "test")
    if isinstance(meta.calibration, MultiLabelCalibration):
        account = with_several_labels(shards, logits, meta.calibration)
    else:
        asked = listed.recipe.get("abstain_accuracy")
        account = with_one_label(
            shards,
            logits,
            meta.calibration,
            partial(scorer.maps, folder),
            float(asked) if isinstance(asked, int | float) else None,
        )
    doubt = _may_doubt(meta.calibration)
    doubted, examined = _doubted(shards, scorer, group, meta.train_on) if doubt else ([], 0)
    report = TaskReport(
        task=listed.task,
        dataset=listed.dataset,
        metric=metric,
        classes=tuple(shards.classes),
        test_digest=digest_of_split(shards, "test"),
        test_images=len(account.guesses),
        shards_digest=shards.digest,
        upstream_digest=listed.upstream_digest,
        rows=tuple(summary_rows(listed.task, cells, metric)),
        cells=tuple(cells),
        chosen=chosen,
        architecture=meta.architecture,
        hyperrule=meta.hyperrule,
        calibration=meta.calibration,
        per_class=account.per_class,
        mistakes=account.mistakes,
        confusion=account.confusion,
        label_confusion=account.label_confusion,
        reliability=account.reliability,
        hits=account.hits,
        curves={
            cell.folder: rows
            for cell in group
            if (rows := tuple(read_curve(checkpoints / cell.folder)))
        },
        **_baseline(shards, meta.train_on),
        label_issues=LabelIssues(
            sought=doubt,
            examined=examined,
            found=len(doubted),
            shown=tuple(
                label.model_copy(update={"picture": picture_of(shards, row)})
                for row, label in doubted[:_DOUBTED_SHOWN]
            ),
        ),
    )
    held_out = "val" not in meta.train_on
    evidence = Evidence(
        metric=metric,
        classes=report.classes,
        held_out=held_out,
        validation_digest=digest_of_split(shards, "val"),
        validation_images=len(shards.rows("val")),
        seed=chosen.seed,
        calibration=validation_calibration(shards, scorer, chosen) if held_out else None,
    )
    answers = validation_answers(shards, scorer, group) if held_out else None
    _write(report, account, [label for _, label in doubted], (evidence, answers), outputs)
    return report


def _baseline(shards: Shards, train_on: Sequence[str]) -> dict[str, Any]:
    """Return what naming the most common class of the training images would get."""
    if shards.summary.multi_label:
        return {}
    seen = np.concatenate([shards.labels(shards.rows(split)) for split in train_on])
    largest = int(np.bincount(seen, minlength=len(shards.classes)).argmax())
    share = float((shards.labels(shards.rows("test")) == largest).mean())
    return {"baseline": share, "largest_class": shards.classes[largest]}


def _may_doubt(calibration: Calibration | MultiLabelCalibration) -> bool:
    """Say whether a network is known to be good enough to doubt labels."""
    return (
        isinstance(calibration, Calibration)
        and calibration.calibrated
        and calibration.top1 >= _FIT_TO_DOUBT
    )


def _write(
    report: TaskReport,
    account: Account,
    doubted: Sequence[DoubtedLabel],
    for_gates: tuple[Evidence, Answers | None],
    outputs: Outputs,
) -> None:
    doubts = [label.model_dump(exclude={"picture"}) for label in doubted]
    with new_folder(outputs.report) as folder:
        report.write(folder)
        (folder / "per_class.csv").write_text(as_csv(_per_class_rows(report)), "utf-8")
        (folder / "suspects.csv").write_text(as_csv(doubts) if doubts else "", "utf-8")
        evidence, answers = for_gates
        evidence.write(folder)
        if answers is not None:
            answers.write(folder)
    write_text(outputs.metrics, as_json(_nested(report)))
    write_text(outputs.cells, as_csv([cell.flat() for cell in report.cells]))
    write_text(outputs.predictions, as_csv(account.guesses))


def _per_class_rows(report: TaskReport) -> list[dict[str, str | float | None]]:
    """Return the rows of `per_class.csv`; the score is called what it is."""
    if report.multi_label:
        return [
            {
                "class": row.name,
                "images": row.images,
                "average_precision": row.score,
                "threshold": row.threshold,
            }
            for row in report.per_class
        ]
    return [
        {"class": row.name, "images": row.images, "recall": row.score} for row in report.per_class
    ]


def confusion_to_show(report: TaskReport) -> dict[str, list[dict[str, Any]]]:
    """Return a confusion matrix as Kubeflow Pipelines takes it, of few enough rows to be read.

    Never empty: a backend refuses that. Where images may have several labels, it is about labels:
    whether an image has one, and whether the network names it.
    """
    if report.confusion is None:
        assert report.label_confusion is not None
        return _shown(["has the label", "has it not"], report.label_confusion)
    own, matrix = most_confused(np.array(report.confusion), _MOST_ROWS_SHOWN)
    names = [report.classes[number] for number in own]
    if others := len(report.classes) - len(own):
        names.append(f"others ({others:,} classes)")
    return _shown(names, matrix.tolist())


def _shown(names: Sequence[str], rows: Iterable[Sequence[int]]) -> dict[str, list[dict[str, Any]]]:
    return {
        "annotationSpecs": [{"displayName": name} for name in names],
        "rows": [{"row": list(row)} for row in rows],
    }


def choose(cells: Sequence[ScoredCell]) -> list[ScoredCell]:
    """Return the cells of which one is registered: from upstream, with the most examples."""
    inits = {cell.init for cell in cells}
    init = "upstream" if "upstream" in inits else min(inits)
    mine = [cell for cell in cells if cell.init == init]
    most = max((cell.examples_per_class for cell in mine), key=by_shots)
    return [cell for cell in mine if cell.examples_per_class == most]


def median_cell(group: Sequence[ScoredCell], metric: Metric) -> ScoredCell:
    """Return the cell with the median validation score; of several, that of the lowest seed."""
    middle = median_low(cell.val[metric] for cell in group)
    ties = (cell for cell in group if cell.val[metric] == middle)
    return min(ties, key=lambda cell: cell.seed)


def summary_rows(task: str, cells: Iterable[ScoredCell], metric: Metric) -> list[SummaryRow]:
    """Return one row per (init, examples per class): median and deviation of the test score."""
    groups: dict[tuple[str, int | str], list[ScoredCell]] = {}
    for cell in cells:
        groups.setdefault((cell.init, cell.examples_per_class), []).append(cell)
    rows = []
    for members in groups.values():
        scores = [cell.test[metric] for cell in members]
        middle, deviation = median_and_sd(scores)
        others = [name for name in members[0].test if name != metric]
        rows.append(
            SummaryRow(
                task=task,
                init=members[0].init,
                examples_per_class=members[0].examples_per_class,
                metric=metric,
                median=middle,
                sd=deviation,
                min=min(scores),
                max=max(scores),
                seeds=len(members),
                medians={
                    name: median_and_sd(cell.test[name] for cell in members)[0] for name in others
                },
            )
        )
    return rows


def _doubted(
    shards: Shards, scorer: Scorer, group: Sequence[ScoredCell], train_on: Sequence[str]
) -> tuple[list[tuple[int, DoubtedLabel]], int]:
    """Return the labels of any split that networks not trained on the image doubt.

    Returns:
        Index row and label, the most doubtful first; and how many images there was a network for.
    """
    found, examined = [], 0
    for split in shards.summary.splits:
        rows = shards.rows(split)
        paths = shards.index["path"].take(rows).to_pylist()
        probabilities = scorer.unseen(group, split, train_on)
        examined += int(np.isfinite(probabilities[:, 0]).sum())
        for issue in find_label_issues(probabilities, shards.labels(rows)):
            label = DoubtedLabel(
                path=paths[issue.position],
                split=split,
                given=shards.classes[issue.given],
                likely=shards.classes[issue.likely],
                given_probability=issue.given_probability,
                likely_probability=issue.likely_probability,
                picture="",
            )
            found.append((int(rows[issue.position]), label))
    found.sort(key=lambda own: (own[1].given_probability - own[1].likely_probability, own[1].path))
    return found, examined


def _nested(report: TaskReport) -> dict[str, float | dict[str, dict[str, float]]]:
    metric = report.metric
    by_init: dict[str, dict[str, dict[str, float]]] = {}
    for row in report.rows:
        k = row.examples_per_class
        by_init.setdefault(row.init, {})[str(k) if k == "full" else f"{k}_per_class"] = {
            f"{metric}_median": row.median,
            f"{metric}_sd": row.sd,
            **{f"{name}_median": value for name, value in row.medians.items()},
        }
    return {f"registered_test_{metric}": report.chosen.test[metric], **by_init}
