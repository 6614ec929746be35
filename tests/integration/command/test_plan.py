"""`bigtransfer plan` says what the recipes take, with the figures of the paper's arithmetic."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.project import PROJECT

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def planned(run_line: Run, tmp_path: Path) -> Run:
    shutil.copy(PROJECT / "params.yaml", tmp_path)

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return run_line("bigtransfer.command", "plan", "--probe-seconds", "0", *more)

    return run


def recipe(name: str) -> tuple[str, str]:
    return "--overlay", str(PROJECT / "pipelines" / f"{name}.yaml")


def values(text: str) -> dict[str, str]:
    return {line[:18].strip(): line[19:] for line in text.splitlines()}


@pytest.mark.parametrize(
    ("name", "steps", "flops", "classes"),
    [
        ("bit_s", "28,151", "1.3e+20", "1,000"),
        ("bit_m", "311,948", "1.4e+21", "21,843"),
        ("bit_l", "2,929,688", "1.3e+22", "18,291"),
    ],
)
def test_recipes(planned: Run, name: str, steps: str, flops: str, classes: str) -> None:
    result = planned(*recipe(name), "--devices", "64", "--memory", "80")
    assert result.returncode == 0, result.stderr
    found = values(result.stdout)
    assert found["steps"] == f"{steps} of 4,096 images"
    assert found["training FLOPs"] == flops
    head = 8193 * int(classes.replace(",", ""))
    assert f"{classes} classes, {928_340_224 + head:,} parameters" in found["network"]
    assert found["devices"] == "64, each 64 images per step (ddp)"
    assert found["micro-batch"].startswith("64 images, 1 forward pass per step")


def test_what_does_not_fit_says_what_to_change(planned: Run) -> None:
    found = values(planned(*recipe("bit_l"), "--memory", "8").stdout)
    assert found["micro-batch"].startswith("not one image fits into 8.0 GiB")
    assert "parallel: fsdp and more --devices" in found["micro-batch"]


def test_accumulation_follows_from_memory_and_devices(planned: Run) -> None:
    found = values(planned(*recipe("bit_s"), "--devices", "8", "--memory", "80").stdout)
    micro, passes = (int(found["micro-batch"].split()[at].replace(",", "")) for at in (0, 2))
    assert 1 < micro < 512
    assert micro * passes >= 512


def test_prices_are_a_table(planned: Run) -> None:
    found = values(planned(*recipe("bit_s"), "--price", "H100=2.5", "--price", "A100=1.5").stdout)
    hours = 1.2661e20 / (989e12 * 0.4) / 3600
    assert found["H100"].startswith(f"{hours:,.0f}"[:2])
    assert "at 2.5 per hour" in found["H100"]
    assert "device-hours at 40% of 312 TFLOP/s" in found["A100"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "dataset 'upstream' is not sharded yet, so its images are not counted; run `dvc"),
        (("--devices", "0"), "--devices 0: give 1 or more"),
        (("--price", "H100"), "--price H100: write DEVICE=PER_HOUR, e.g. H100=2.49"),
        (("--overlay", "none.yaml"), "none.yaml: no such file"),
    ],
)
def test_wrong_values_get_one_line(planned: Run, more: tuple[str, ...], message: str) -> None:
    result = planned(*more)
    assert result.returncode == 2
    assert result.stderr.startswith(f"bigtransfer plan: {message}")
    assert result.stderr.count("\n") == 1


def test_price_of_an_unknown_device(planned: Run) -> None:
    result = planned(*recipe("bit_s"), "--price", "Z9=1")
    assert result.returncode == 2
    assert "--price Z9=…: no such device is known" in result.stderr


def test_nodes_are_a_table_and_more_than_the_batch_is_said(planned: Run) -> None:
    result = planned(*recipe("bit_l"), "--nodes", "1024", "--accelerator", "H100", "--price",
                     "H100=2.5", "--losses", "1")  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line[:8].strip().isdigit()]
    assert [row[0] for row in rows] == ["8", "16", "32", "64", "128", "256", "512", "1024",
                                        "2048", "4096", "8192"]  # fmt: skip
    assert [row[1] for row in rows[:4]] == ["512", "256", "128", "64"]
    assert "8192 more devices than images of a step" in result.stdout
    shares = [int(next(word for word in row if word.endswith("%"))[:-1]) for row in rows[:-1]]
    assert shares == sorted(shares, reverse=True) and shares[0] == 100
    assert "H100: 360.5 images/s, 40% of 989 TFLOP/s" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "2"], "--nodes needs --accelerator"),
        (["--nodes", "0", "--accelerator", "H100"], "--nodes: give 1 or more"),
        (["--nodes", "2", "--accelerator", "Z9"], "'Z9' is not known; give --images-per-second"),
        (["--nodes", "2", "--images-per-second", "0"], "--images-per-second 0: give more than 0"),
    ],
)
def test_nodes_that_are_none_are_refused(planned: Run, words: list[str], said: str) -> None:
    result = planned(*recipe("bit_l"), *words)
    assert result.returncode == 2
    assert said in result.stderr
