"""What a registered model sees in images: a row per image."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import BatchParams

COMPONENT = Component(
    "predict",
    "Say what a registered model sees in images; one that cannot be read says so in its row.",
    params="BatchParams",
    section="predict",
    writes={"answers": "CSV file, one row per image"},
)


def run(stage: Stage, params: BatchParams, *, answers: Path) -> None:
    """Look at every image of an address."""
    from bigtransfer.api.models import checkpoint_at
    from bigtransfer.errors import DatasetError
    from bigtransfer.model.processor import device_named
    from bigtransfer.progress import tracked
    from bigtransfer.serve import prediction
    from bigtransfer.serve.deployed import load_deployed
    from bigtransfer.storage import new_file
    from bigtransfer.storage.trees import open_tree, write_index

    device = device_named(params.device)
    deployed, meta = load_deployed(checkpoint_at(params.model, within_run=True))
    with TemporaryDirectory() as scratch:
        place = Path(params.images)
        if "://" in params.images:
            place = Path(scratch) / "index"
            write_index(params.images, place, mirror=False)
        elif not place.is_dir():
            raise DatasetError(f"images: {params.images!r} is no folder and no address")
        tree = open_tree(place)
        files = prediction.images_in(tree)
        found = prediction.answers_in(deployed.to(device), tree, files, params.batch_size, device)
        rows = (
            {**prediction.as_row(one, meta, params.top), "path": path}
            for path, one in tracked(found, "predict", len(files), unit="image")
        )
        with new_file(answers) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            counts = prediction.write_rows(rows, file)
            if counts["fault"] == len(files):
                raise DatasetError(f"none of {len(files):,} images could be read")
    stage.log(0, {kind: float(counts[kind]) for kind in ("rows", "fault", "unsure")})
    stage.journal.tags({"model": params.model, "images": tree.address})
    stage.journal.file(answers)
    print(
        f"{counts['rows']:,} images of {tree.address} answered by {params.model}: "
        f"{counts['unsure']:,} unsure, {counts['fault']:,} could not be read"
    )


if __name__ == "__main__":
    main(COMPONENT, run)
