"""BiT-M: the paper's recipe on ImageNet-21k, and a transfer to each task.

Submit it: `kfp run submit pipelines/bit_m.py`. Compile it: `python -m pipelines.bit_m`.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.dag import build

if __name__ == "__main__":
    compile_beside("bit-m", __file__)
else:
    bit_m = build("bit-m", Path(__file__).with_suffix(".yaml"))
