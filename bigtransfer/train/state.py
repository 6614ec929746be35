"""Resumable checkpoints of a running stage, under `.work/`, keyed by a fingerprint.

The fingerprint covers params, data and the code that trains, so a changed value never goes on from
old weights. A checkpoint is a sealed folder: weights, momentum, history, step. Two are kept; a
damaged newest one is named and the one before it is used.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import SGD

from bigtransfer.errors import CheckpointError
from bigtransfer.model.checkpoint import read_tensors, write_tensors
from bigtransfer.storage import digest_of, read_json, sha256_json, verify_folder

_KEPT = 2


def fingerprint(**parts: Any) -> str:
    """Return 16 hex digits over JSON values and over the code of the rooms that train."""
    package = Path(__file__).parents[1]
    code = [
        digest_of(file) for room in ("train", "model", "data") for file in _code(package / room)
    ]
    return sha256_json({"code": code, "torch": torch.__version__, **parts})[:16]


def _code(room: Path) -> list[Path]:
    return sorted(room.glob("*.py"))


@dataclass
class Progress:
    """Where a run stands: finished steps and one history row per noted step."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class WorkFolder:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, model: nn.Module, optimizer: SGD, progress: Progress) -> None:
        """Write a checkpoint, then forget all but the newest two."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        momentum = {
            names[id(parameter)]: state["momentum_buffer"]
            for parameter, state in optimizer.state.items()
            if state.get("momentum_buffer") is not None
        }
        write_tensors(
            self.folder / f"step-{progress.step:08d}",
            {"weights": model.state_dict(), "momentum": momentum},
            {"step": progress.step, "history": progress.history},
        )
        for old in self._checkpoints()[:-_KEPT]:
            shutil.rmtree(old)

    def restore(self, model: nn.Module, optimizer: SGD, warn: Any = print) -> Progress:
        """Load the newest undamaged checkpoint into model and optimiser; a fresh start without one.

        Args:
            model: Gets the weights.
            optimizer: Gets the momentum.
            warn: Called with one line for every checkpoint that is passed over.
        """
        for folder in reversed(self._checkpoints()):
            try:
                verify_folder(folder, CheckpointError)
                meta = read_json(folder / "meta.json")
                model.load_state_dict(read_tensors(folder, "weights"))
                momentum = read_tensors(folder, "momentum")
            except CheckpointError as error:
                warn(f"passing over a damaged checkpoint: {error}")
                continue
            parameters = dict(model.named_parameters())
            for name, buffer in momentum.items():
                own = torch.empty_like(parameters[name])  # in the parameter's memory layout
                optimizer.state[parameters[name]]["momentum_buffer"] = own.copy_(buffer)
            return Progress(meta["step"], meta["history"])
        return Progress()

    def clear(self) -> None:
        """Remove the folder: the run is finished and its output is in place."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
