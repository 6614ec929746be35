"""Score the fine-tuned networks of one task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import EvaluateParams

COMPONENT = Component(
    "evaluate",
    "Score every fine-tuned network: top-1, top-5, per class, confusion; medians over seeds.",
    params="EvaluateParams",
    section="evaluate",
    reads={
        "checkpoints": "folder written by finetune",
        "shards": "shards of the task's dataset",
    },
    writes={
        "report": "folder with report.json (all that the page needs) and per_class.csv",
        "metrics": "JSON file of the medians, for dvc metrics",
        "cells": "CSV file, one row per network",
        "predictions": "CSV file, one row per test image, of the network that will be registered",
        "page": "HTML file, the report of this task",
        "confusion": "JSON file, the confusion matrix as Kubeflow Pipelines shows it",
        "model": "MLflow model folder of the network that will be registered",
    },
)


def run(
    stage: Stage,
    params: EvaluateParams,
    *,
    checkpoints: Path,
    shards: Path,
    report: Path,
    metrics: Path,
    cells: Path,
    predictions: Path,
    page: Path,
    confusion: Path,
    model: Path,
) -> None:
    """Evaluate one task."""
    from bigtransfer.api.served.folder import write_served
    from bigtransfer.evaluate.task import Outputs, confusion_to_show, evaluate
    from bigtransfer.model.checkpoint import read_tuned_meta
    from bigtransfer.report.card import model_card
    from bigtransfer.report.summary import render_report
    from bigtransfer.report.table import METRICS, others_of
    from bigtransfer.storage import as_json, write_text
    from bigtransfer.track.origin import git_commit

    outputs = Outputs(report, metrics, cells, predictions)
    result = evaluate(params, checkpoints, shards, outputs, stage.log)
    stage.journal.dataset(
        result.dataset,
        result.test_digest,
        str(shards),
        {"test_images": result.test_images},
    )
    for row in result.rows:
        group = f"{row.init}_{row.examples_per_class}_per_class"
        medians = {row.metric: row.median, **row.medians}
        stage.log(0, {f"{group}/{name}_median": value for name, value in medians.items()})
        stage.log(0, {f"{group}/{row.metric}_sd": row.sd})
        print(
            f"{row.task}: {row.init}, {row.examples_per_class} per class: "
            f"{METRICS[row.metric]} {100 * row.median:.1f} ± {100 * row.sd:.1f} %" + others_of(row)
        )
    own = result.headline
    stage.journal.headline(
        metrics={
            f"{result.task}/test_{own.metric}_median": own.median,
            f"{result.task}/test_{own.metric}_sd": own.sd,
        }
    )
    if result.baseline is not None:
        stage.log(0, {"baseline_top1": result.baseline})
        print(
            f"{result.task}: always saying {result.largest_class!r} would be right in "
            f"{100 * result.baseline:.1f} % of the test images"
        )
    chosen = checkpoints / result.chosen.folder
    meta, commit = read_tuned_meta(chosen), git_commit(stage.project)
    write_served(model, chosen, card=model_card(result, meta, commit=commit))
    write_text(confusion, as_json(confusion_to_show(result)))
    write_text(
        page,
        render_report(
            {result.task: result},
            params=as_json(meta.hyperrule),
            commit=commit,
        ),
    )
    for path in (metrics, cells, predictions, page):
        stage.journal.file(path)


if __name__ == "__main__":
    main(COMPONENT, run)
