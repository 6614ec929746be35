"""BiT-S: the paper's recipe on ILSVRC-2012, and a transfer to each task.

Submit it: `kfp run submit pipelines/bit_s.py`. Compile it: `python -m pipelines.bit_s`.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.dag import build

if __name__ == "__main__":
    compile_beside("bit-s", __file__)
else:
    bit_s = build("bit-s", Path(__file__).with_suffix(".yaml"))
