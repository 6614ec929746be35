"""Score every fine-tuned cell of a task on its test split, and say all there is to say of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.cells import Cells
from bigtransfer.config import EvaluateParams
from bigtransfer.data.decoding import decode_rgb
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import CheckpointError
from bigtransfer.evaluate.scoring import Scorer
from bigtransfer.metrics.accuracy import (
    confusion_matrix,
    median_and_sd,
    per_class_recall,
    softmax,
)
from bigtransfer.metrics.calibration import calibrated, calibration_error, reliability
from bigtransfer.metrics.label_issues import find_label_issues
from bigtransfer.metrics.multilabel import average_precision, multi_hot, sigmoid
from bigtransfer.model.processor import device_named, use_cpu
from bigtransfer.progress import tracked
from bigtransfer.report import page
from bigtransfer.report.table import by_shots
from bigtransfer.storage import (
    as_csv,
    as_json,
    new_folder,
    verify_folder,
    write_text,
)
from bigtransfer.storage.places import Place

_MISTAKES_SHOWN = 24
_SUSPECTS_SHOWN = 24
_MOST_CLASSES_SHOWN = 50
_FIT_TO_DOUBT = 0.5
"""Networks with a lower top-1 on validation are wrong more often than right; they doubt nobody."""


def evaluate(
    params: EvaluateParams,
    checkpoints: Path,
    shards_place: Place,
    report: Path,
    metrics: Path,
    cells_table: Path,
    predictions: Path,
    log: Callable[[int, dict[str, float]], None],
) -> dict[str, Any]:
    """Score the cells of a task and write its report.

    The report and the predictions are those of the cell that will be registered: from upstream,
    the most examples, the seed with the median validation score.

    Args:
        params: How.
        checkpoints: Written by `finetune`.
        shards_place: Shards of the task's dataset; needs the splits val and test.
        report: Folder to write `report.json` (all that the page needs), `per_class.csv` and
            `suspects.csv` into.
        metrics: JSON file to write the medians to, nested for `dvc metrics`.
        cells_table: CSV file to write a row per cell to.
        predictions: CSV file to write a row per test image to.
        log: Receives each cell's scores.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: If the checkpoints are damaged or were trained on other data.
    """
    use_cpu(params.threads)
    verify_folder(checkpoints, CheckpointError)
    listed = Cells.read(checkpoints)
    shards = open_shards(shards_place)
    if listed.shards_digest != shards.digest:
        raise CheckpointError(
            f"checkpoints {str(checkpoints)!r} were trained on other shards than "
            f"{str(shards_place)!r}; run `finetune` again"
        )
    scorer = Scorer(checkpoints, shards, params.batch_size, device_named(params.device))
    metric = "map" if listed.multi_label else "top1"
    cells = [{**cell.model_dump(), **scorer.on_validation(cell.folder)} for cell in listed.cells]
    group = choose(cells)
    chosen = median_cell(group, metric)
    scorer.keep([chosen["folder"], *(cell["folder"] for cell in group)])
    label = f"evaluate {listed.task}"
    for number, cell in enumerate(tracked(cells, label, len(cells), unit="cell")):
        cell |= scorer.on_test(cell["folder"])
        log(number, {key: cell[key] for key in cell if key.startswith(("val_", "test_"))})
    logits, meta = scorer.logits(chosen["folder"], "test")
    spoken = (_several if listed.multi_label else _one)(shards, logits, meta)
    guesses = spoken.pop("guesses")
    doubt = metric == "top1" and chosen["val_top1"] >= _FIT_TO_DOUBT
    suspects, examined = (
        _suspects(shards, scorer, group, listed.recipe["train_on"]) if doubt else ([], 0)
    )
    result = {
        "task": listed.task,
        "dataset": listed.dataset,
        "multi_label": listed.multi_label,
        "metric": metric,
        "classes": shards.classes,
        "test_digest": digest_of_split(shards, "test"),
        "test_images": len(guesses),
        "shards_digest": shards.digest,
        "upstream_digest": listed.upstream_digest,
        "rows": summary_rows(listed.task, cells, metric),
        "cells": cells,
        "chosen": chosen,
        "architecture": meta["architecture"],
        "hyperrule": meta["hyperrule"],
        "validation": meta["validation"],
        "suspects": [
            {**row, "picture": _picture(shards, row["row"])} for row in suspects[:_SUSPECTS_SHOWN]
        ],
        "suspects_found": len(suspects),
        "suspects_examined": examined,
        "suspects_sought": doubt,
        **spoken,
    }
    with new_folder(report) as folder:
        (folder / "report.json").write_text(as_json(result), "utf-8")
        (folder / "per_class.csv").write_text(as_csv(result["per_class"]), "utf-8")
        (folder / "suspects.csv").write_text(
            as_csv([_without_row(row) for row in suspects]) if suspects else "", "utf-8"
        )
    write_text(metrics, as_json(_nested(result)))
    shown = [{k: v for k, v in cell.items() if k != "folder"} for cell in cells]
    write_text(cells_table, as_csv(shown))
    write_text(predictions, as_csv([_without_row(guess) for guess in guesses]))
    return result


def confusion_to_show(result: dict[str, Any]) -> dict[str, Any]:
    """Return the confusion matrix as a UI takes it; empty where a page could not show it.

    Args:
        result: What `evaluate` returned.
    """
    classes = result["classes"]
    if result["multi_label"] or len(classes) > _MOST_CLASSES_SHOWN:
        return {}
    return {
        "annotationSpecs": [{"displayName": name} for name in classes],
        "rows": [{"row": row} for row in result["confusion"]],
    }


def choose(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells of which one is registered: from upstream, with the most examples."""
    inits = {cell["init"] for cell in cells}
    init = "upstream" if "upstream" in inits else min(inits)
    mine = [cell for cell in cells if cell["init"] == init]
    most = max((cell["examples_per_class"] for cell in mine), key=by_shots)
    return [cell for cell in mine if cell["examples_per_class"] == most]


