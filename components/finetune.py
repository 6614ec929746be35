"""Transfer the upstream network to one task, by the BiT-HyperRule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import TaskParams

COMPONENT = Component(
    "finetune",
    "Fine-tune on few examples per class and several seeds, from upstream and from scratch.",
    params="TaskParams",
    section="tasks.<name>",
    reads={
        "pretrained": "upstream checkpoint folder, or a published file (.npz)",
        "shards": "shards of the task's dataset",
        "audit": "folder written by audit: that no test image was seen upstream",
    },
    addresses=("shards",),
    writes={"checkpoints": "folder with a checkpoint per run and cells.json"},
    kept=("checkpoints",),
)


def run(
    stage: Stage,
    params: TaskParams,
    *,
    pretrained: Path,
    shards: Path,
    audit: Path,
    checkpoints: Path,
) -> None:
    """Fine-tune all cells of one task."""
    from bigtransfer.data.shards import describe_shards
    from bigtransfer.model.conversion import as_checkpoint
    from bigtransfer.progress import counted
    from bigtransfer.storage import digest_of
    from bigtransfer.train.finetune import finetune

    digest, summary = describe_shards(shards)
    stage.journal.dataset(params.dataset, digest, str(shards), summary.model_dump())
    upstream = as_checkpoint(pretrained, stage.work / "published")
    result = finetune(
        params,
        upstream,
        shards,
        checkpoints,
        stage.work,
        stage.log,
        keep_mirror=stage.is_task,
    )
    stage.journal.tags(
        {
            "upstream_digest": result.upstream_digest,
            "audit_digest": digest_of(audit),
            "checkpoint_digest": digest_of(checkpoints),
        }
    )
    print(f"{params.name}: {counted(len(result.cells), 'network')} fine-tuned")


if __name__ == "__main__":
    main(COMPONENT, run)
