"""The pipeline of params.yaml as it stands: what `dvc repro` runs, for a cluster.

Compile it: `python -m pipelines.quickstart` writes pipelines/quickstart.yaml.
"""

from __future__ import annotations

from pathlib import Path

from kfp import compiler

from pipelines.dag import build

quickstart = build("quickstart")

if __name__ == "__main__":
    compiler.Compiler().compile(quickstart, str(Path(__file__).with_suffix(".yaml")))
