"""Our loader against the usual one (PyTorch's DataLoader over Pillow), and against decode alone.

python benchmarks/input_pipeline.py --images FOLDER     # photographs, *.jpg or *.JPEG, any depth
python benchmarks/input_pipeline.py                     # without photographs: drawn ones

Everything runs in turn in one process, on one thread; the ratios are of processor time.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import peers  # noqa: F401  # finds the project
import torch
from numpy.typing import NDArray
from PIL import Image

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.decoding import decode_rgb, read_header
from bigtransfer.data.order import Order
from bigtransfer.data.transforms import (
    inception_boxes,
    mirror,
    mirrored,
    random_crop_flip,
    resize_into,
)

Task = Callable[[], object]
BATCH = 50
SMALL_BATCH = 500


def main() -> None:
    """Measure and print."""
    arguments = parse(__doc__, most=150)
    torch.set_num_threads(1)
    files = photographs(arguments.images, arguments.most)
    print(f"{len(files)} photographs, {sum(map(len, files)) / len(files) / 1e3:.0f} KB on average")
    compare(
        "decode, inception crop to 224, flip",
        arguments.rounds,
        {
            "Pillow, float, normalised": lambda: run_usual(files, usual_inception),
            "Pillow, uint8": lambda: [usual_inception(data, i) for i, data in enumerate(files)],
            "ours": lambda: ours_inception(files),
            "decode alone": lambda: [decode_rgb(data, DecodeSettings()) for data in files],
        },
        "Pillow, float, normalised",
    )
    compare(
        "decode, resize to 448 square, crop 384, flip",
        arguments.rounds,
        {
            "Pillow, float, normalised": lambda: run_usual(files, usual_square),
            "Pillow, uint8": lambda: [usual_square(data, i) for i, data in enumerate(files)],
            "ours": lambda: ours_square(files),
            "decode alone": lambda: [decode_rgb(data, DecodeSettings()) for data in files],
        },
        "Pillow, float, normalised",
    )
    small = small_images(2000)
    encoded = [as_png(pixels) for pixels in small]
    compare(
        "32 px: crop 28 and flip into a uint8 batch",
        arguments.rounds,
        {
            "Pillow, each decoded": lambda: usual_small(encoded),
            "ours, from memory": lambda: ours_small(small),
        },
        "Pillow, each decoded",
    )
    plan()


def parse(description: str | None, most: int) -> argparse.Namespace:
    """Parse the flags of the benchmarks over photographs."""
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs")
    parser.add_argument("--most", type=int, default=most, help="of them (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    return parser.parse_args()


def photographs(folder: Path | None, most: int) -> list[bytes]:
    """Return encoded photographs, or drawn pictures of the size of ImageNet's."""
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        if not paths:
            raise SystemExit(f"--images {folder}: no .jpg or .jpeg below it")
        return [p.read_bytes() for p in paths[:most]]
    files = []
    for seed in range(most):
        rng = np.random.default_rng(seed)
        picture = Image.new("RGB", (500, 375))
        for side in (4, 16, 64, 200):
            noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            picture = Image.blend(picture, layer, 0.45)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        files.append(buffer.getvalue())
    return files


def run_usual(files: list[bytes], transform: Callable[[bytes, int], Image.Image]) -> None:
    """Do what torchvision's ToTensor and Normalize do, and collate."""
    mean = torch.tensor([0.5, 0.5, 0.5]).view(3, 1, 1)
    for start in range(0, len(files), BATCH):
        batch = []
        for i, data in enumerate(files[start : start + BATCH], start):
            picture = torch.from_numpy(np.array(transform(data, i)))
            batch.append(picture.permute(2, 0, 1).contiguous().float().div(255).sub(mean).div(mean))
        torch.stack(batch)


def usual_inception(data: bytes, i: int) -> Image.Image:
    """Return a random crop as torchvision makes it: crop, then resize, by Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    one = np.array([i])
    box = inception_boxes(
        np.array([height]), np.array([width]), seed=0, epochs=one * 0, samples=one
    )
    top, left, h, w = box[0].tolist()
    cut = picture.crop((left, top, left + w, top + h)).resize((224, 224), Image.Resampling.BILINEAR)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 2 else cut


def usual_square(data: bytes, i: int) -> Image.Image:
    """Return BiT's resize to a square and a random crop, by Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture = picture.resize((448, 448), Image.Resampling.BILINEAR)
    at = i % 65
    cut = picture.crop((at, at, at + 384, at + 384))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 2 else cut


