from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bigtransfer.errors import CheckpointError
from bigtransfer.model import create_model, load_checkpoint, write_checkpoint
from bigtransfer.storage import seal
from fixtures.models import upstream_meta


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = create_model("R14x0.25", 3, "small", seed=4)
    torch.nn.init.normal_(model.head.weight)
    meta = upstream_meta("R14x0.25", ["a", "b", "c"], crop=16)
    write_checkpoint(tmp_path / "ck", model, meta)
    return tmp_path / "ck"


def test_round_trip_gives_bit_equal_logits(saved: Path) -> None:
    model, meta = load_checkpoint(saved)
    again, _ = load_checkpoint(saved)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), again(x))
    assert model(x).abs().max() > 0
    assert (meta.crop, len(meta.digest)) == (16, 64)


def test_new_classes_get_a_zero_head_and_the_same_body(saved: Path) -> None:
    model, _ = load_checkpoint(saved)
    transferred, _ = load_checkpoint(saved, classes=["x", "y"])
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.features(x), transferred.features(x))
    assert transferred(x).shape == (2, 2)
    assert transferred(x).abs().max() == 0


def test_one_flipped_bit_in_the_weights_is_found(saved: Path) -> None:
    path = saved / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"weights.safetensors' is damaged: sha256"):
        load_checkpoint(saved)


def rewrite_meta(folder: Path, **changes: object) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **changes}))
    seal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 99}, "newer version .*schema 99, this one knows 2"),
        ({"architecture": "R26x0.25"}, "lacks tensor 'body.block1.unit02."),
        ({"architecture": "R14x0.5"}, "R14x0.5 needs"),
        ({"classes": ["a"]}, r"'head.bias' is \(3,\), R14x0.25 needs \(1,\)"),
    ],
)
def test_what_does_not_fit_is_named(saved: Path, changes: dict[str, object], message: str) -> None:
    rewrite_meta(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved)


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    model = create_model("R14x0.25", 3, "small")
    with torch.no_grad():
        model.root.weight[0, 0, 0, 0] = float("nan")
    meta = upstream_meta("R14x0.25", ["a", "b", "c"], crop=16)
    write_checkpoint(tmp_path / "ck", model, meta)
    with pytest.raises(CheckpointError, match=r"'root.weight' holds NaN or Inf"):
        load_checkpoint(tmp_path / "ck")
