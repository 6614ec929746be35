"""BiT-L: the paper's recipe on 300 million images, and a transfer to each task.

Submit it: `kfp run submit pipelines/bit_l.py`. Compile it: `python -m pipelines.bit_l`.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.compiling import compile_beside
from pipelines.dag import build

if __name__ == "__main__":
    compile_beside("bit-l", __file__)
else:
    bit_l = build("bit-l", Path(__file__).with_suffix(".yaml"))
