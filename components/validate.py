"""Check every image of a dataset folder and let it pass or not."""

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
    reads={"dataset": "folder <class>/<image>, or <split>/<class>/<image>"},
    writes={
        "manifest": "dataset manifest, Parquet; only if the dataset passes",
        "validation": "folder with validation.json and index.html, whatever the verdict",
    },
)


def run(
    stage: Stage, params: DatasetParams, *, dataset: Path, manifest: Path, validation: Path
) -> None:
    """Validate one dataset."""
    from bigtransfer.data.inspection import Limits
    from bigtransfer.data.validation import validate
    from bigtransfer.storage import sha256_file

    counts = validate(
        dataset,
        params.name,
        manifest_path=manifest,
        report=validation,
        limits=Limits(
            params.min_side_pixels,
            params.max_side_pixels,
            params.max_image_pixels,
            params.max_file_bytes,
        ),
        val=params.splits.val,
        test=params.splits.test,
        seed=params.seed,
        required_splits=params.required_splits,
        min_classes=params.min_classes,
        min_examples_per_class=params.min_examples_per_class,
        params=params.model_dump(mode="json"),
    )
    stage.journal.dataset(params.name, sha256_file(manifest), str(dataset), counts)
    splits = ", ".join(f"{name} {n:,}" for name, n in counts["splits"].items())
    print(
        f"{params.name}: {counts['images']:,} images of {counts['classes']} classes pass ({splits})"
    )


if __name__ == "__main__":
    main(COMPONENT, run)
