"""Fail where a cell of a study failed, once all the others are through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import StudyCheckParams

COMPONENT = Component(
    "study_check",
    "Refuse a study of which a cell failed, and say which and why.",
    params="StudyCheckParams",
    section="study_check",
    reads_each={"cell": "folder written by study_cell, for each cell"},
    writes={"verdict": "JSON file: how many cells are finished"},
)


def run(stage: Stage, params: StudyCheckParams, *, cell: Mapping[str, Path], verdict: Path) -> None:
    """Look whether all cells are finished."""
    from bigtransfer.artifacts.cell_outcome import CellOutcome
    from bigtransfer.errors import ConfigError
    from bigtransfer.progress import counted
    from bigtransfer.storage import as_json, write_text

    ended = [CellOutcome.of(name, path) for name, path in cell.items()]
    failed = [one for one in ended if one.found is None]
    for one in failed:
        print(f"{one.title} failed: {one.failure}")
    if failed:
        raise ConfigError(
            f"{params.study}: {len(failed)} of {counted(len(ended), 'cell')} failed, the others "
            f"stand in the table; {failed[0].title}: {failed[0].failure}"
        )
    write_text(verdict, as_json({"finished": len(ended)}))
    print(f"{params.study}: {counted(len(ended), 'cell')} finished")


if __name__ == "__main__":
    main(COMPONENT, run)
