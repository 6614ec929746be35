"""`finetune --quick` on this machine: where its time goes, and against timm with scikit-learn.

    python benchmarks/quick.py --images 175 --size 500x375
    python benchmarks/quick.py --images 3000 --classes 12 --size 500x375
    python benchmarks/quick.py --images 175 --size 4000x3000
    python benchmarks/quick.py --against-timm --images 175      # needs timm: benchmarks/peers.py
    python benchmarks/quick.py --heads FOLDER --weights W       # accuracy of both heads

The first ones draw photographs by a script, give them to R50x1 with random weights (the speed does
not depend on them) and print the seconds from the folder to the report, by stage. `--against-timm`
does decode, features and head of the same images, each with its mirror image, in turn in one
process: ours, and timm's network with Pillow and scikit-learn's LogisticRegression; printed is the
ratio. `--heads` fits both heads to the same features of FOLDER's images and prints test top-1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_STAGE = re.compile(r"^(\d) (\w[\w-]*)", re.M)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=175)
    parser.add_argument("--classes", type=int, default=5)
    parser.add_argument("--size", default="500x375", help="width x height (default: %(default)s)")
    parser.add_argument("--crop", type=int, default=128, help="pixels (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--against-timm", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", type=Path, metavar="W")
    arguments = parser.parse_args()
    if arguments.heads is not None:
        compare_heads(arguments.heads, arguments.weights, arguments.crop, arguments.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        width, height = map(int, arguments.size.split("x"))
        draw(photos, arguments.images, arguments.classes, width, height)
        weights = Path(folder) / "r50x1"
        random_weights(weights, arguments.crop)
        if arguments.against_timm:
            against_timm(photos, weights, arguments.crop, arguments.threads, arguments.rounds)
        else:
            from_folder_to_report(photos, weights, arguments.crop, arguments.threads)


def draw(folder: Path, images: int, classes: int, width: int, height: int) -> None:
    """Draw photographs: coarse and fine noise, a colour per class, as JPEG of usual quality."""
    generator = np.random.default_rng(0)
    for number in range(images):
        label = number % classes
        picture = Image.new("RGB", (width, height), tuple(generator.integers(0, 256, 3).tolist()))
        for side in (4, 16, 64):
            noise = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            picture = Image.blend(picture, layer, 0.4)
        picture.paste(
            (50 * label % 256, 255 - 20 * label % 256, 90 + 7 * label),
            (width // 3, height // 3, width // 2, height // 2),
        )
        path = folder / f"class_{label:02d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)


def random_weights(folder: Path, crop: int) -> None:
    """Write an R50x1 that was never trained."""
    from bigtransfer.artifacts.weights import UpstreamMeta
    from bigtransfer.model import create_model, write_checkpoint

    meta = UpstreamMeta(
        architecture="R50x1", root="imagenet", norm="gn_ws", classes=("a", "b"), crop=crop
    )
    write_checkpoint(folder, create_model("R50x1", 2, "imagenet", seed=0), meta)


class _Stamped(io.TextIOBase):
    """Text that knows when each of its lines came."""

    def __init__(self) -> None:
        self.began, self.lines = time.monotonic(), list[tuple[float, str]]()

    def write(self, text: str) -> int:
        self.lines += [(time.monotonic(), line) for line in text.splitlines() if line]
        return len(text)


def from_folder_to_report(photos: Path, weights: Path, crop: int, threads: int) -> None:
    """Print the seconds of each stage of `bigtransfer finetune --quick`."""
    import bigtransfer as bt

    out = _Stamped()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        bt.finetune(
            photos, weights=weights, to=photos.parent / "run", quick=True, crop=crop,
            threads=threads, quarantine=0.0,
        )  # fmt: skip
    ended = time.monotonic()
    marks = [(at, _STAGE.match(line)) for at, line in out.lines]
    stages = [(at, found[2]) for at, found in marks if found]
    for (at, name), (until, _) in zip(stages, [*stages[1:], (ended, "")], strict=True):
        print(f"{name:<12}{until - at:8.1f} s")
    print(f"{'in all':<12}{ended - out.began:8.1f} s   {crop} px, {threads} threads")


def against_timm(photos: Path, weights: Path, crop: int, threads: int, rounds: int) -> None:
    """Print how long decode, features and head take, theirs over ours."""
    import torch

    torch.set_num_threads(threads)
    files = sorted(photos.rglob("*.jpg"))
    labels = np.unique([file.parent.name for file in files], return_inverse=True)[1]
    ways = {
        "ours, float32": lambda: ours(files, labels, weights, crop, "float32"),
        "ours, bfloat16": lambda: ours(files, labels, weights, crop, "bfloat16"),
        "timm": lambda: theirs(files, labels, crop),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.monotonic()
            way()
            seconds[name].append(time.monotonic() - began)
    for name, own in seconds.items():
        ratios = [t / o for t, o in zip(seconds["timm"], own, strict=True)]
        print(
            f"{name:<16}{median(own):8.1f} s   x{median(ratios):.2f} "
            f"[{min(ratios):.2f}..{max(ratios):.2f}]"
        )


def ours(
    files: list[Path], labels: NDArray[np.int64], weights: Path, crop: int, precision: str
) -> None:
    """Decode, compute features of each image and its mirror image, choose a strength, fit."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from bigtransfer.artifacts.decoding import DecodeSettings
    from bigtransfer.data.decoding import decode_rgb
    from bigtransfer.data.transforms import resize_into
    from bigtransfer.model import load_checkpoint
    from bigtransfer.model.inference import to_network
    from bigtransfer.train.linear import Examples, choose_strength, fit_head

    network = load_checkpoint(weights)[0].fold()
    network = network.bfloat16() if precision == "bfloat16" else network
    kind, settings = next(network.parameters()).dtype, DecodeSettings()
    views = []
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():

        def square(file: Path) -> NDArray[np.uint8]:
            out = np.empty((crop, crop, 3), np.uint8)
            resize_into(out, decode_rgb(file.read_bytes(), settings))
            return out

        for some in batches(files, 16):
            x = to_network(np.stack(list(pool.map(square, some)))).to(kind)
            both = torch.stack([network.features(x), network.features(x.flip(3))], 1)
            views.append(both.float().numpy())
    targets = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    examples = Examples(np.concatenate(views), targets, False)
    weight = np.ones(len(labels))
    fit_head(examples, weight, choose_strength(examples, weight))


