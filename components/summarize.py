"""Write one page over all tasks. Local only: on a cluster each task's report stands in the UI."""

from __future__ import annotations

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
    from bigtransfer.report.summary import write_report
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
    stage.journal.file(report / "index.html")
    stage.journal.file(report / "metrics.json")


if __name__ == "__main__":
    main(COMPONENT, run)
