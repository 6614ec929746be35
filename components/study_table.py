"""Tables and page of a study, of what its cells have found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import StudyTableParams

COMPONENT = Component(
    "study_table",
    "Put what the cells of a study have found side by side: tables, curves and a page.",
    params="StudyTableParams",
    section="study_table",
    reads_each={"cell": "folder written by study_cell, for each cell"},
    writes={
        "tables": "folder with tables (Markdown, LaTeX, CSV), curves, and a page beside them",
        "page": "HTML file, the page alone",
    },
)


def run(
    stage: Stage, params: StudyTableParams, *, cell: Mapping[str, Path], tables: Path, page: Path
) -> None:
    """Make the table of a study."""
    from bigtransfer.artifacts.cell_outcome import CellOutcome
    from bigtransfer.errors import ConfigError
    from bigtransfer.report.study import as_markdown
    from bigtransfer.report.study_page import render
    from bigtransfer.storage import new_folder, write_text
    from bigtransfer.study.cells import cells_of
    from bigtransfer.study.states import state_of
    from bigtransfer.study.study_file import Study
    from bigtransfer.study.table import table_of, write

    study = Study.model_validate(params.study)
    cells = cells_of(study, params.params)
    if wrong := sorted({one.name for one in cells} ^ {*cell}):
        raise ConfigError(f"--cell is wanted for each cell of {study.name}, once: {wrong[0]}")
    states = [state_of(one, CellOutcome.of(one.name, cell[one.name])) for one in cells]
    table = table_of(study, states)
    with new_folder(tables) as folder:
        write(table, states, folder)
    write_text(page, render(table, files={}))
    for path in sorted(tables.glob("*.*")):
        stage.journal.file(path)
    print(as_markdown(table))


if __name__ == "__main__":
    main(COMPONENT, run)
