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
        "dataset": "the dataset that was validated",
        "manifest": "dataset manifest, written by validate",
    },
    in_place=("dataset",),
    writes={"shards": "folder or s3:// prefix of shard-*.tar, index.parquet, …"},
    addresses=("shards",),
    options={
        "part": "N/M: write only the N-th of M parts (from 1); all may run at once",
        "join": "M: join the M parts that were written into one dataset",
    },
)


def run(
    stage: Stage,
    params: DatasetParams,
    *,
    dataset: Path,
    manifest: Path,
    shards: Path,
    part: str | None,
    join: str | None,
) -> None:
    """Pack one dataset, or one part of it."""
    from bigtransfer.data.packing import (
        join_parts,
        write_part,
        write_shards,
    )
    from bigtransfer.data.parts import parse_part, parse_parts
    from bigtransfer.data.shard_plan import make_plan, packing_of
    from bigtransfer.data.shards import describe_shards, write_pointer
    from bigtransfer.errors import ConfigError
    from bigtransfer.progress import counted
    from bigtransfer.storage.s3 import S3Path

    if part is not None and join is not None:
        raise ConfigError("--part writes one part, --join joins all of them: give one of both")
    packing = packing_of(params)
    place: Path | S3Path = shards
    if params.shards_at is not None:
        plan = make_plan(manifest, packing)
        place = S3Path.parse(params.shards_at) / params.name / plan.digest[:16]
    if part is not None:
        number, parts = parse_part(part)
        done = write_part(make_plan(manifest, packing), dataset, place, number, parts)
        print(f"{params.name}: part {part} {'written' if done else 'was there already'}")
        return
    if join is not None:
        join_parts(make_plan(manifest, packing), place, parse_parts(join))
    else:
        write_shards(dataset, manifest, place, packing)
    if isinstance(place, S3Path):
        write_pointer(shards, place)
    digest, summary = describe_shards(shards)
    stage.journal.dataset(params.name, digest, str(place), summary.model_dump())
    print(
        f"{params.name}: {counted(summary.examples, 'image')} packed into "
        f"{counted(summary.shards, 'shard')}, sha256 {digest[:16]}"
    )


if __name__ == "__main__":
    main(COMPONENT, run)
