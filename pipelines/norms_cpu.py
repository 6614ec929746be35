"""studies/norms.yaml on embedded data, ten small cells: to try a study on a cluster.

Submit it: `kfp run submit pipelines/norms_cpu.py`. Compile it: `python -m pipelines.norms_cpu`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.study import STUDIES, build_study

_STUDY = partial(
    build_study, file=STUDIES / "norms.yaml", study_overlay=STUDIES / "cpu" / "norms.yaml"
)

if __name__ == "__main__":
    compile_beside("norms-cpu", __file__, maker=_STUDY)
else:
    own = Path(__file__).with_suffix(".yaml")
    norms_cpu = _STUDY("norms-cpu", own if own.is_file() else None)
