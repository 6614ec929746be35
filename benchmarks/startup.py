"""How long `bigtransfer --help` and `import bigtransfer` take, against `python -c pass`.

python benchmarks/startup.py

Each round starts every line once, in turn; the ratio is taken within a round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

PASS = "python -c pass"
LINES = {
    PASS: ["-c", "pass"],
    "import bigtransfer": ["-c", "import bigtransfer"],
    "bigtransfer --version": ["-m", "bigtransfer.command", "--version"],
    "bigtransfer --help": ["-m", "bigtransfer.command", "--help"],
    "bigtransfer finetune --help": ["-m", "bigtransfer.command", "finetune", "--help"],
    "bigtransfer predct": ["-m", "bigtransfer.command", "predct"],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=15, help="starts of each (default: 15)")
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in LINES}
    for line in LINES.values():  # once, for the disk
        took(line)
    for _ in range(rounds):
        for name, line in LINES.items():
            seconds[name].append(took(line))
    print(f"{rounds} rounds, Python {sys.version.split()[0]}; median [least..most]")
    for name, own in seconds.items():
        ratios = sorted(a / b for a, b in zip(own, seconds[PASS], strict=True))
        print(
            f"{name:<28}{statistics.median(own):6.3f} s [{min(own):.3f}..{max(own):.3f}]   "
            f"x{statistics.median(ratios):.1f} [{ratios[0]:.1f}..{ratios[-1]:.1f}]"
        )


def took(line: list[str]) -> float:
    """Return the seconds of one start, from the project's folder."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *line],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