def theirs(files: list[Path], labels: NDArray[np.int64], crop: int) -> None:
    """Do the same by timm, Pillow and scikit-learn, as a notebook does."""
    import torch
    from peers import timm_model
    from sklearn.linear_model import LogisticRegression

    network = timm_model("R50x1", 0).eval()
    found = []
    with torch.inference_mode():
        for some in batches(files):
            squares = [
                np.asarray(Image.open(file).convert("RGB").resize((crop, crop))) for file in some
            ]
            x = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1
            found += [network(x).numpy(), network(x.flip(3)).numpy()]
    features = np.concatenate([*found[::2], *found[1::2]])
    features = (features - features.mean(0)) / (features.std(0) + 1e-6)
    LogisticRegression(max_iter=1000).fit(features, np.concatenate([labels, labels]))


def batches(files: list[Path], size: int = 32) -> Iterator[list[Path]]:
    """Yield the files, some at a time."""
    return (files[start : start + size] for start in range(0, len(files), size))


def compare_heads(folder: Path, weights: Path, crop: int, threads: int) -> None:
    """Print test top-1 of our head and scikit-learn's on the same features."""
    from sklearn.linear_model import LogisticRegression

    import bigtransfer as bt
    from bigtransfer.data.batches import Squares
    from bigtransfer.data.shards import open_shards
    from bigtransfer.model import load_checkpoint
    from bigtransfer.model.inference import predicted
    from bigtransfer.train.linear import Examples, choose_strength, fit_head

    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        with contextlib.redirect_stdout(sys.stderr):
            model = bt.finetune(
                folder, weights=weights, to=run, quick=True, crop=crop, threads=threads,
                precision="float32",
            )  # fmt: skip
        assert model.report is not None
        shards = open_shards(run / "shards")
        network = load_checkpoint(weights)[0].fold()
        x, y = {}, {}
        for split in ("train", "test"):
            squares = Squares(shards, shards.rows(split), crop)
            images = squares.get(np.arange(len(squares)))
            y[split] = squares.labels
            for name, own in (("", images), ("mirror", np.ascontiguousarray(images[:, :, ::-1]))):
                starts = range(0, len(own), 64)
                x[split + name] = np.concatenate(
                    list(predicted(network.features, (own[s : s + 64] for s in starts)))
                )
        train = np.concatenate([x["train"], x["trainmirror"]])
        mean, scale = train.mean(0), train.std(0) + 1e-6
        head = LogisticRegression(max_iter=2000)
        head.fit((train - mean) / scale, np.concatenate([y["train"], y["train"]]))
        score = head.score((x["test"] - mean) / scale, y["test"])
        views = np.stack([x["train"], x["trainmirror"]], 1)
        targets = np.eye(y["train"].max() + 1, dtype=np.float32)[y["train"]]
        examples, weight = Examples(views, targets, False), np.ones(len(targets))
        ours = fit_head(examples, weight, choose_strength(examples, weight))
        logits = x["test"] @ ours.weight.numpy().T + ours.bias.numpy()
        print(f"our head      {100 * (logits.argmax(1) == y['test']).mean():.1f} %")
        print(f"scikit-learn  {100 * score:.1f} %")
        row = model.report.facts.headline
        seeds = f"{100 * row.min:.1f} to {100 * row.max:.1f}"
        print(f"our seeds     {100 * row.median:.1f} % ({seeds}), each of a bootstrap")


if __name__ == "__main__":
    main()
