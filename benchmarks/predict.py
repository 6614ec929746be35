"""`bigtransfer predict` against the slower of its two halves: reading images, and the network.

python benchmarks/predict.py --images FOLDER      # photographs, *.jpg or *.JPEG, each seen 5 times
python benchmarks/predict.py                      # without photographs: drawn ones
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import peers  # noqa: F401  # finds the project
import torch
from input_pipeline import parse, photographs

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.data.decoding import useful_threads
from bigtransfer.model import create_model
from bigtransfer.model.inference import to_network
from bigtransfer.serve.deployed import Deployed
from bigtransfer.serve.prediction import Framing, _read_into, answers

CLASSES, CROP, BATCH, TIMES = 100, 128, 32, 5
CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    arguments = parse(__doc__, most=200)
    torch.set_num_threads(2)
    photos = photographs(arguments.images, arguments.most)
    network = create_model("R50x1", CLASSES).eval().fold()
    deployed = Deployed(network, CROP, 1.0, False, DecodeSettings()).eval()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, data in enumerate(photos):
            files.append(Path(folder, f"{number}.jpg"))
            files[-1].write_bytes(data)
        files *= TIMES
        squares = np.zeros((BATCH, CROP, CROP, 3), np.uint8)
        threads = useful_threads(float(np.mean([len(data) for data in photos])))

        framing, settings = Framing(CROP), DecodeSettings()

        def read() -> None:
            def one(file: Path) -> str | None:
                return _read_into(squares[0], file, Path.read_bytes, framing, settings)

            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(one, files))

        def compute() -> None:
            with torch.inference_mode():
                for start in range(0, len(files), BATCH):
                    some = squares[: len(files) - start]
                    deployed.probabilities(to_network(some, CPU))

        def predict() -> None:
            assert all(answer.fault is None for answer in answers(deployed, files, BATCH, CPU))

        print(f"{len(files)} images, R50x1 at {CROP} pixels, CPU, {threads} threads that read")
        ratios, shares = [], []
        for _ in range(arguments.rounds):
            halves = [seconds(read), seconds(compute)]
            whole = seconds(predict)
            ratios.append(max(halves) / whole)
            shares.append(halves[0] / halves[1])
    ratios.sort()
    print(f"reading takes x{statistics.median(shares):.2f} of the network's time")
    print(
        f"predict's rate / rate of the slower half: x{statistics.median(ratios):.2f} "
        f"[{ratios[0]:.2f}..{ratios[-1]:.2f}]"
    )


def seconds(task: Callable[[], None]) -> float:
    """Return how long a task takes."""
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
