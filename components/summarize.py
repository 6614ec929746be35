"""Write one page over all tasks. Local only: on a cluster each task's report stands in the UI."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import SummarizeParams

COMPONENT = Component(
    "summarize",
    "Write the report over all tasks, artifacts/report, and close the MLflow run.",
    params="SummarizeParams",
    section="summarize",
    reads={
        "pretrain": "folder of the upstream checkpoint, its metrics and history",
        "datasets": "folder of every dataset's manifest, validation and shards",
        "evaluations": "folder of every task's evaluation report",
        "registrations": "folder of every task's registration",
        "config": "params.yaml, to show which params made it all",
    },
    writes={"report": "folder with index.html and metrics.json"},
)

_TOLD = ("materialize", "pretrain", "finetune", "tasks")
"""Sections of params.yaml that the run of the whole workflow shows in MLflow."""


def run(
    stage: Stage,
    params: SummarizeParams,
    *,
    pretrain: Path,
    datasets: Path,
    evaluations: Path,
    registrations: Path,
    config: Path,
    report: Path,
) -> None:
    """Summarize all tasks."""
    from bigtransfer.artifacts.registration import Registration
    from bigtransfer.artifacts.report import TaskReport
    from bigtransfer.config import read_yaml
    from bigtransfer.report.summary import write_report
    from bigtransfer.report.table import as_markdown
    from bigtransfer.track.origin import git_commit

    used = {params.upstream, *params.tasks.values()}
    write_report(
        report,
        pretrain=pretrain,
        datasets={name: datasets / name for name in params.datasets if name in used},
        evaluations={name: evaluations / name for name in params.tasks},
        registrations={name: registrations / name / Registration.FILE for name in params.tasks},
        params=config.read_text("utf-8"),
        commit=git_commit(stage.project),
    )
    files = [report / "index.html", report / "metrics.json"]
    for path in files:
        stage.journal.file(path)
    results = [TaskReport.read(evaluations / name / "report") for name in params.tasks]
    stage.journal.headline(
        params=_flat({name: own for name, own in read_yaml(config).items() if name in _TOLD}),
        note=as_markdown(row for result in results for row in result.rows),
        files=files,
    )


def _flat(values: Mapping[str, object], before: str = "") -> dict[str, object]:
    """Return nested values under one name each, e.g. `pretrain.epochs`."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


if __name__ == "__main__":
    main(COMPONENT, run)
