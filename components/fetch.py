"""Resolve a dataset's remote source to a local index. DVC depends on local paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import DatasetParams

COMPONENT = Component(
    "fetch",
    "List what lies at s3://… or dvc://…, with digests, as a local index; copy it where asked.",
    params="DatasetParams",
    section="datasets.<name>",
    writes={"index": "folder with source.json and files.csv, and files/ where mirrored"},
)


def run(stage: Stage, params: DatasetParams, *, index: Path) -> None:
    """Fetch one dataset's listing."""
    from bigtransfer.errors import ConfigError
    from bigtransfer.storage.trees import write_index

    if params.source is None:
        raise ConfigError(f"'datasets.{params.name}' has no 'source', so there is nothing to fetch")
    found = write_index(params.source, index, mirror=params.mirror)
    stage.told.update(source=str(found["url"]), source_digest=str(found["digest"]))
    stage.journal.tags({"source": str(found["url"]), "source_digest": str(found["digest"])})
    print(f"{params.name}: {found['files']:,} files, {found['bytes']:,} bytes at {found['url']}")


if __name__ == "__main__":
    main(COMPONENT, run)
