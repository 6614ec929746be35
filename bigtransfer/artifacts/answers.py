"""`validation.parquet`: what networks say of each validation image.

Of all networks that differ from a model by their seed alone, so that two models can be compared
without running either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bigtransfer.errors import StorageError

ANSWERS = "validation.parquet"
_SCORE = "score_"


@dataclass(frozen=True)
class Answers:
    """What networks that differ by their seed say of N validation images.

    The order of the images is that of their digests: two of these about the same images are paired.
    """

    labels: NDArray[np.int64]
    """(N,); -1 where images may have several."""
    scores: dict[int, NDArray[np.float32]]
    """Seed -> (N,): 1 for a right answer, 0 for a wrong one; with several labels each, F1."""

    def write(self, folder: Path) -> None:
        """Write them into a folder."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {
            "label": self.labels,
            **{f"{_SCORE}{seed}": scores for seed, scores in self.scores.items()},
        }
        pq.write_table(pa.table(columns), folder / ANSWERS)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read them from a folder.

        Raises:
            StorageError: If they are not there, or damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / ANSWERS
        try:
            table = pq.read_table(path)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            return cls(
                columns["label"],
                {
                    int(name.removeprefix(_SCORE)): column
                    for name, column in columns.items()
                    if name.startswith(_SCORE)
                },
            )
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise StorageError(
                f"{str(path)!r} holds no answers on validation images, or is damaged ({error}); "
                "run `evaluate` again"
            ) from error
