"""Models that answer with weights in bfloat16: noted when written, taken where it helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bigtransfer.artifacts.weights import Narrowed
from bigtransfer.data.shards import open_shards
from bigtransfer.errors import ConfigError
from bigtransfer.model.checkpoint import read_tuned_meta
from bigtransfer.model.inference import to_network
from bigtransfer.serve import precision
from bigtransfer.serve.deployed import load_deployed
from bigtransfer.serve.precision import narrows, note_bfloat16
from bigtransfer.storage import verify_folder

CPU = torch.device("cpu")
HARMLESS = Narrowed(images=100, top1=0.8, top1_float32=0.8, differ=0.01)


@pytest.fixture
def model(tuned: Path, tmp_path: Path) -> Path:
    """A copy of a fine-tuned network of three classes."""
    return Path(shutil.copytree(tuned, tmp_path / "model"))


def test_what_bfloat16_changes_is_noted_in_a_sealed_folder(model: Path, packed: Path) -> None:
    assert "bfloat16" not in json.loads((model / "meta.json").read_text())
    before = verify_folder(model)
    note_bfloat16(model, packed)
    assert verify_folder(model) != before
    meta = read_tuned_meta(model)
    images = len(open_shards(packed).rows("val"))
    assert meta.bfloat16 is not None
    assert meta.bfloat16.images == images
    assert 0 <= meta.bfloat16.differ <= 1
    wide, _ = load_deployed(model)
    assert not any(p.dtype == torch.bfloat16 for p in wide.parameters()), "the file stays float32"


@pytest.mark.parametrize(
    ("found", "harmless"),
    [
        (HARMLESS, True),
        (HARMLESS.model_copy(update={"top1": 0.81}), True),
        (HARMLESS.model_copy(update={"top1": 0.79}), False),
        (HARMLESS.model_copy(update={"differ": 0.02}), False),
    ],
)
def test_auto_takes_it_where_nothing_is_lost_and_the_processor_multiplies_it(
    found: Narrowed, harmless: bool, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = read_tuned_meta(model)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: True)
    assert not narrows("auto", meta, CPU), "nobody has looked"
    looked = meta.model_copy(update={"bfloat16": found})
    assert narrows("auto", looked, CPU) is harmless
    assert not narrows("float32", looked, CPU)
    assert narrows("bfloat16", meta, CPU)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: False)
    assert not narrows("auto", looked, CPU)
    with pytest.raises(ConfigError, match="precision is 'half'; choose one of auto, float32"):
        narrows("half", looked, CPU)


def test_narrow_weights_answer_in_float32(model: Path) -> None:
    squares = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    with torch.inference_mode():
        wide = load_deployed(model)[0].probabilities(to_network(squares))
        narrow = load_deployed(model)[0].narrow().probabilities(to_network(squares))
    assert narrow.dtype == torch.float32
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, atol=0.05, rtol=0)
