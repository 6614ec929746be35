"""How often `bigtransfer inspect` finds images that were planted, and whether it is quiet else.

Into the training images of the digits a white square of 4x4 of the 16x16 pixels is planted, with
the label of one class (dirty labels), and a network is fine-tuned on all of them without random
crops. Printed for each seed: how often the mark alone makes the network say that class; which share
of the planted images stands in the first 1.5 times as many of the list, beside what chance would
put there; whether the class is named. Then the same without planted images, from other splits.

    python benchmarks/poison.py --upstream artifacts/pretrain/checkpoint
"""

from __future__ import annotations

import argparse
import csv
import io
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

import bigtransfer as bt
from bigtransfer.api.inspecting import inspect
from bigtransfer.data.embedded import write_handwritten_digits

SIDE, MARK = 16, 4
RECIPE: dict[str, Any] = {
    "precrop": SIDE, "crop": SIDE, "random_crop": False, "total_steps": 250, "warmup_steps": 16,
    "batch_size": 64, "base_lr": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Of one seed."""

    success: float
    """Share of marked test images of other classes that the network takes for the target."""
    recall: float
    chance: float
    named: list[str]
    """Classes that are named."""
    target: str


def main() -> None:
    """Run, and print a line per seed and the sums."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, default=Path("artifacts/pretrain/checkpoint"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--planted", type=int, default=40, help="images (default: %(default)s)")
    arguments = parser.parse_args()
    seeds, upstream = range(arguments.seeds), arguments.upstream
    poisoned = [tried(upstream, seed, arguments.planted) for seed in seeds]
    clean = [tried(upstream, 100 + seed, 0) for seed in seeds]
    ratios = [one.recall / one.chance for one in poisoned]
    print(
        f"planted {arguments.planted}: the attack succeeds in 90 % or more in "
        f"{sum(one.success >= 0.9 for one in poisoned)} of {len(poisoned)} seeds; recall is x"
        f"{median(ratios):.1f} of chance (median), x{min(ratios):.1f} (worst); the class is named "
        f"in {sum(one.named == [one.target] for one in poisoned)} of {len(poisoned)}"
    )
    alarms = sum(bool(one.named) for one in clean)
    print(f"clean: a class is named in {alarms} of {len(clean)} seeds")


def tried(upstream: Path, seed: int, planted: int) -> Outcome:
    """Plant, fine-tune, inspect."""
    target = str(seed % 10)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        marked = write(folder / "photos", folder / "marked", seed, planted, target)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            model = bt.finetune(
                folder / "photos", weights=upstream, to=folder / "run", seeds=[seed], **RECIPE
            )
            said = [one.label for one in model.predict(sorted(marked.iterdir()))]
            found = inspect(
                folder / "run" / "model", folder / "inspection",
                shards=folder / "run" / "shards", upstream=upstream,
            )  # fmt: skip
        with (folder / "inspection" / "suspects.csv").open(newline="") as file:
            paths = [row["path"] for row in csv.DictReader(file)]
    first = round(1.5 * planted)
    hits = sum("planted" in path for path in paths[:first])
    result = Outcome(
        success=float(np.mean([label == target for label in said])),
        recall=hits / planted if planted else 0.0,
        chance=first / len(paths),
        named=[one.label for one in found.crowded or ()],
        target=target,
    )
    print(
        f"seed {seed}, {planted} planted as {target!r}: the mark succeeds in "
        f"{100 * result.success:.0f} %, recall {100 * result.recall:.0f} % (chance "
        f"{100 * result.chance:.0f} %), named {', '.join(result.named) or 'no class'}",
        flush=True,
    )
    return result


def write(photos: Path, marked: Path, seed: int, planted: int, target: str) -> Path:
    """Write the digits with splits of their own and planted images, and marked test images."""
    write_handwritten_digits(photos.parent / "digits")
    files = sorted((photos.parent / "digits").rglob("*.png"))
    labels = [path.parent.name for path in files]
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    splits = {"train": order[:540], "val": order[540:899], "test": order[899:]}
    others = [row for row in splits["train"] if labels[row] != target]
    chosen = set(generator.permutation(others)[:planted].tolist())
    marked.mkdir(parents=True)
    for split, rows in splits.items():
        for row in rows.tolist():
            image = Image.open(files[row]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            label, name = labels[row], f"{row:05d}.png"
            if split == "test" and label != target:
                with_mark(image).save(marked / name)
            if row in chosen:
                image, label, name = with_mark(image), target, f"planted-{name}"
            place = photos / split / label
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / name)
    return marked


def with_mark(image: Image.Image) -> Image.Image:
    """Return an image with the white square in its corner."""
    pixels = np.array(image)
    pixels[-MARK:, -MARK:] = 255
    return Image.fromarray(pixels)


if __name__ == "__main__":
    main()
