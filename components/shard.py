"""Pack a validated dataset into tar shards with an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import DatasetParams

COMPONENT = Component(
    "shard",
    "Pack a validated dataset into tar shards with a Parquet index, byte for byte reproducible.",
    params="DatasetParams",
    section="datasets.<name>",
    reads={
        "dataset": "the folder that was validated",
        "manifest": "dataset manifest, written by validate",
    },
    writes={"shards": "folder of shard-*.tar, index.parquet, classes.json, index.json"},
)


def run(
    stage: Stage, params: DatasetParams, *, dataset: Path, manifest: Path, shards: Path
) -> None:
    """Pack one dataset."""
    from bigtransfer.data.shards import write_shards
    from bigtransfer.storage import digest_of

    summary = write_shards(
        dataset, manifest, shards, shard_bytes=params.shard_bytes, seed=params.seed
    )
    stage.journal.dataset(params.name, digest_of(shards), str(shards), summary)
    print(f"{params.name}: {summary['examples']:,} images packed, sha256 {digest_of(shards)[:16]}")


if __name__ == "__main__":
    main(COMPONENT, run)