def ours_inception(files: list[bytes]) -> None:
    """Fill uint8 batches, as the loader's threads do."""
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        numbers = np.arange(start, start + len(part))
        sizes = np.array([read_header(data).height for data in part])
        widths = np.array([read_header(data).width for data in part])  # the loader has an index
        boxes = inception_boxes(sizes, widths, seed=0, epochs=numbers * 0, samples=numbers)
        turned = mirrored(0, numbers * 0, numbers)
        result = np.empty((len(part), 224, 224, 3), np.uint8)
        for i, data in enumerate(part):
            top, left, height, width = boxes[i].tolist()
            resize_into(
                result[i],
                decode_rgb(data, DecodeSettings())[top : top + height, left : left + width],
            )
            if turned[i]:
                mirror(result[i])


def ours_square(files: list[bytes]) -> None:
    """Fill uint8 batches, as the loader's threads do."""
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        result = np.empty((len(part), 448, 448, 3), np.uint8)
        for i, data in enumerate(part):
            resize_into(result[i], decode_rgb(data, DecodeSettings()))
        numbers = np.arange(start, start + len(part))
        random_crop_flip(result, 384, flip=True, seed=0, epochs=numbers * 0, samples=numbers)


def small_images(count: int) -> NDArray[np.uint8]:
    """Return decoded 32x32 images."""
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def as_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode, as CIFAR's images lie in folders."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def usual_small(encoded: list[bytes]) -> None:
    """Decode, crop and flip each image by Pillow, and stack a uint8 batch."""
    for start in range(0, len(encoded), SMALL_BATCH):
        batch = []
        for i, data in enumerate(encoded[start : start + SMALL_BATCH]):
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            at = i % 5
            picture = picture.crop((at, at, at + 28, at + 28))
            if i % 2:
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            batch.append(np.asarray(picture))
        np.stack(batch)


def ours_small(pixels: NDArray[np.uint8]) -> None:
    """Gather, crop and flip by batch from memory."""
    order = np.random.default_rng(1).permutation(len(pixels))
    for numbers in order.reshape(-1, SMALL_BATCH):
        random_crop_flip(
            pixels, 28, flip=True, seed=0, epochs=numbers * 0, samples=numbers, rows=numbers
        )


def compare(
    title: str,
    rounds: int,
    tasks: dict[str, Task],
    reference: str,
    clock: Callable[[], float] = time.process_time,
) -> None:
    """Run tasks in turn and print the ratios to one of them."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values():
        task()
    for _ in range(rounds):
        for name, task in tasks.items():
            began = clock()
            task()
            seconds[name].append(clock() - began)
    print(f"\n{title}")
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(seconds[reference], own, strict=True))
        middle = statistics.median(ratios)
        print(f"  {name:<28}x{middle:.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]")
    if "decode alone" in seconds:
        pairs = zip(seconds["ours"], seconds["decode alone"], strict=True)
        over = statistics.median(a / b - 1 for a, b in pairs)
        print(f"  ours over decode alone: +{100 * over:.0f} %")


def plan() -> None:
    """Plan an epoch of ImageNet, and one rank's batches of a very large set."""
    order = Order(np.full(1408, 910), 4096, 0)
    steps = order.samples_per_lane * order.lanes // 4096
    began = time.process_time()
    for lane in range(order.lanes):
        for window in range(-(-len(order.shards_of(0, lane)) // 4)):
            order._permuted(0, lane, window)
    whole = time.process_time() - began
    print(f"\nplan of one epoch of {order.num_samples:,} samples ({steps} steps): {whole:.3f} s")
    order = Order(np.full(64 * 5120, 915), 4096, 0)
    began = time.process_time()
    order.batch(70_000, rank=3, world_size=64)
    once = time.process_time() - began
    print(f"one rank's batch 70,000 of {order.num_samples:,} samples, from nothing: {once:.3f} s")


if __name__ == "__main__":
    main()
