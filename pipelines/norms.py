"""Normalisation over batch sizes: studies/norms.yaml, a task for each cell.

Submit it: `kfp run submit pipelines/norms.py`. Compile it: `python -m pipelines.norms`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.study import STUDIES, build_study

_STUDY = partial(build_study, file=STUDIES / "norms.yaml")

if __name__ == "__main__":
    compile_beside("norms", __file__, maker=_STUDY)
else:
    own = Path(__file__).with_suffix(".yaml")
    norms = _STUDY("norms", own if own.is_file() else None)
