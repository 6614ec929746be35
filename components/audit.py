"""Compare a task's dataset with the upstream one: it is not tested on what upstream has seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import AuditParams

COMPONENT = Component(
    "audit",
    "Look for test images of a task among the upstream training images (exit 3 if there are).",
    params="AuditParams",
    section="audit",
    reads={
        "upstream": "manifest of the upstream dataset",
        "dataset": "manifest of the task's dataset; may be the same",
    },
    writes={"audit": "folder with audit.json and index.html, whatever the verdict"},
)


def run(stage: Stage, params: AuditParams, *, upstream: Path, dataset: Path, audit: Path) -> None:
    """Audit the dataset of one task."""
    from bigtransfer.data.audit import audit as compare
    from bigtransfer.data.manifest import read_manifest
    from bigtransfer.progress import counted

    result = compare(
        [upstream, dataset],
        audit,
        upstream=params.upstream,
        downstream=[read_manifest(dataset)[1].dataset],
        on_leak=params.on_leak,
    )
    stage.journal.file(audit / "audit.json")
    stage.journal.tags({"audit": "pass" if result.success else "leaks reported"})
    if params.upstream is None:
        print("not compared: which images the given weights have seen is not known")
    for row in result.compared:
        print(
            f"{row.downstream}: {row.downstream_images:,} images compared with "
            f"{row.upstream_images:,} of {row.upstream}: {counted(row.leaks, 'leak')}"
        )


if __name__ == "__main__":
    main(COMPONENT, run)
