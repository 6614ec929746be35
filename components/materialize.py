"""Write the embedded datasets as ordinary folders. Local only: on a cluster the data are yours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.config import MaterializeParams

COMPONENT = Component(
    "materialize",
    "Write the embedded datasets: printed glyphs (rendered) and handwritten digits (real).",
    params="MaterializeParams",
    section="materialize",
    writes={
        "upstream": "folder of printed Latin letters and digits",
        "digits": "folder of real handwritten digits",
        "alphabets": "folder of printed letters of alphabets that upstream does not hold",
    },
)


def run(
    stage: Stage, params: MaterializeParams, *, upstream: Path, digits: Path, alphabets: Path
) -> None:
    """Write the three folders."""
    from bigtransfer.data.embedded import glyph_classes, write_glyphs, write_handwritten_digits

    for number, (name, folder) in enumerate((("upstream", upstream), ("alphabets", alphabets))):
        characters, images = glyph_classes(params.profile, name)
        write_glyphs(folder, characters, images, seed=2 * params.seed + number)
        print(f"{folder}: {images:,} printed glyphs of {len(characters)} classes")
    write_handwritten_digits(digits)
    print(f"{digits}: 1,797 real handwritten digits of 10 classes")


if __name__ == "__main__":
    main(COMPONENT, run)
