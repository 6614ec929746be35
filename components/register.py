"""Register the model of one task in MLflow and settle its alias."""

from __future__ import annotations

from dataclasses import asdict
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
        "report": "folder written by evaluate",
    },
    writes={"registration": "JSON file: model name, version, alias, run id"},
)


def run(
    stage: Stage, params: RegisterParams, *, checkpoints: Path, report: Path, registration: Path
) -> None:
    """Register one task's model."""
    from bigtransfer.errors import CheckpointError
    from bigtransfer.evaluate.table import METRICS
    from bigtransfer.serve.deployed import facts_of, load_deployed
    from bigtransfer.storage import as_json, read_json, verify_folder, write_text
    from bigtransfer.track.origin import git_commit
    from bigtransfer.track.registry import register

    verify_folder(checkpoints, CheckpointError)
    verify_folder(report)
    result = read_json(report / "report.json")
    chosen, metric = result["chosen"], result["metric"]
    folder = checkpoints / chosen["folder"]
    model, meta = load_deployed(folder)
    outcome = register(
        stage.project,
        f"{params.name_prefix}{result['task']}",
        model,
        crop=meta["crop"],
        num_classes=len(meta["classes"]),
        checkpoint=folder,
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
        facts=facts_of(meta),
        dataset={"name": result["dataset"], "digest": result["shards_digest"]},
        description=f"{meta['architecture']} from {chosen['init']}, "
        f"{chosen['examples_per_class']} examples per class, {len(meta['classes'])} classes: "
        f"test {METRICS[metric]} {100 * chosen[f'test_{metric}']:.1f} % of "
        f"{result['test_images']:,} images",
        digest=meta["digest"],
        test_digest=result["test_digest"],
        promote=params.promote,
    )
    stage.journal.tags({"model": outcome.name, "model_version": outcome.version})
    write_text(registration, as_json(asdict(outcome)))
    print(
        f"{outcome.name} version {outcome.version} ({'new' if outcome.new else 'known'}): "
        f"{outcome.alias}, {outcome.reason}"
    )


if __name__ == "__main__":
    main(COMPONENT, run)
