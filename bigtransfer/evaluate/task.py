"""Score every fine-tuned cell of a task on its validation and test split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bigtransfer import page
from bigtransfer.data.batches import Squares
from bigtransfer.data.decoding import decode_rgb
from bigtransfer.data.shards import Shards, open_shards
from bigtransfer.errors import CheckpointError
from bigtransfer.evaluate.metrics import (
    confusion_matrix,
    median_and_sd,
    per_class_recall,
    softmax,
    topk_accuracy,
)
from bigtransfer.evaluate.prediction import predict
from bigtransfer.model.checkpoint import load_checkpoint
from bigtransfer.progress import tracked
from bigtransfer.storage import (
    as_csv,
    as_json,
    new_folder,
    read_json,
    verify_folder,
    write_text,
)

_MISTAKES_SHOWN = 24


def evaluate(
    checkpoints: Path,
    shards_folder: Path,
    report: Path,
    metrics: Path,
    cells_table: Path,
    predictions: Path,
    *,
    batch_size: int,
    threads: int,
    log: Callable[[int, dict[str, float]], None],
) -> dict[str, Any]:
    """Score the cells of a task and write its report.

    The report and the predictions are those of the cell that will be registered: from upstream,
    the most examples, the seed with the median validation top-1.

    Args:
        checkpoints: Written by `finetune`.
        shards_folder: Shards of the task's dataset; needs the splits val and test.
        report: Folder to write `report.json` (all that the page needs) and `per_class.csv` into.
        metrics: JSON file to write the medians to, nested for `dvc metrics`.
        cells_table: CSV file to write a row per cell to.
        predictions: CSV file to write a row per test image to.
        batch_size: Images per forward pass.
        threads: Of PyTorch.
        log: Receives each cell's scores.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: If the checkpoints are damaged or were trained on other data.
    """
    torch.set_num_threads(threads)
    verify_folder(checkpoints, CheckpointError)
    listed = read_json(checkpoints / "cells.json")
    shards = open_shards(shards_folder)
    if listed["shards_digest"] != shards.digest:
        raise CheckpointError(
            f"checkpoints {str(checkpoints)!r} were trained on other shards than "
            f"{str(shards_folder)!r}; run `finetune` again"
        )
    scorer = _Scorer(checkpoints, shards, batch_size)
    cells = []
    label = f"evaluate {listed['task']}"
    for number, cell in enumerate(
        tracked(listed["cells"], label, len(listed["cells"]), unit="cell")
    ):
        scores = scorer.score(cell["folder"])
        cells.append({**cell, **scores})
        log(number, scores)
    chosen = choose(cells)
    guesses = _guesses(shards, scorer.logits(chosen["folder"], "test"))
    result = {
        "task": listed["task"],
        "dataset": listed["dataset"],
        "classes": shards.classes,
        "test_digest": digest_of_split(shards, "test"),
        "test_images": len(guesses),
        "shards_digest": shards.digest,
        "upstream_digest": listed["upstream_digest"],
        "rows": summary_rows(listed["task"], cells),
        "cells": cells,
        "chosen": chosen,
        **_details(shards, guesses),
    }
    recalls = zip(shards.classes, result["recall"], strict=True)
    with new_folder(report) as folder:
        (folder / "report.json").write_text(as_json(result), "utf-8")
        table = as_csv([{"class": name, "recall": recall} for name, recall in recalls])
        (folder / "per_class.csv").write_text(table, "utf-8")
    write_text(metrics, as_json(_nested(result)))
    shown = [{k: v for k, v in cell.items() if k != "folder"} for cell in cells]
    write_text(cells_table, as_csv(shown))
    write_text(predictions, as_csv([{k: v for k, v in g.items() if k != "row"} for g in guesses]))
    return result


def choose(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the cell to register: from upstream, most examples, median validation top-1."""
    inits = {cell["init"] for cell in cells}
    init = "upstream" if "upstream" in inits else min(inits)
    most = max(cell["examples_per_class"] for cell in cells if cell["init"] == init)
    group = [c for c in cells if c["init"] == init and c["examples_per_class"] == most]
    middle = median_low(cell["val_top1"] for cell in group)
    return min((c for c in group if c["val_top1"] == middle), key=lambda cell: int(cell["seed"]))


