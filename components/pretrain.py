"""Train the upstream network; resumes by itself after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import PretrainParams

COMPONENT = Component(
    "pretrain",
    "Train a GN + WS ResNet-v2 upstream; killed at any moment, the same line goes on bit for bit.",
    params="PretrainParams",
    section="pretrain",
    reads={
        "shards": "shards of the upstream dataset",
        "probe": "shards on which frozen features are tried (pretrain.probe)",
    },
    addresses=("shards", "probe"),
    writes={
        "checkpoint": "upstream checkpoint folder (safetensors, meta.json, MANIFEST.json)",
        "metrics": "JSON file of the final figures",
        "history": "CSV file of the learning curve",
    },
    kept=("checkpoint", "metrics", "history"),
)


def run(
    stage: Stage,
    params: PretrainParams,
    *,
    shards: Path,
    probe: Path,
    checkpoint: Path,
    metrics: Path,
    history: Path,
) -> None:
    """Pretrain; under `torchrun` in each of its processes."""
    from bigtransfer.data.shards import describe_shards
    from bigtransfer.storage import digest_of, write_text
    from bigtransfer.storage.home import EXPERIMENT_MARK, experiment_name
    from bigtransfer.train.pretrain import Outputs, pretrain

    digest, summary = describe_shards(shards)
    stage.journal.dataset(params.dataset, digest, str(shards), summary.model_dump())
    outputs = Outputs(checkpoint, metrics, history)
    # An experiment of DVC is safe when DVC has it: until then a kill loses what its copy holds.
    experiment, keys = experiment_name(stage.project), []

    def begin(key: str) -> None:
        keys.append(key)
        stage.journal.training(key)

    result = pretrain(
        params,
        shards,
        probe,
        outputs,
        stage.work,
        stage.log,
        begin,
        keep_mirror=stage.is_task,
        keep_state=bool(experiment),
    )
    if result is None:
        return
    if experiment:
        write_text(stage.work / keys[0] / EXPERIMENT_MARK, experiment)
    stage.journal.tags({"checkpoint_digest": digest_of(checkpoint)})
    stage.journal.file(history)
    print(
        f"{params.architecture}: {result['steps']:,} steps, validation top-1 "
        f"{100 * result['val_top1']:.1f} %, {result['parameters']:,} parameters"
    )


if __name__ == "__main__":
    main(COMPONENT, run)
