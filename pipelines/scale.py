"""Network size against data size: studies/scale.yaml, a task for each cell.

Submit it: `kfp run submit pipelines/scale.py`. Compile it: `python -m pipelines.scale`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.study import STUDIES, build_study

_STUDY = partial(build_study, file=STUDIES / "scale.yaml")

if __name__ == "__main__":
    compile_beside("scale", __file__, maker=_STUDY)
else:
    own = Path(__file__).with_suffix(".yaml")
    scale = _STUDY("scale", own if own.is_file() else None)
