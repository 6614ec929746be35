"""One self-contained page over all tasks, and its headline figures as JSON."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigtransfer.artifacts.report import SummaryRow, TaskReport
from bigtransfer.artifacts.validation import ValidationReport
from bigtransfer.artifacts.weights import UpstreamMeta
from bigtransfer.progress import counted
from bigtransfer.report import charts, page
from bigtransfer.report.headline import cards_of
from bigtransfer.report.headline_table import headline_columns
from bigtransfer.report.table import metric_names
from bigtransfer.report.task_section import task_section
from bigtransfer.report.words import methods_in_words
from bigtransfer.storage import as_json, digest_of, new_folder, read_json
from bigtransfer.version import __version__


def write_report(
    output: Path,
    *,
    pretrain: Path | None,
    datasets: dict[str, Path],
    evaluations: dict[str, Path],
    registrations: dict[str, Path],
    params: str,
    commit: str,
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
    """
    results = {name: TaskReport.read(folder / "report") for name, folder in evaluations.items()}
    html = render_report(
        results,
        registrations=registrations,
        upstream=None if pretrain is None else _upstream(pretrain),
        datasets=[_dataset(name, folder, output) for name, folder in datasets.items()],
        params=params,
        commit=commit,
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
    return page.render(
        Path(__file__).with_name("summary.html"),
        tasks=[
            task_section(name, result, registered.get(name), number)
            for number, (name, result) in enumerate(results.items(), start=1)
        ],
        cards=cards_of(results, registered),
        headline=headline_columns(results) if len(rows) > 1 else [],
        seeds=_seeds(rows),
        methods=methods_in_words(result.hyperrule for result in results.values()),
        architectures=", ".join(dict.fromkeys(r.architecture for r in results.values())),
        metric_names=metric_names(rows),
        upstream=upstream,
        datasets=datasets,
        flagged=any(dataset["flagged"] for dataset in datasets),
        params=params,
        commit=commit,
        version=__version__,
    )


def _rows(results: Mapping[str, TaskReport]) -> list[SummaryRow]:
    return [row for result in results.values() for row in result.rows]


def _seeds(rows: Sequence[SummaryRow]) -> str:
    """Return how many seeds the rows are over, e.g. `3 seeds`, or `1 to 3 seeds`."""
    least, most = min(row.seeds for row in rows), max(row.seeds for row in rows)
    return counted(most, "seed") if least == most else f"{least} to {counted(most, 'seed')}"


def _upstream(folder: Path) -> page.Shown:
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    loss, top1 = charts.learning_curve(history)
    scored = sum(1 for row in history if row["val_top1"])
    checkpoint = folder / "checkpoint"
    return {
        "metrics": read_json(folder / "metrics.json"),
        "meta": UpstreamMeta.read(checkpoint),
        "loss": loss if len(history) > 1 else "",
        "top1": top1 if scored > 1 else "",
    }


def _dataset(name: str, folder: Path, output: Path) -> page.Shown:
    counts = ValidationReport.read(folder / "validation").counts
    return {
        "name": name,
        "counts": counts,
        "flagged": ", ".join(
            f"{images:,} {flag.replace('_', ' ')}"
            for flag, images in counts.flags.items()
            if images
        ),
        "digest": digest_of(folder / "shards"),
        "page": Path(os.path.relpath(folder / "validation" / "index.html", output)).as_posix(),
    }