def median_cell(group: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Return the cell with the median validation score; of several, that of the lowest seed."""
    middle = median_low(cell[f"val_{metric}"] for cell in group)
    ties = (cell for cell in group if cell[f"val_{metric}"] == middle)
    return min(ties, key=lambda cell: int(cell["seed"]))


def summary_rows(task: str, cells: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Return one row per (init, examples per class): median and deviation of the test score."""
    groups: dict[tuple[str, int | str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["init"], cell["examples_per_class"]), []).append(cell)
    rows = []
    for (init, k), members in groups.items():
        scores = [cell[f"test_{metric}"] for cell in members]
        middle, deviation = median_and_sd(scores)
        second = "micro_f1" if metric == "map" else "top5"
        rows.append(
            {
                "task": task,
                "init": init,
                "examples_per_class": k,
                "metric": metric,
                "median": middle,
                "sd": deviation,
                "min": min(scores),
                "max": max(scores),
                "seeds": len(members),
                f"{second}_median": median_and_sd(c[f"test_{second}"] for c in members)[0],
            }
        )
    return rows


def digest_of_split(shards: Shards, split: str) -> str:
    """Return a digest of the images and labels of a split, independent of their order."""
    return hashlib.sha256("\n".join(sorted(_lines(shards, split))).encode()).hexdigest()


def _lines(shards: Shards, split: str) -> list[str]:
    """Return for each image of a split what it is: its digest and its labels."""
    rows = shards.rows(split)
    hashes = shards.index["sha256"].take(rows).to_pylist()
    labels = shards.index["labels"].take(rows).to_pylist()
    return [
        f"{sha} {' '.join(shards.classes[label] for label in own)}"
        for sha, own in zip(hashes, labels, strict=True)
    ]


def _one(shards: Shards, logits: NDArray[np.float32], meta: dict[str, Any]) -> dict[str, Any]:
    """Return all there is to say of a network where an image has one label."""
    rows = shards.rows("test")
    labels = shards.labels(rows)
    validation = meta["validation"]
    probabilities = calibrated(logits, validation["temperature"])
    predicted = probabilities.argmax(axis=1)
    sure = probabilities[np.arange(len(rows)), predicted]
    raw = softmax(logits).max(axis=1)
    correct = predicted == labels
    confusion = confusion_matrix(predicted, labels, len(shards.classes))
    recall = [None if np.isnan(r) else float(r) for r in per_class_recall(confusion)]
    lowest = validation["abstain_below"]
    answered = sure >= lowest if lowest is not None else np.zeros(len(rows), bool)
    paths = shards.index["path"].take(rows).to_pylist()
    guesses = [
        {
            "row": int(rows[i]),
            "path": paths[i],
            "actual": shards.classes[labels[i]],
            "predicted": shards.classes[predicted[i]],
            "probability": float(sure[i]),
            "sure": bool(answered[i]),
        }
        for i in range(len(rows))
    ]
    wrong = [guesses[i] for i in np.flatnonzero(~correct)]
    worst = sorted(wrong, key=lambda guess: (-guess["probability"], guess["path"]))
    lines = _lines(shards, "test")
    return {
        "guesses": guesses,
        "confusion": confusion.tolist(),
        "per_class": [
            {"class": name, "images": int(images), "recall": own}
            for name, images, own in zip(shards.classes, confusion.sum(axis=1), recall, strict=True)
        ],
        "calibration": {
            "temperature": validation["temperature"],
            "error_raw": calibration_error(raw, correct),
            "error": calibration_error(sure, correct),
            "reliability": reliability(sure, correct),
            "abstain_below": lowest,
            "answered": float(answered.mean()),
            "answered_accuracy": float(correct[answered].mean()) if answered.any() else None,
        },
        "mistakes": [
            {**guess, "picture": _picture(shards, guess["row"])}
            for guess in worst[:_MISTAKES_SHOWN]
        ],
        # In the order of the digest's lines, so that two reports on one test split can be paired.
        "hits": "".join(
            str(int(correct[i])) for i in sorted(range(len(rows)), key=lambda i: (lines[i], i))
        ),
    }


def _several(shards: Shards, logits: NDArray[np.float32], meta: dict[str, Any]) -> dict[str, Any]:
    """Return all there is to say of a network where an image may have several labels."""
    rows = shards.rows("test")
    truth = multi_hot(shards.targets(rows), logits.shape[1])
    thresholds = np.array(meta["validation"]["thresholds"])
    probabilities = sigmoid(logits)
    predicted = probabilities >= thresholds
    precision = average_precision(logits, truth)
    names = np.array(shards.classes)
    paths = shards.index["path"].take(rows).to_pylist()
    return {
        "guesses": [
            {
                "row": int(rows[i]),
                "path": paths[i],
                "actual": " ".join(names[truth[i]]),
                "predicted": " ".join(names[predicted[i]]),
            }
            for i in range(len(rows))
        ],
        "per_class": [
            {
                "class": name,
                "images": int(truth[:, c].sum()),
                "average_precision": None if np.isnan(precision[c]) else float(precision[c]),
                "threshold": float(thresholds[c]),
            }
            for c, name in enumerate(shards.classes)
        ],
        "mistakes": [],
    }


def _suspects(
    shards: Shards, scorer: Scorer, group: list[dict[str, Any]], train_on: list[str]
) -> tuple[list[dict[str, Any]], int]:
    """Return the labels of any split that look wrong to networks not trained on the image.

    Returns:
        The suspects, and how many images there was a network for.
    """
    found, examined = [], 0
    for split in shards.summary["splits"]:
        rows = shards.rows(split)
        paths = shards.index["path"].take(rows).to_pylist()
        probabilities = scorer.unseen(group, split, train_on)
        examined += int(np.isfinite(probabilities[:, 0]).sum())
        for issue in find_label_issues(probabilities, shards.labels(rows)):
            found.append(
                {
                    "row": int(rows[issue.position]),
                    "path": paths[issue.position],
                    "split": split,
                    "given": shards.classes[issue.given],
                    "likely": shards.classes[issue.likely],
                    "given_probability": issue.given_probability,
                    "likely_probability": issue.likely_probability,
                }
            )
    found.sort(key=lambda row: (row["given_probability"] - row["likely_probability"], row["path"]))
    return found, examined


def _picture(shards: Shards, row: int) -> str:
    return page.picture(decode_rgb(shards.reader().read(row)))


def _without_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "row"}


def _nested(result: dict[str, Any]) -> dict[str, Any]:
    metric = result["metric"]
    metrics: dict[str, Any] = {f"registered_test_{metric}": result["chosen"][f"test_{metric}"]}
    for row in result["rows"]:
        k = row["examples_per_class"]
        name = k if k == "full" else f"{k}_per_class"
        kept = {key: row[key] for key in row if key.endswith("_median")}
        metrics.setdefault(row["init"], {})[name] = {
            f"{metric}_median": row["median"],
            f"{metric}_sd": row["sd"],
            **kept,
        }
    return metrics
