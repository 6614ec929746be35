"""The pipeline of params.yaml as it stands: what `dvc repro` runs, for a cluster.

Compile it: `python -m pipelines.quickstart` writes pipelines/quickstart.kfp.yaml.
"""

from __future__ import annotations

from pipelines.compiling import compile_beside
from pipelines.dag import build

if __name__ == "__main__":
    compile_beside("quickstart", __file__)
else:
    quickstart = build("quickstart")
