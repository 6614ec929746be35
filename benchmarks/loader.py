"""The training loader as it is, from packed photographs to batches: images/s by threads.

python benchmarks/loader.py                       # drawn photographs of 500x375
python benchmarks/loader.py --threads 1 2 4 8 16 --processes 4 8 16 --photos 4000

Inception crops to 224 px, mirrored at random, each image decoded anew, as in pretraining. All are
measured in turn; printed is the median, and its ratio to the first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import gpu_session  # first: it finds the project
import peers  # noqa: F401
import torch

from bigtransfer.data.batches import Squares, TrainBatches
from bigtransfer.data.decoding_workers import DecodingWorkers
from bigtransfer.data.shards import open_shards


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--processes", type=int, nargs="*", default=[])
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="batches per round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        gpu_session.draw(folder / "photos", given.photos, 500)
        gpu_session.pack(folder)
        shards = open_shards(folder / "shards")
        wanted: list[tuple[str, int, DecodingWorkers | None]]
        wanted = [(f"{n} threads", n, None) for n in given.threads]
        wanted += [(f"{n} processes", n, DecodingWorkers(n)) for n in given.processes]
        loaders = {
            name: TrainBatches(
                Squares(
                    shards, shards.rows("train"), 224, keep=False, threads=count, workers=workers
                ),
                batch_size=given.batch,
                crop=224,
                flip=True,
                seed=0,
                how="inception",
            )
            for name, count, workers in wanted
        }
        for batches in loaders.values():
            batches.batch(0)  # processes have begun when it is there
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(given.rounds):
            for name, batches in loaders.items():
                start = number * given.steps
                began = time.perf_counter()
                for _ in batches.ahead(start, start + given.steps):
                    pass
                seconds = time.perf_counter() - began
                rates[name].append(given.steps * given.batch / seconds)
        for _, _, workers in wanted:
            if workers is not None:
                workers.close()
    print(f"{given.photos} photographs of 500x375, {given.rounds} rounds")
    first = next(iter(rates.values()))
    for name, own in rates.items():
        ratios = sorted(a / b for a, b in zip(own, first, strict=True))
        print(
            f"{name:<14}{statistics.median(own):>8,.0f} images/s   "
            f"x{statistics.median(ratios):.2f} [{ratios[0]:.2f}..{ratios[-1]:.2f}]"
        )


if __name__ == "__main__":
    main()
