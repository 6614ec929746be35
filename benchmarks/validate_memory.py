"""Memory of `validate` for each image: in one process, in a part and in the join of all parts.

python benchmarks/validate_memory.py                       # class folders, 20,000 and 100,000
python benchmarks/validate_memory.py --layout class_tars

Two numbers of images are validated, each in a process of its own; what grows between them, divided
by the images that make the difference, is what an image takes. Memory is what the process holds
itself (RssAnon): pages of a mapped file are the system's to drop.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peers  # noqa: F401  # finds the project
from PIL import Image

LAYOUTS = ("folders", "class_tars", "webdataset")
MODES = ("whole", "part", "join")
CLASSES, PARTS = 50, 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layout", choices=LAYOUTS, default="folders")
    parser.add_argument("--images", type=int, nargs=2, default=(20_000, 100_000))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        mode, data, out = arguments.run
        print(peak_of(mode, Path(data), Path(out), arguments.layout))
        return
    few, many = arguments.images
    peaks: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        for count in (few, many):
            data = Path(folder, f"data-{count}")
            write(data, count, arguments.layout)
            for mode in MODES:
                line = [sys.executable, __file__, "--layout", arguments.layout, "--run", mode]
                ended = subprocess.run(
                    [*line, str(data), f"{folder}/out-{count}"],
                    check=True, capture_output=True, text=True,
                )  # fmt: skip
                peaks[mode].append(float(ended.stdout.splitlines()[-1]))
    print(f"{arguments.layout}: {few:,} and {many:,} images, {PARTS} parts")
    for mode, (low, high) in peaks.items():
        each = (high - low) / (many - few)
        print(
            f"  {mode:<6} {low / 1e6:6.0f} MB and {high / 1e6:6.0f} MB, {each:5.0f} bytes an image"
        )


def write(data: Path, count: int, layout: str) -> None:
    """Write small images, no two alike, with names as long as those of ImageNet."""
    per_class = count // CLASSES
    for label in range(CLASSES):
        name = f"n{label:08d}"
        files: Iterator[tuple[str, bytes]] = (
            (f"{name}_{i:06d}.png", picture(label * per_class + i)) for i in range(per_class)
        )
        if layout == "folders":
            (data / name).mkdir(parents=True)
            for file, content in files:
                (data / name / file).write_bytes(content)
            continue
        data.mkdir(exist_ok=True)
        if layout == "webdataset":
            files = with_labels(files, name)
        with tarfile.open(data / f"{name}.tar", "w") as tar:
            for file, content in files:
                info = tarfile.TarInfo(file)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def with_labels(files: Iterator[tuple[str, bytes]], name: str) -> Iterator[tuple[str, bytes]]:
    """Yield a label beside each image."""
    for file, content in files:
        yield file, content
        yield file.replace(".png", ".txt"), name.encode()


def picture(number: int) -> bytes:
    """Return a PNG of noise, 16 pixels a side."""
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def peak_of(mode: str, data: Path, out: Path, layout: str) -> float:
    """Run one of the modes and return the most memory that the process held, bytes."""
    from bigtransfer.api.transfer import DEFAULTS
    from bigtransfer.config import DatasetRules, read_yaml
    from bigtransfer.data.validation import Parts, inspect_part, validate

    rules = DatasetRules.model_validate({**read_yaml(DEFAULTS)["data"], "layout": layout})
    most, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            most[0] = max(most[0], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    parts = out / "parts"
    began = time.perf_counter()
    if mode == "part":
        inspect_part(data, "data", rules, parts, 0, PARTS)
    else:
        for number in range(1, PARTS) if mode == "join" else ():  # in processes of their own
            code = (
                "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
                "import validate_memory as m; m.peak_of_part(*sys.argv[2:])"
            )
            subprocess.run(
                [sys.executable, "-c", code, str(Path(__file__).parent), str(data), str(parts),
                 layout, str(number)], check=True,
            )  # fmt: skip
        validate(
            data, "data", rules, manifest_path=out / f"{mode}.parquet", report=out / mode,
            parts=Parts(parts, PARTS) if mode == "join" else None,
        )  # fmt: skip
    ended.set()
    print(f"{mode}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return most[0]


def peak_of_part(data: str, parts: str, layout: str, number: str) -> None:
    """Write one more part for the join."""
    from bigtransfer.api.transfer import DEFAULTS
    from bigtransfer.config import DatasetRules, read_yaml
    from bigtransfer.data.validation import inspect_part

    rules = DatasetRules.model_validate({**read_yaml(DEFAULTS)["data"], "layout": layout})
    inspect_part(Path(data), "data", rules, Path(parts), int(number), PARTS)


def anonymous() -> float:
    """Return the memory that this process holds itself, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return float(line.split()[1]) * 1024
    raise SystemExit("this system does not tell RssAnon; run it on Linux")


if __name__ == "__main__":
    main()
