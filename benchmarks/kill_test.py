"""Kill a training at random moments until it has survived N of them, and compare every bit.

    python benchmarks/kill_test.py --kills 50
    python benchmarks/kill_test.py --kills 20 --processes 2
    python benchmarks/kill_test.py --kills 10 --s3

A short training on the CPU is run once undisturbed, then again and again under `kill -9`: a third
of the kills anywhere after the first step, a third while a checkpoint is being written, a third
during an evaluation. Every start is the same command. At the end weights and momentum must be equal
bit for bit and the metrics journal point by point, and no start may repeat more than an interval.
Moments and, under torchrun, victims come in turn, each turn in an order of its own: three kills are
one of each moment, four under torchrun one of each victim.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

PROJECT = Path(__file__).parents[1]
PYTHON = [sys.executable]
TORCHRUN = [*PYTHON, "-m", "torch.distributed.run", "--nproc-per-node"]
SECONDS = 60
"""A start that neither ends nor does a step for so long is hung."""
EVALUATE_EVERY = 10
TARGETS = ("anywhere", "checkpoint", "evaluation")
VICTIMS = ("rank 0", "rank 1", "all ranks", "torchrun")
BUCKET = "kill-test"


def main() -> None:
    """Run the test and print its table; exit 1 if anything differed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50, help="to survive (default: 50)")
    parser.add_argument("--processes", type=int, default=1, help="more than 1: under torchrun")
    parser.add_argument(
        "--s3",
        action="store_true",
        help="checkpoints go to a loopback S3 server too, and the local ones vanish at every kill",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--steps", type=int, default=60, help="of the training (default: 60)")
    parser.add_argument("--interval", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--kills-per-training", type=int, default=10, metavar="N")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="kill-test-") as folder,
        s3_server() if arguments.s3 else local() as environment,
    ):
        sys.exit(KillTest(Path(folder), arguments, environment).run())


class KillTest:
    """One training, undisturbed and disturbed."""

    def __init__(self, work: Path, arguments: argparse.Namespace, more: dict[str, str]) -> None:
        self._work, self._arguments = work, arguments
        self._rng = random.Random(arguments.seed)
        self._targets, self._victims = self._in_turn(TARGETS), self._in_turn(VICTIMS)
        self._environment = {
            **os.environ,
            **more,
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "MLFLOW_TRACKING_URI": "sqlite:///tracking.db",
        }
        self._killed: Counter[tuple[str, str]] = Counter()
        self._behind: list[int] = []
        self._hung = 0

    def _in_turn(self, kinds: Sequence[str]) -> Iterator[str]:
        """Yield each kind once, in an order drawn anew, again and again."""
        while True:
            yield from self._rng.sample(kinds, len(kinds))

    def run(self) -> int:
        """Return 0 if everything survived."""
        arguments = self._arguments
        print(
            f"seed {arguments.seed}; {arguments.steps} steps, a checkpoint every "
            f"{arguments.interval}, an evaluation every {EVALUATE_EVERY}, "
            f"{arguments.processes} process{'es' if arguments.processes > 1 else ''}"
            f"{', checkpoints on S3' if arguments.s3 else ''}",
            flush=True,
        )
        make_shards(self._work, self._environment, self._overlay())
        process = self._start()
        if process.wait():
            raise SystemExit(self._log())
        expected = self._outcome()
        equal = trainings = 0
        while (left := arguments.kills - self._killed.total()) > 0:
            starts = self._disturb(min(left, arguments.kills_per_training))
            trainings += 1
            found = self._outcome()
            equal += found == expected
            verdict = "bit-identical" if found == expected else differences(expected, found)
            print(f"training {trainings}: {starts} starts, {verdict}", flush=True)
        self._print_table(equal, trainings)
        good = equal == trainings and not self._hung
        return 0 if good and max(self._behind, default=0) <= arguments.interval else 1

    def _overlay(self) -> Path:
        arguments = self._arguments
        pretrain: dict[str, Any] = {
            "dataset": "noise",
            "probe": {"dataset": "noise", "examples_per_class": [5]},
            "batch_size": 32,
            "epochs": arguments.steps * 32 / 280,
            "decay_epochs": [],
            "warmup_steps": 5,
            "threads": 1,
            "device": "cpu",
            "evaluation_steps": EVALUATE_EVERY,
            "checkpoint_steps": arguments.interval,
            "checkpoint_seconds": None,
        }
        if arguments.s3:
            pretrain["checkpoint_mirror"] = f"s3://{BUCKET}/state"
        dataset = {
            "path": "noise",
            "splits": {"val": 0.3, "test": 0.0},
            "near_duplicate_side": 0,
            "required_splits": ["train", "val"],
            "small_side_pixels": 8,
        }
        path = self._work / "overlay.yaml"
        path.write_text(json.dumps({"datasets": {"noise": dataset}, "pretrain": pretrain}))
        return path

    def _start(self) -> subprocess.Popen[bytes]:
        many = self._arguments.processes
        head = [*TORCHRUN, str(many)] if many > 1 else PYTHON
        line = [
            *head,
            str(PROJECT / "benchmarks" / "kill_worker.py"),
            "--params",
            str(PROJECT / "params.yaml"),
            "--overlay",
            "overlay.yaml",
            "--shards",
            "shards",
            "--probe",
            "shards",
            "--checkpoint",
            "out/checkpoint",
            "--metrics",
            "out/metrics.json",
            "--history",
            "out/history.csv",
        ]
        with (self._work / "log").open("wb") as log:
            return subprocess.Popen(
                line, cwd=self._work, env=self._environment, stdout=log, stderr=log
            )

    def _disturb(self, kills: int) -> int:
        """Train to the end under so many kills; return the number of starts."""
        starts = 0
        saved, before = 0, 0
        while True:
            process = self._start()
            starts += 1
            killed = False
            if kills and (phase := self._wait_for_moment(process)):
                saved = self._saved()
                self._killed[self._kill(process), phase] += 1
                kills -= 1
                killed = True
            code = self._end_of(process)
            if resumed := re.search(r"resuming at step ([\d,]+)", self._log()):
                if not self._arguments.s3:  # the bucket may be a checkpoint behind
                    self._behind.append(before - int(resumed[1].replace(",", "")))
            if code == 0 and not killed:
                return starts
            if not killed and code not in (4, None):  # 4: an orphan holds the lock for a moment
                raise SystemExit(f"exit code {code}\n{self._log()}")
            if killed and self._arguments.s3:
                shutil.rmtree(self._work / ".work" / "pretrain", ignore_errors=True)
            before = saved

    def _wait_for_moment(self, process: subprocess.Popen[bytes]) -> str | None:
        """Wait until it is time to kill; return what is going on then, None if it has ended."""
        target = next(self._targets)
        first = self._steps_noted()
        while process.poll() is None and self._steps_noted() == first and not self._partial():
            time.sleep(0.002)
        until = time.monotonic() + self._rng.uniform(0, 1.5)
        if target == "anywhere":
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
        else:
            give_up = time.monotonic() + 5
            while process.poll() is None and time.monotonic() < give_up:
                if time.monotonic() > until and self._phase() == target:
                    break
        return self._phase() if process.poll() is None else None

    def _phase(self) -> str:
        if self._partial():
            return "checkpoint"
        rows = self._rows()
        evaluates = bool(rows) and rows[-1]["step"] % EVALUATE_EVERY == 0
        return "evaluation" if evaluates and "val_top1" not in rows[-1] else "step"

    def _partial(self) -> bool:
        return any((self._work / ".work" / "pretrain").glob("*/.step-*.partial-*"))

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for path in (self._work / ".work" / "pretrain").glob("*/metrics.jsonl"):
            with suppress(OSError):
                for line in path.read_text().splitlines():
                    with suppress(ValueError):
                        rows.append(json.loads(line))
        return rows

    def _steps_noted(self) -> int:
        return len(self._rows())

    def _saved(self) -> int:
        """Return the newest finished checkpoint."""
        folders = (self._work / ".work" / "pretrain").glob("*/step-*/MANIFEST.json")
        return max((int(f.parent.name.removeprefix("step-")) for f in folders), default=0)

    def _kill(self, process: subprocess.Popen[bytes]) -> str:
        if self._arguments.processes == 1:
            process.kill()
            return "the process"
        workers = self._workers(process)
        who = next(self._victims)
        chosen = {"rank 0": workers[:1], "rank 1": workers[1:2], "all ranks": workers}.get(who, [])
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if who == "torchrun":
            process.kill()
        self._orphans = workers
        return who

    def _workers(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Return the pids of the ranks, in order."""
        found = {}
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.Error):
                if "RANK" in (environment := child.environ()):
                    found[int(environment["RANK"])] = child.pid
        return [found[rank] for rank in sorted(found)]

    def _end_of(self, process: subprocess.Popen[bytes]) -> int | None:
        """Wait for the end of all that was started; None if something hung and was ended here."""
        try:
            code: int | None = process.wait(SECONDS + 240)
        except subprocess.TimeoutExpired:
            code = None
        orphans = getattr(self, "_orphans", [])
        deadline = time.monotonic() + SECONDS
        while any(map(alive, orphans)) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [pid for pid in orphans if alive(pid)]
        if code is None or left:
            self._hung += 1
            for pid in (process.pid, *left):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._orphans = []
        return code

    def _outcome(self) -> dict[str, Any]:
        path = self._work / "last-state.json"
        found: dict[str, Any] = json.loads(path.read_text())
        path.unlink()
        shutil.rmtree(self._work / "out")
        found["journal"] = sorted(
            (key, row["step"], value) for row in found["journal"] for key, value in row.items()
        )
        return found

    def _log(self) -> str:
        return (self._work / "log").read_text()

    def _print_table(self, equal: int, trainings: int) -> None:
        print(f"\n{'killed':<12} {'during':<12} kills")
        for (who, phase), count in sorted(self._killed.items()):
            print(f"{who:<12} {phase:<12} {count:>5}")
        print(
            f"\n{self._killed.total()} kills in {trainings} trainings: {equal} of {trainings} "
            f"finished with the same weights, momentum and journal; {self._hung} hung over "
            f"{SECONDS} s; at a restart at most {max(self._behind, default=0)} steps behind the "
            f"newest checkpoint that was finished before the kill"
        )


def alive(pid: int) -> bool:
    """Say whether a process still runs."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Say what is not equal."""
    return "DIFFERENT: " + ", ".join(key for key in expected if expected[key] != found[key])


def make_shards(work: Path, environment: dict[str, str], overlay: Path) -> None:
    """Write a small dataset of noise and pack it: 280 training, 120 validation images."""
    rng = np.random.default_rng(0)
    for label in range(4):
        folder = work / "noise" / f"class_{label}"
        folder.mkdir(parents=True)
        for number in range(100):
            pixels = rng.integers(0, 200, (20, 20, 3)).astype(np.uint8)
            pixels[label * 5 : label * 5 + 5] += 55
            Image.fromarray(pixels).save(folder / f"{number}.png")
    common = [
        "--params",
        str(PROJECT / "params.yaml"),
        "--overlay",
        str(overlay),
        "--section",
        "datasets.noise",
        "--dataset",
        "noise",
        "--manifest",
        "manifest.parquet",
    ]
    for line in (
        ["components.validate", *common, "--validation", "validation"],
        ["components.shard", *common, "--shards", "shards"],
    ):
        subprocess.run(
            [*PYTHON, "-m", *line], cwd=work, env=environment, check=True, stdout=subprocess.DEVNULL
        )


@contextmanager
def local() -> Iterator[dict[str, str]]:
    """Need nothing."""
    yield {}


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run an S3 server on loopback; yield the environment that leads to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    os.environ.update(environment)
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        yield environment
    finally:
        server.stop()


if __name__ == "__main__":
    main()
