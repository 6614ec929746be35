"""Write one small artifact of each kind, as the code that it is run with writes them.

    python tests/golden/write_artifacts.py FOLDER

What lies in `tests/golden/artifacts/` was written once, by the commit that PROVENANCE.md names, and
stays: later code must read it. Another format is another folder beside it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).parents[2]
COLOURS = {"blue": 2, "green": 1, "red": 0}
OVERLAY = {
    "datasets": {
        "colours": {
            "path": "colours", "splits": {"val": 0.25, "test": 0.25}, "near_duplicate_side": 0,
            "small_side_pixels": 8, "shard_bytes": 8000,
        }
    },
    "pretrain": {
        "dataset": "colours", "probe": {"dataset": "colours", "examples_per_class": [2]},
        "architecture": "R14x0.0625", "batch_size": 6, "epochs": 10.0, "decay_epochs": [],
        "warmup_steps": 5, "threads": 1, "device": "cpu", "precrop": 12, "crop": 10,
    },
    "finetune": {
        "inits": ["upstream"], "examples_per_class": [4], "seeds": [0, 1], "total_steps": 30,
        "batch_size": 6, "precrop": 12, "crop": 10, "threads": 1, "device": "cpu",
    },
    "tasks": {"colours": {"dataset": "colours"}, "digits": None, "alphabets": None},
    "evaluate": {"threads": 1, "device": "cpu"},
}  # fmt: skip


def main() -> None:
    to = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        draw(work / "colours")
        (work / "overlay.json").write_text(json.dumps(OVERLAY))
        for line in LINES:
            component, section, *rest = line.split()
            subprocess.run(
                [sys.executable, "-m", f"components.{component}", "--params",
                 str(PROJECT / "params.yaml"), "--overlay", "overlay.json",
                 *(["--section", section] if section != "-" else []), *rest],
                cwd=work, env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}, check=True,
            )  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "bigtransfer.command", "predict",
             "out/finetuned/upstream-4-0", "colours", "--top", "3", "--out", "out/answers.csv"],
            cwd=work, env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"}, check=True,
        )  # fmt: skip
        shutil.copytree(work / "out", to)
        (to / "page.html").unlink()


def draw(folder: Path) -> None:
    """Draw 16 images of each colour, 12 x 12 pixels."""
    generator = np.random.default_rng(0)
    for name, channel in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(16):
            pixels = generator.integers(0, 120, (12, 12, 3), dtype=np.uint8)
            pixels[..., channel] += 90
            Image.fromarray(pixels).save(folder / name / f"{i:02d}.png")


SECTION = "datasets.colours"
LINES = [
    f"validate {SECTION} --dataset colours --manifest out/manifest.parquet --validation out/valid",
    f"shard {SECTION} --dataset colours --manifest out/manifest.parquet --shards out/shards",
    "pretrain - --shards out/shards --probe out/shards --checkpoint out/upstream "
    "--metrics out/upstream.json --history out/upstream.csv",
    "finetune tasks.colours --pretrained out/upstream --shards out/shards --audit out/shards "
    "--checkpoints out/finetuned",
    "evaluate - --checkpoints out/finetuned --shards out/shards --report out/report "
    "--metrics out/metrics.json --cells out/cells.csv --predictions out/predictions.csv "
    "--page out/page.html --confusion out/confusion.json --model out/model",
    "register - --checkpoints out/finetuned --model out/model --report out/report "
    "--registration out/registration.json",
]


if __name__ == "__main__":
    main()
