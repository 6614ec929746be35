"""Register the model of one task in MLflow and set its alias."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import RegisterParams

COMPONENT = Component(
    "register",
    "Register the network with the median validation score as a model version, to be promoted.",
    params="RegisterParams",
    section="register",
    reads={
        "checkpoints": "folder written by finetune",
        "model": "MLflow model folder written by evaluate",
        "report": "folder written by evaluate",
        "audit": "folder written by audit",
    },
    writes={"registration": "JSON file: model name, version, alias, run id"},
)


def run(
    stage: Stage,
    params: RegisterParams,
    *,
    checkpoints: Path,
    model: Path,
    report: Path,
    audit: Path,
    registration: Path,
) -> None:
    """Register one task's model."""
    from bigtransfer.artifacts.audit import Audit
    from bigtransfer.artifacts.cells import Cells
    from bigtransfer.artifacts.report import TaskReport
    from bigtransfer.errors import CheckpointError
    from bigtransfer.report.table import METRICS
    from bigtransfer.storage import verify_folder
    from bigtransfer.track.origin import environment_of, git_commit
    from bigtransfer.track.registry import register
    from bigtransfer.track.versions import MANIFESTS_TAG

    verify_folder(checkpoints, CheckpointError)
    for folder in (model, report, audit):
        verify_folder(folder)
    result = TaskReport.read(report)
    chosen, score = result.chosen, result.chosen.test[result.metric]
    folders = {
        "checkpoint": checkpoints / chosen.folder,
        "model": model,
        "report": report,
        "audit": audit,
    }
    if params.promote is not None:
        print(
            "register.promote is not read any more: a version is promoted by `bigtransfer promote` "
            "or in the MLflow UI, the first by register.first; remove it from params.yaml"
        )
    outcome = register(
        stage.project,
        f"{params.name_prefix}{result.task}",
        folders,
        origin=Cells.read(checkpoints).upstream,
        tags={
            "task": result.task,
            "dataset": result.dataset,
            "architecture": result.architecture,
            "init": chosen.init,
            "examples_per_class": str(chosen.examples_per_class),
            "seed": str(chosen.seed),
            "upstream_digest": result.upstream_digest,
            "shards_digest": result.shards_digest,
            "git_commit": git_commit(stage.project),
            MANIFESTS_TAG: json.dumps(Audit.read(audit).datasets, sort_keys=True),
        },
        made_in=environment_of(stage.project),
        metrics=chosen.figures(),
        score=score,
        dataset={"name": result.dataset, "digest": result.shards_digest},
        description=f"{result.architecture} from {chosen.init}, "
        f"{chosen.examples_per_class} examples per class, {len(result.classes)} classes: "
        f"test {METRICS[result.metric]} {100 * score:.1f} % of "
        f"{result.test_images:,} images",
        test_digest=result.test_digest,
        first=params.first_alias,
        rules=params.gates,
        records_at=params.records_at,
    )
    stage.journal.tags({"model": outcome.name, "model_version": outcome.version})
    outcome.write_file(registration)
    print(
        f"{outcome.name} version {outcome.version} ({'new' if outcome.new else 'known'}): "
        f"{outcome.alias or 'no alias'}, {outcome.reason}"
    )


if __name__ == "__main__":
    main(COMPONENT, run)
