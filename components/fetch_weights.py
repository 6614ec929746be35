"""Bring the weights that a pipeline starts from. On a cluster only: DVC takes a path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import WeightsParams

COMPONENT = Component(
    "fetch_weights",
    "Bring given weights from an address, with the task's own credentials, and check them.",
    params="WeightsParams",
    section="pretrained",
    writes={"weights": "checkpoint folder, or a folder with the published file (.npz)"},
)


def run(stage: Stage, params: WeightsParams, *, weights: Path) -> None:
    """Fetch them."""
    from bigtransfer.artifacts.weights import require_weights
    from bigtransfer.storage.copying import copy_here
    from bigtransfer.track.artifacts import SCHEMES, download

    if params.address.startswith(SCHEMES):
        digest = download(stage.project, params.address, weights, params.sha256)
    else:
        digest = copy_here(params.address, weights, params.sha256)
    require_weights(weights, params.address)
    stage.told.update(source=params.address, source_digest=digest)
    stage.journal.tags({"source": params.address, "source_digest": digest})
    print(f"weights of sha256 {digest[:16]} came from {params.address}")


if __name__ == "__main__":
    main(COMPONENT, run)
