"""One self-contained page over all tasks, and its headline figures as JSON."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bigtransfer.artifacts.registration import Registration
from bigtransfer.artifacts.report import SummaryRow, TaskReport
from bigtransfer.artifacts.validation import ValidationReport
from bigtransfer.artifacts.weights import UpstreamMeta
from bigtransfer.progress import counted
from bigtransfer.report import charts, page
from bigtransfer.report.sweep import Sweep, group_rows, published_rows, table_rows
from bigtransfer.report.table import METRICS, by_shots, headline_rows, metric_names
from bigtransfer.storage import as_json, digest_of, new_folder, read_json
from bigtransfer.version import __version__

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
    sweep: Sweep | None = None,
) -> None:
    """Write `index.html` and `metrics.json`.

    Args:
        output: Folder to write.
        pretrain: Folder of the upstream checkpoint, its metrics and its history; None: not at hand.
        datasets: Folder of each dataset's manifest, validation and shards, by name.
        evaluations: Evaluation folder of each task (holding `report/`), by name.
        registrations: Registration file of each task, by name.
        params: Text of the params that made it all.
        commit: Git commit, empty where there is none.
        sweep: Whose tables the page shows; None: transfer beside scratch.
    """
    results = {name: TaskReport.read(folder / "report") for name, folder in evaluations.items()}
    html = render_report(
        results,
        registrations=registrations,
        upstream=None if pretrain is None else _upstream(pretrain),
        datasets=[_dataset(name, folder, output) for name, folder in datasets.items()],
        params=params,
        commit=commit,
        sweep=sweep,
    )
    kept = {"task", "init", "examples_per_class", "metric", "median", "sd"}
    with new_folder(output) as folder:
        (folder / "index.html").write_text(html, "utf-8")
        figures = {"rows": [row.model_dump(include=kept) for row in _rows(results)]}
        (folder / "metrics.json").write_text(as_json(figures), "utf-8")


def render_report(
    results: Mapping[str, TaskReport],
    *,
    registrations: Mapping[str, Path] | None = None,
    upstream: page.Shown | None = None,
    datasets: Sequence[page.Shown] = (),
    params: str,
    commit: str,
    sweep: Sweep | None = None,
) -> str:
    """Return the page as HTML, in one piece.

    Args:
        results: What `evaluate` returned for each task, by name.
        registrations: Registration file of each task, by name.
        upstream: Metrics, meta and curves of the upstream training, where at hand.
        datasets: Facts of each dataset, where at hand.
        params: Text of the params that made it all.
        commit: Git commit, empty where there is none.
        sweep: Whose tables the page shows; None: transfer beside scratch.
    """
    registered = registrations or {}
    rows = _rows(results)
    headline = headline_rows(rows)
    return page.render(
        Path(__file__).with_name("summary.html"),
        tasks=[_task(name, result, registered.get(name)) for name, result in results.items()],
        cards=_cards(headline, results, registered),
        headline=headline,
        seeds=_seeds(rows),
        architectures=", ".join(dict.fromkeys(r.architecture for r in results.values())),
        swept=None if sweep is None else _swept(sweep),
        metric_names=metric_names(rows),
        upstream=upstream,
        datasets=datasets,
        params=params,
        commit=commit,
        version=__version__,
    )


def _rows(results: Mapping[str, TaskReport]) -> list[SummaryRow]:
    return [row for result in results.values() for row in result.rows]


def _cards(
    headline: list[dict[str, str]],
    results: Mapping[str, TaskReport],
    registrations: Mapping[str, Path],
) -> list[dict[str, str]]:
    cards = []
    for name, result in results.items():
        mine = [row for row in headline if row["task"] == result.task]
        most = max(mine, key=lambda row: by_shots(row["examples_per_class"]))
        metric, chosen, row = METRICS[result.metric], result.chosen, _row_of_chosen(result)
        median = f"{100 * row.median:.1f} %"
        if name in registrations:
            value = f"{100 * chosen.test[result.metric]:.1f} %"
            label = (
                f"{name}: test {metric} of the registered model, seed {chosen.seed} alone; the "
                f"median of {counted(row.seeds, 'seed')} is {median}"
            )
        else:
            value = median
            label = (
                f"{name}: test {metric}, median of {counted(row.seeds, 'seed')}, "
                f"{_init(row.init)}, {_shots(row.examples_per_class)}"
            )
        cards.append({"value": value, "label": label})
        if most["difference"] != "–":
            shots = _shots(most["examples_per_class"])
            cards.append(
                {
                    "value": most["difference"],
                    "label": f"{name}: points over scratch, between medians, {shots}",
                }
            )
    return cards


def _row_of_chosen(result: TaskReport) -> SummaryRow:
    """Return the summary of the networks that differ from the chosen one by their seed alone."""
    kind = (result.chosen.init, result.chosen.examples_per_class)
    return next(row for row in result.rows if (row.init, row.examples_per_class) == kind)


def _init(init: str) -> str:
    return "transfer" if init == "upstream" else "from scratch"


def _shots(examples_per_class: int | str) -> str:
    return "all images" if examples_per_class == "full" else f"{examples_per_class} per class"


def _seeds(rows: Sequence[SummaryRow]) -> str:
    """Return how many seeds the rows are over, e.g. `3 seeds`, or `1 to 3 seeds`."""
    least, most = min(row.seeds for row in rows), max(row.seeds for row in rows)
    return counted(most, "seed") if least == most else f"{least} to {counted(most, 'seed')}"


def _swept(sweep: Sweep) -> page.Shown:
    """Return the tables of a sweep: the very figures of its other files."""
    groups, published = published_rows(sweep.published)
    return {
        "rows": table_rows(sweep.tasks),
        "groups": group_rows(sweep.tasks, sweep.sizes),
        "published_groups": groups,
        "published": published,
    }


def _standing(registration: Path | None) -> str:
    return "chosen" if registration is None else "registered"


def _task(name: str, result: TaskReport, registration: Path | None) -> page.Shown:
    shown: dict[str, object] = {
        "name": name,
        "report": result,
        "metric_name": METRICS[result.metric],
        "median_row": _row_of_chosen(result),
        "few_shot": charts.few_shot(result.rows),
        "named": len(result.classes) <= 20,
        "per_class": sorted(
            result.per_class, key=lambda row: 2.0 if row.score is None else row.score
        ),
        "registration": Registration.read_file(registration) if registration else None,
        "standing": _standing(registration),
    }
    if result.confusion is not None and result.reliability is not None:
        matrix = np.array(result.confusion)
        shown["confusion_svg"] = charts.confusion(matrix, result.classes)
        shown["confused"] = _most_confused(matrix, result.classes)
        shown["reliability_svg"] = charts.reliability(result.reliability.bins)
    return shown


def _most_confused(matrix: NDArray[np.int64], classes: Sequence[str]) -> list[page.Shown]:
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


def _upstream(folder: Path) -> page.Shown:
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    loss, top1 = charts.learning_curve(history)
    checkpoint = folder / "checkpoint"
    return {
        "metrics": read_json(folder / "metrics.json"),
        "meta": UpstreamMeta.read(checkpoint),
        "loss": loss,
        "top1": top1,
    }


def _dataset(name: str, folder: Path, output: Path) -> page.Shown:
    counts = ValidationReport.read(folder / "validation").counts
    return {
        "name": name,
        "counts": counts,
        "copies": sum(counts.flags.values()),
        "digest": digest_of(folder / "shards"),
        "page": Path(os.path.relpath(folder / "validation" / "index.html", output)).as_posix(),
    }
