"""A small training on three classes of noise, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT

from bigtransfer import config
from bigtransfer.config import PretrainParams
from bigtransfer.train.pretrain import Outputs, pretrain
from unit.data.test_shards import packed  # noqa: F401  # a fixture

STEPS = 24
_SMALL: dict[str, Any] = {
    "epochs": STEPS * 8 / 18, "batch_size": 8, "decay_epochs": (6.0,), "warmup_steps": 3,
    "precrop": 12, "crop": 10, "flip": True, "threads": 1, "device": "cpu",
    "evaluation_steps": 6, "checkpoint_steps": 2, "checkpoint_seconds": None,
    "probe": {"dataset": "upstream", "examples_per_class": (2,), "seeds": (0,)},
}  # fmt: skip


def small_params(**changes: Any) -> PretrainParams:
    base = config.load(PROJECT / "params.yaml").pretrain.model_dump()
    return PretrainParams.model_validate({**base, **_SMALL, **changes})


@dataclass
class Trained:
    """A folder to train in, and what was logged there."""

    folder: Path
    shards: Path
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @property
    def outputs(self) -> Outputs:
        return Outputs(*(self.folder / name for name in ("checkpoint", "m.json", "h.csv")))

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def train(
        self, log: Callable[[int, dict[str, float]], None] | None = None, **changes: Any
    ) -> dict[str, Any]:
        def both(step: int, values: dict[str, float]) -> None:
            self.logged.append((step, values))
            if log is not None:
                log(step, values)

        result = pretrain(
            small_params(**changes), self.shards, self.shards, self.outputs, self.work, both
        )
        assert result is not None
        return result

    def weights(self) -> bytes:
        return (self.outputs.checkpoint / "weights.safetensors").read_bytes()

    def history(self) -> str:
        return self.outputs.history.read_text()


@pytest.fixture
def trained(packed: Path, tmp_path: Path) -> Trained:  # noqa: F811
    torch.set_num_threads(1)
    return Trained(tmp_path / "run", packed)


@pytest.fixture
def undisturbed(packed: Path, tmp_path: Path) -> Trained:  # noqa: F811
    """The same training, run to its end without a disturbance."""
    result = Trained(tmp_path / "undisturbed", packed)
    result.train()
    return result
