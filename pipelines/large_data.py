"""Budget, early decay, weight decay on much data: studies/large-data.yaml, a task for each cell.

Submit it: `kfp run submit pipelines/large_data.py`. Compile it: `python -m pipelines.large_data`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.study import STUDIES, build_study

_STUDY = partial(build_study, file=STUDIES / "large-data.yaml")

if __name__ == "__main__":
    compile_beside("large-data", __file__, maker=_STUDY)
else:
    own = Path(__file__).with_suffix(".yaml")
    large_data = _STUDY("large-data", own if own.is_file() else None)
