"""`preset: quick`: features computed once, heads that belong to them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bigtransfer.artifacts.cells import Cells
from bigtransfer.config import EvaluateParams
from bigtransfer.data.batches import Squares, bootstrap_positions
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import ConfigError, InfrastructureError
from bigtransfer.evaluate.scoring import Scorer
from bigtransfer.evaluate.task import Outputs, evaluate
from bigtransfer.model import load_checkpoint
from bigtransfer.model.inference import to_network
from bigtransfer.train import features as featuring
from bigtransfer.train.devices import Device
from bigtransfer.train.features import FeatureSpec, FeatureStore
from bigtransfer.train.interrupts import watched
from fixtures.training import meta_of, tune, weights_of

QUICK: dict[str, Any] = {
    "preset": "quick", "total_steps": None, "batch_size": None, "precrop": None, "crop": None,
    "examples_per_class": ("full",), "precision": "float32",
}  # fmt: skip


def store(pretrained: Path, shards: Path, folder: Path) -> FeatureStore:
    spec = FeatureSpec(pretrained, "weights", 10, "float32")
    return FeatureStore(folder, spec, open_shards(shards), Device())


def directly(pretrained: Path, shards: Path, rows: NDArray[np.int64]) -> torch.Tensor:
    network, _ = load_checkpoint(pretrained)
    squares = Squares(open_shards(shards), rows, 10)
    with torch.no_grad():
        return network.eval().features(to_network(squares.get(np.arange(len(rows)))))


def test_features_are_the_networks_own_and_computed_once(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = open_shards(packed).rows("train")
    own = store(pretrained, packed, tmp_path / "features")
    with watched(1) as interrupts:
        own.compute(rows, interrupts, mirrored=True, label="x")
    expected = directly(pretrained, packed, rows)
    assert np.allclose(own.of(rows), expected, atol=1e-4)
    network, _ = load_checkpoint(pretrained)
    squares = Squares(open_shards(packed), rows, 10).get(np.arange(len(rows)))
    with torch.no_grad():
        turned = network.eval().features(to_network(np.ascontiguousarray(squares[:, :, ::-1])))
    assert np.allclose(own.of(rows, mirrored=True), turned, atol=1e-4)

    monkeypatch.setattr(FeatureStore, "_network", lambda self: pytest.fail("computed again"))
    again = store(pretrained, packed, tmp_path / "features")
    assert again.lacking(rows, mirrored=True) == 0
    assert np.array_equal(again.of(rows[::-1]), own.of(rows)[::-1])


def test_what_is_interrupted_keeps_the_parts_that_were_finished(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featuring, "_PART", 4)
    monkeypatch.setattr(featuring, "_BATCH", 2)
    rows = open_shards(packed).rows("train")
    own = store(pretrained, packed, tmp_path / "features")
    keep = FeatureStore._keep

    def stopped(self: FeatureStore, *rest: Any) -> None:
        keep(self, *rest)
        if own.lacking(rows, mirrored=False) == len(rows) - 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "_keep", stopped)
        with pytest.raises(InfrastructureError, match="SIGTERM"), watched(5) as interrupts:
            own.compute(rows, interrupts, mirrored=False, label="x")
    again = store(pretrained, packed, tmp_path / "features")
    assert again.lacking(rows, mirrored=False) == len(rows) - 8
    with watched(5) as interrupts:
        again.compute(rows, interrupts, mirrored=False, label="x")
    assert np.allclose(again.of(rows), directly(pretrained, packed, rows), atol=1e-4)


def test_a_damaged_part_is_computed_again(
    pretrained: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_shards(packed).rows("train")
    own = store(pretrained, packed, tmp_path / "features")
    with watched(1) as interrupts:
        own.compute(rows, interrupts, mirrored=False, label="x")
    (part,) = (tmp_path / "features").rglob("*.npz")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    again = store(pretrained, packed, tmp_path / "features")
    assert again.lacking(rows, mirrored=False) == len(rows)
    assert "its features are computed again" in capsys.readouterr().out


def test_seeds_differ_and_the_network_below_the_head_stays(
    pretrained: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[dict[str, float]] = []
    tune(pretrained, packed, tmp_path / "out", log=lambda _, own: logged.append(own),
         seeds=(0, 1), **QUICK)  # fmt: skip
    said = capsys.readouterr().out
    assert "a linear probe and not the paper's protocol" in said
    assert "of each image and its mirror image at 10 px in float32" in said
    before = load_checkpoint(pretrained)[0].state_dict()
    one, other = (weights_of(tmp_path / "out", f"upstream-full-{seed}") for seed in (0, 1))
    for name, tensor in one.items():
        if name.startswith("head"):
            assert not torch.equal(tensor, other[name])
        else:
            assert torch.equal(tensor, before[name]), name
    meta = meta_of(tmp_path / "out", "upstream-full-0")
    assert meta["trained"] == "head" and meta["crop"] == 10
    assert meta["hyperrule"]["regime"] == "quick"
    assert meta["hyperrule"]["strength"] == logged[0]["upstream-full-0/strength"]
    assert logged[0]["upstream-full-0/val_top1"] == meta["calibration"]["top1"]


def test_the_same_again_computes_nothing_and_more_seeds_compute_no_features(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(pretrained, packed, tmp_path / "out", seeds=(0,), **QUICK)
    first = weights_of(tmp_path / "out", "upstream-full-0")
    monkeypatch.setattr(FeatureStore, "_network", lambda self: pytest.fail("computed again"))
    tune(pretrained, packed, tmp_path / "out", seeds=(0, 1), **QUICK)
    again = weights_of(tmp_path / "out", "upstream-full-0")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_few_shots_compute_the_features_of_their_images_alone(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:
    tune(pretrained, packed, tmp_path / "out", **{**QUICK, "examples_per_class": (2,)}, seeds=(0,))
    parts = [np.load(path) for path in (tmp_path / "work" / "features").rglob("*.npz")]
    val = len(open_shards(packed).rows("val"))
    assert sum(len(part["keys"]) for part in parts) == 6 + val


def test_few_shots_and_all_images_go_together(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:
    tune(pretrained, packed, tmp_path / "out", **{**QUICK, "examples_per_class": (2, "full")})
    few, all_of_them = (
        meta_of(tmp_path / "out", f"upstream-{k}-0")["hyperrule"]["images"] for k in (2, "full")
    )
    assert few == 6 < all_of_them <= 18


def test_what_does_not_go_with_it_is_refused_or_said(
    pretrained: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="nothing to learn from scratch; set 'inits' to"):
        tune(pretrained, packed, tmp_path / "out", **{**QUICK, "inits": ("upstream", "scratch")})
    tune(pretrained, packed, tmp_path / "out", **{**QUICK, "total_steps": 5, "base_lr": 0.1})
    assert "without effect under preset quick: total_steps 5, base_lr 0.1" in (
        capsys.readouterr().out
    )


def test_heads_of_one_network_are_scored_on_features_that_are_computed_once(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(pretrained, packed, tmp_path / "out", seeds=(0, 1, 2), **QUICK)
    shards = open_shards(packed)
    scorer = Scorer(tmp_path / "out", shards, 8, torch.device("cpu"))
    calls: list[str] = []
    whole = Scorer._predicted
    monkeypatch.setattr(
        Scorer, "_predicted", lambda self, *rest: calls.append(rest[1]) or whole(self, *rest)
    )
    found = {
        c.folder: scorer.logits(c.folder, "test")[0] for c in Cells.read(tmp_path / "out").cells
    }
    assert calls == ["test"]
    squares = Squares(shards, shards.rows("test"), 10).get(np.arange(len(shards.rows("test"))))
    for folder, logits in found.items():
        network, _ = load_checkpoint(tmp_path / "out" / folder)
        with torch.no_grad():
            expected = network.eval()(to_network(squares)).numpy()
        assert np.allclose(logits, expected, atol=1e-4)
    outputs = Outputs(*(tmp_path / name for name in ("report", "m.json", "c.csv", "p.csv")))
    params = EvaluateParams(batch_size=8, threads=1, device="cpu")
    report = evaluate(params, tmp_path / "out", packed, outputs, lambda *_: None)
    assert report.hyperrule["regime"] == "quick"


def test_a_bootstrap_keeps_every_class_at_its_size() -> None:
    labels = np.array([0] * 30 + [1] * 3 + [2])
    drawn = bootstrap_positions(len(labels), labels, 5, balanced=False)
    assert np.bincount(labels[drawn]).tolist() == [30, 3, 1]
    assert len(np.unique(drawn)) < len(labels)
    assert not np.array_equal(drawn, bootstrap_positions(len(labels), labels, 6, balanced=False))
    balanced = bootstrap_positions(len(labels), labels, 5, balanced=True)
    assert np.bincount(labels[balanced]).tolist() == [30, 30, 30]
