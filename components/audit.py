"""Compare the datasets with each other: no task may be tested on what upstream has seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import AuditParams

COMPONENT = Component(
    "audit",
    "Look for test images of the tasks among the upstream training images (exit 3 if there are).",
    params="AuditParams",
    section="audit",
    reads={"datasets": "manifest of every dataset; or a folder of <dataset>/manifest.parquet"},
    writes={"audit": "folder with audit.json and index.html, whatever the verdict"},
    multiple=("datasets",),
)


def run(stage: Stage, params: AuditParams, *, datasets: list[Path], audit: Path) -> None:
    """Audit all datasets."""
    from bigtransfer.data.audit import audit as compare

    result = compare(
        datasets,
        audit,
        upstream=params.upstream,
        downstream=params.downstream,
        on_leak=params.on_leak,
    )
    stage.journal.file(audit / "audit.json")
    stage.journal.tags({"audit": "pass" if result.success else "leaks reported"})
    if params.upstream is None:
        print("not compared: which images the given weights have seen is not known")
    for row in result.compared:
        print(
            f"{row.downstream}: {row.downstream_images:,} images compared with "
            f"{row.upstream_images:,} of {row.upstream}: {row.leaks} leaks"
        )


if __name__ == "__main__":
    main(COMPONENT, run)
