"""Register the model of one task in MLflow and settle its alias."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import RegisterParams

COMPONENT = Component(
    "register",
    "Register the run with the median validation top-1 as a model version; challenger or champion.",
    params="RegisterParams",
    section="register",
    reads={
        "checkpoints": "folder written by finetune",
        "model": "MLflow model folder written by evaluate",
        "report": "folder written by evaluate",
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
    registration: Path,
) -> None:
    """Register one task's model."""
    from bigtransfer.errors import CheckpointError
    from bigtransfer.report.table import METRICS
    from bigtransfer.storage import digest_of, read_json, verify_folder
    from bigtransfer.track.origin import git_commit
    from bigtransfer.track.registry import register

    verify_folder(checkpoints, CheckpointError)
    for folder in (model, report):
        verify_folder(folder)
    result = read_json(report / "report.json")
    chosen, metric = result["chosen"], result["metric"]
    checkpoint = checkpoints / chosen["folder"]
    meta = read_json(checkpoint / "meta.json")
    outcome = register(
        stage.project,
        f"{params.name_prefix}{result['task']}",
        model,
        checkpoint=checkpoint,
        tags={
            "task": result["task"],
            "architecture": meta["architecture"],
            "init": chosen["init"],
            "examples_per_class": str(chosen["examples_per_class"]),
            "seed": str(chosen["seed"]),
            "upstream_digest": result["upstream_digest"],
            "shards_digest": result["shards_digest"],
            "git_commit": git_commit(stage.project),
        },
        metrics={name: value for name, value in chosen.items() if name[:4] in ("val_", "test")},
        score=chosen[f"test_{metric}"],
        dataset={"name": result["dataset"], "digest": result["shards_digest"]},
        description=f"{meta['architecture']} from {chosen['init']}, "
        f"{chosen['examples_per_class']} examples per class, {len(meta['classes'])} classes: "
        f"test {METRICS[metric]} {100 * chosen[f'test_{metric}']:.1f} % of "
        f"{result['test_images']:,} images",
        digest=digest_of(checkpoint),
        test_digest=result["test_digest"],
        promote=params.promote,
    )
    stage.journal.tags({"model": outcome.name, "model_version": outcome.version})
    outcome.write_file(registration)
    print(
        f"{outcome.name} version {outcome.version} ({'new' if outcome.new else 'known'}): "
        f"{outcome.alias}, {outcome.reason}"
    )


if __name__ == "__main__":
    main(COMPONENT, run)
