"""What serving costs beside the network alone: latency of one picture, pictures a second of many.

    python benchmarks/serving.py MODEL [--picture 500x375] [--clients 4] [--rounds 5]

MODEL is a fine-tuned checkpoint, e.g. artifacts/finetune/digits/upstream-5-0. In turn, in one run:
the bare network on a square that is ready, `predict` on the encoded picture (the loader with it),
and a server that is asked over HTTP (`bigtransfer serve`). Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bigtransfer import load
from bigtransfer.model.inference import to_network
from bigtransfer.serve.deployed import load_deployed

_BATCH = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--picture", default="500x375", metavar="WxH")
    parser.add_argument("--clients", type=int, default=4, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--requests", type=int, default=30, metavar="N", help="of a round")
    arguments = parser.parse_args()
    width, height = map(int, arguments.picture.split("x"))
    data = _photograph(width, height)
    model = load(arguments.model)
    deployed, meta = load_deployed(arguments.model)
    square = to_network(np.zeros((1, meta.crop, meta.crop, 3), np.uint8))
    many = square.expand(_BATCH, -1, -1, -1).contiguous()

    def network(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            deployed.probabilities(batch)

    address, process = _serve(arguments.model)
    try:
        one, batch = _body([data]), _body([data] * _BATCH)
        ways: dict[str, Callable[[], object]] = {
            "network": lambda: network(square),
            "predict": lambda: model.predict(data),
            "server": lambda: _ask(address, one),
        }
        batches: dict[str, Callable[[], object]] = {
            "network": lambda: network(many),
            "predict": lambda: model.predict([data] * _BATCH),
            "server": lambda: _ask(address, batch),
        }
        for way in (*ways.values(), *batches.values()):
            way()
        latency: dict[str, list[float]] = {name: [] for name in ways}
        rate: dict[str, list[float]] = {name: [] for name in [*batches, "clients"]}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                times = [_seconds(way) for _ in range(arguments.requests)]
                latency[name].append(statistics.median(times))
            for name, way in batches.items():
                rate[name].append(_BATCH / _seconds(way))
            rate["clients"].append(_at_once(address, one, arguments.clients, arguments.requests))
    finally:
        process.terminate()
        process.wait()
    print(f"{meta.architecture} at {meta.crop} px, JPEG of {width}x{height}, {len(data):,} bytes, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print("latency of one picture, ms (median of rounds; ratio to the network)")
    _table({name: 1000 * statistics.median(own) for name, own in latency.items()})
    print(f"pictures a second, {_BATCH} in a request; clients: {arguments.clients} at once, "
          "one picture a request")  # fmt: skip
    _table({name: statistics.median(own) for name, own in rate.items()})


def _table(found: dict[str, float]) -> None:
    for name, value in found.items():
        print(f"  {name:<8} {value:10.2f}   x{value / found['network']:.2f}")


def _photograph(width: int, height: int) -> bytes:
    """Return a JPEG of smooth shapes with some noise, of about a photograph's size in bytes."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    noisy = np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def _body(pictures: list[bytes]) -> bytes:
    rows = [{"image": base64.b64encode(data).decode()} for data in pictures]
    return json.dumps({"dataframe_records": rows}).encode()


def _ask(address: str, body: bytes) -> object:
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def _at_once(address: str, body: bytes, clients: int, requests: int) -> float:
    """Return pictures a second of so many clients."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        list(pool.map(lambda _: _ask(address, body), range(requests)))
        return requests / (time.perf_counter() - began)


def _serve(model: Path) -> tuple[str, subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtransfer.command", "serve", str(model), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://\S+/invocations", line):
            return found[0], process
    raise SystemExit(f"the server ended with code {process.wait()}")


if __name__ == "__main__":
    main()
