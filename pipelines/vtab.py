"""VTAB-1k from weights that are there: 19 tasks by the HyperRule, three seeds each, in parallel.

`pretrained` is the address of a checkpoint folder or of a published file; the tasks' data lie where
pipelines/vtab.yaml says.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.dag import build

WEIGHTS = "s3://bigtransfer/BiT-M-R50x1.npz"

if __name__ == "__main__":
    compile_beside("vtab", __file__, pretrained=WEIGHTS)
else:
    vtab = build("vtab", Path(__file__).with_suffix(".yaml"), pretrained=WEIGHTS)
