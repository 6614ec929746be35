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
)


def run(
    stage: Stage, params: DatasetParams, *, dataset: Path, manifest: Path, validation: Path
) -> None:
    """Validate one dataset."""
    from bigtransfer.data.validation import validate
    from bigtransfer.storage import sha256_file

    counts = validate(dataset, params.name, params, manifest_path=manifest, report=validation)
    stage.journal.dataset(params.name, sha256_file(manifest), str(dataset), counts.model_dump())
    splits = ", ".join(f"{name} {n:,}" for name, n in counts.splits.items())
    print(f"{params.name}: {counts.images:,} images of {counts.classes} classes pass ({splits})")


if __name__ == "__main__":
    main(COMPONENT, run)
