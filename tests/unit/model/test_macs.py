"""The arithmetic of multiply-adds, held to PyTorch's own count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bigtransfer.model import create_model
from bigtransfer.model.macs import forward_macs
from bigtransfer.model.names import PUBLISHED
from bigtransfer.model.peaks import accelerator_named

SMALL = [("R14x0.25", "small", 16), ("R26x1", "small", 33), ("R14x0.5", "imagenet", 65)]


@pytest.mark.parametrize(
    ("name", "root", "size"), [*((name, "imagenet", 224) for name in PUBLISHED), *SMALL]
)
def test_as_pytorch_counts(name: str, root: str, size: int) -> None:
    with torch.device("meta"):
        model = create_model(name, 1000, root)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    assert forward_macs(name, 1000, size, root) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("label", "name"),
    [("nvidia-h100-80gb", "H100"), ("NVIDIA-A100-SXM4-80GB", "A100"), ("nvidia-tesla-t4", "T4"),
     ("nvidia-l4", "L4"), ("NVIDIA-L40S", "L40S"), ("tpu-v5-lite-podslice", "tpu-v5-lite"),
     ("tpu-v6e-slice", "tpu-v6e"), ("NVIDIA-GeForce-RTX-4090", "RTX 4090")],
)  # fmt: skip
def test_labels_of_nodes_name_their_accelerator(label: str, name: str) -> None:
    found = accelerator_named(["us-central1-a", label])
    assert found is not None and found[0] == name


def test_other_labels_name_none() -> None:
    assert accelerator_named(["n2-standard-4", "true", "pool-a10x"]) is None
