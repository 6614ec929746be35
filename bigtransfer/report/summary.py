"""One self-contained page over all tasks, and its headline figures as JSON."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bigtransfer
from bigtransfer.artifacts.registration import Registration
from bigtransfer.report import charts, page
from bigtransfer.report.table import METRICS, by_shots, headline_rows, metric_names
from bigtransfer.storage import as_json, digest_of, new_folder, read_json

_CONFUSED_SHOWN = 8


def write_report(
    output: Path,
    *,
    pretrain: Path | None,
    datasets: dict[str, Path],
    evaluations: dict[str, Path],
    registrations: dict[str, Path],
    params: str,
    commit: str,
) -> list[dict[str, Any]]:
    """Write `index.html` and `metrics.json`.

    Args:
        output: Folder to write.
        pretrain: Folder of the upstream checkpoint, its metrics and its history; None: not at hand.
        datasets: Folder of each dataset's manifest, validation and shards, by name.
        evaluations: Evaluation folder of each task (holding `report/`), by name.
        registrations: Registration file of each task, by name.
        params: Text of the params that made it all.
        commit: Git commit, empty where there is none.

    Returns:
        The rows of `metrics.json`: task, init, examples_per_class, median, sd of test top-1.
    """
    results = {
        name: read_json(folder / "report" / "report.json") for name, folder in evaluations.items()
    }
    html = render_report(
        results,
        registrations=registrations,
        upstream=None if pretrain is None else _upstream(pretrain),
        datasets=[_dataset(name, folder, output) for name, folder in datasets.items()],
        params=params,
        commit=commit,
    )
    rows = _rows(results)
    kept = ("task", "init", "examples_per_class", "metric", "median", "sd")
    with new_folder(output) as folder:
        (folder / "index.html").write_text(html, "utf-8")
        figures = {"rows": [{key: row[key] for key in kept} for row in rows]}
        (folder / "metrics.json").write_text(as_json(figures), "utf-8")
    return rows


def render_report(
    results: dict[str, dict[str, Any]],
    *,
    registrations: Mapping[str, Path] | None = None,
    upstream: dict[str, Any] | None = None,
    datasets: Sequence[dict[str, Any]] = (),
    params: str,
    commit: str,
) -> str:
    """Return the page as HTML, in one piece.

    Args:
        results: What `evaluate` returned for each task, by name.
        registrations: Registration file of each task, by name.
        upstream: Metrics, meta and curves of the upstream training, where at hand.
        datasets: Facts of each dataset, where at hand.
        params: Text of the params that made it all.
        commit: Git commit, empty where there is none.
    """
    registered = registrations or {}
    rows = _rows(results)
    headline = headline_rows(rows)
    return page.render(
        Path(__file__).with_name("summary.html"),
        tasks=[_task(name, result, registered.get(name)) for name, result in results.items()],
        cards=_cards(headline, results, registered),
        headline=headline,
        metric_names=metric_names(rows),
        upstream=upstream,
        datasets=datasets,
        params=params,
        commit=commit,
        version=bigtransfer.__version__,
    )


def _rows(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for result in results.values() for row in result["rows"]]


def _cards(
    headline: list[dict[str, str]], results: dict[str, Any], registrations: Mapping[str, Path]
) -> list[dict[str, str]]:
    cards = []
    for name, result in results.items():
        mine = [row for row in headline if row["task"] == name]
        most = max(mine, key=lambda row: by_shots(row["examples_per_class"]))
        metric, standing = result["metric"], _standing(registrations.get(name))
        cards.append(
            {
                "value": f"{100 * result['chosen'][f'test_{metric}']:.1f} %",
                "label": f"{name}: test {METRICS[metric]} of the {standing} model",
            }
        )
        if most["difference"] != "–":
            cards.append(
                {
                    "value": most["difference"],
                    "label": f"{name}: points over scratch, {most['examples_per_class']} per class",
                }
            )
    return cards


def _standing(registration: Path | None) -> str:
    return "chosen" if registration is None else "registered"


def _task(name: str, result: dict[str, Any], registration: Path | None) -> dict[str, Any]:
    classes = result["classes"]
    score = "average_precision" if result["multi_label"] else "recall"
    per_class = [{**row, "score": row[score]} for row in result["per_class"]]
    shown = {
        **result,
        "name": name,
        "metric_name": METRICS[result["metric"]],
        "few_shot": charts.few_shot(result["rows"]),
        "named": len(classes) <= 20,
        "per_class": sorted(per_class, key=lambda r: 2.0 if r["score"] is None else r["score"]),
        "registration": Registration.read_file(registration) if registration else None,
        "standing": _standing(registration),
    }
    if not result["multi_label"]:
        matrix = np.array(result["confusion"])
        shown["confusion_svg"] = charts.confusion(matrix, classes)
        shown["confused"] = _most_confused(matrix, classes)
        shown["reliability"] = charts.reliability(result["calibration"]["reliability"])
    return shown


def _most_confused(matrix: NDArray[np.int64], classes: list[str]) -> list[dict[str, Any]]:
    off_diagonal = matrix * (1 - np.eye(len(classes), dtype=np.int64))
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[:_CONFUSED_SHOWN]
    pairs = [divmod(int(i), len(classes)) for i in order if off_diagonal.flat[i]]
    return [
        {
            "actual": classes[i],
            "predicted": classes[j],
            "images": int(matrix[i, j]),
            "total": int(matrix[i].sum()),
        }
        for i, j in pairs
    ]


def _upstream(folder: Path) -> dict[str, Any]:
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    loss, top1 = charts.learning_curve(history)
    checkpoint = folder / "checkpoint"
    meta = read_json(checkpoint / "meta.json")
    return {
        "metrics": read_json(folder / "metrics.json"),
        "meta": {**meta, "digest": digest_of(checkpoint)},
        "loss": loss,
        "top1": top1,
    }


def _dataset(name: str, folder: Path, output: Path) -> dict[str, Any]:
    verdict = read_json(folder / "validation" / "validation.json")
    return {
        "name": name,
        "counts": verdict["counts"],
        "copies": sum(verdict["counts"]["flags"].values()),
        "digest": digest_of(folder / "shards"),
        "page": Path(os.path.relpath(folder / "validation" / "index.html", output)).as_posix(),
    }
