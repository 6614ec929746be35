"""From weights that are there to a registered model of each task: no upstream training.

`pretrained` is the address of a checkpoint folder or of a published file, or models:/<name>@<alias>
for a registered one. On this machine, after `make run`:
`kfp run submit pipelines/transfer.py --local`.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.dag import build

WEIGHTS = "artifacts/pretrain/checkpoint"

if __name__ == "__main__":
    compile_beside("transfer", __file__, pretrained=WEIGHTS)
else:
    transfer = build("transfer", Path(__file__).with_suffix(".yaml"), pretrained=WEIGHTS)
