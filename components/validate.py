"""Check every image of a dataset and let it pass or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import DatasetParams

COMPONENT = Component(
    "validate",
    "Decode every image, hold the rules (exit 3 if one is broken), write the dataset manifest.",
    params="DatasetParams",
    section="datasets.<name>",
    reads={"dataset": "folder, table, archive, or the index that fetch wrote"},
    in_place=("dataset",),
    writes={
        "manifest": "dataset manifest, Parquet; only if the dataset passes",
        "validation": "folder with validation.json and index.html, whatever the verdict",
    },
    options={
        "part": "N/M: only look at the N-th of M parts of the images (from 1); all may run at once",
        "join": "M: judge what the M parts found",
        "parts": "folder or s3:// prefix below which parts meet (default: beside --manifest)",
    },
)


def run(
    stage: Stage,
    params: DatasetParams,
    *,
    dataset: Path,
    manifest: Path,
    validation: Path,
    part: str | None,
    join: str | None,
    parts: str | None,
) -> None:
    """Validate one dataset, or look at one part of it."""
    from bigtransfer.data.parts import parse_part, parse_parts
    from bigtransfer.data.validation import Parts, inspect_part, validate
    from bigtransfer.errors import ConfigError
    from bigtransfer.storage import sha256_file
    from bigtransfer.storage.places import place_at

    if part is not None and join is not None:
        raise ConfigError("--part looks at one part, --join judges all of them: give one of both")
    if parts is not None and part is None and join is None:
        raise ConfigError("--parts says where parts meet: give --part N/M or --join M with it")
    meet = (place_at(parts) if parts else manifest.with_suffix(".parts")) / params.name
    if part is not None:
        number, of = parse_part(part)
        looked_at = inspect_part(dataset, params.name, params, meet, number, of)
        print(f"{params.name}: part {part} looked at, {looked_at:,} images")
        return
    counts = validate(
        dataset,
        params.name,
        params,
        manifest_path=manifest,
        report=validation,
        parts=Parts(meet, parse_parts(join)) if join is not None else None,
    )
    stage.journal.dataset(params.name, sha256_file(manifest), str(dataset), counts.model_dump())
    splits = ", ".join(f"{name} {n:,}" for name, n in counts.splits.items())
    print(f"{params.name}: {counts.images:,} images of {counts.classes} classes pass ({splits})")


if __name__ == "__main__":
    main(COMPONENT, run)