def summary_rows(task: str, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per (init, examples per class): median and deviation of test top-1."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["init"], cell["examples_per_class"]), []).append(cell)
    rows = []
    for (init, k), members in groups.items():
        middle, deviation = median_and_sd(cell["test_top1"] for cell in members)
        rows.append(
            {
                "task": task,
                "init": init,
                "examples_per_class": k,
                "median": middle,
                "sd": deviation,
                "min": min(cell["test_top1"] for cell in members),
                "max": max(cell["test_top1"] for cell in members),
                "seeds": len(members),
                "top5_median": median_and_sd(cell["test_top5"] for cell in members)[0],
            }
        )
    return rows


def digest_of_split(shards: Shards, split: str) -> str:
    """Return a digest of the images and labels of a split, independent of their order."""
    rows = shards.rows(split)
    labels = [shards.classes[label] for label in shards.labels(rows)]
    hashes = shards.index["sha256"].take(rows).to_pylist()
    lines = sorted(f"{sha} {label}" for sha, label in zip(hashes, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class _Scorer:
    """Runs cells over splits that are decoded once."""

    def __init__(self, checkpoints: Path, shards: Shards, batch_size: int) -> None:
        self._checkpoints = checkpoints
        self._shards = shards
        self._batch_size = batch_size
        self._squares: dict[tuple[str, int], Squares] = {}

    def logits(self, cell: str, split: str) -> NDArray[np.float32]:
        model, meta = load_checkpoint(self._checkpoints / cell)
        return predict(model, self._split(split, meta["crop"]), self._batch_size)

    def score(self, cell: str) -> dict[str, float]:
        model, meta = load_checkpoint(self._checkpoints / cell)
        scores = {}
        for split in ("val", "test"):
            squares = self._split(split, meta["crop"])
            logits = predict(model, squares, self._batch_size)
            for k in (1, 5):
                scores[f"{split}_top{k}"] = topk_accuracy(logits, squares.labels, k)
        return scores

    def _split(self, split: str, side: int) -> Squares:
        if (split, side) not in self._squares:
            self._squares[split, side] = Squares(self._shards, self._shards.rows(split), side)
        return self._squares[split, side]


def _guesses(shards: Shards, logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return one row per test image: path, actual and predicted class, probability."""
    rows = shards.rows("test")
    labels = shards.labels(rows)
    probabilities = softmax(logits)
    predicted = probabilities.argmax(axis=1)
    paths = shards.index["path"].take(rows).to_pylist()
    return [
        {
            "row": int(rows[i]),
            "path": paths[i],
            "actual": shards.classes[labels[i]],
            "predicted": shards.classes[predicted[i]],
            "probability": float(probabilities[i, predicted[i]]),
        }
        for i in range(len(rows))
    ]


def _details(shards: Shards, guesses: list[dict[str, Any]]) -> dict[str, Any]:
    """Return confusion, recall per class and the worst mistakes."""
    number = {name: i for i, name in enumerate(shards.classes)}
    confusion = confusion_matrix(
        np.array([number[guess["predicted"]] for guess in guesses]),
        np.array([number[guess["actual"]] for guess in guesses]),
        len(number),
    )
    wrong = [guess for guess in guesses if guess["predicted"] != guess["actual"]]
    worst = sorted(wrong, key=lambda guess: (-guess["probability"], guess["path"]))
    reader = shards.reader()
    return {
        "confusion": confusion.tolist(),
        "recall": [None if np.isnan(r) else float(r) for r in per_class_recall(confusion)],
        "mistakes": [
            {**guess, "picture": page.picture(decode_rgb(reader.read(guess["row"])))}
            for guess in worst[:_MISTAKES_SHOWN]
        ],
    }


def _nested(result: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = {"registered_test_top1": result["chosen"]["test_top1"]}
    for row in result["rows"]:
        metrics.setdefault(row["init"], {})[f"{row['examples_per_class']}_per_class"] = {
            "top1_median": row["median"],
            "top1_sd": row["sd"],
            "top5_median": row["top5_median"],
        }
    return metrics
