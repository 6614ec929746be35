"""The fused kernels in a traced training step, without a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bigtransfer.model.group_norm_relu import uses_triton
from bigtransfer.model.resnet import Recompute, create_model

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (Linux)")


@needs_triton
@pytest.mark.parametrize("what", ["none", "norms", "units"])
def test_training_step_is_traced_through_the_kernels(
    what: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Calls(TorchDispatchMode):
        seen: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.add(str(func))
            return func(*args, **(kwargs or {}))

    # Tensors without data: shapes, types and layouts are worked out, no kernel runs.
    monkeypatch.setattr(
        "bigtransfer.model.group_norm_relu.uses_triton",
        lambda x: x.is_contiguous(memory_format=torch.channels_last),
    )
    model = create_model("R26x0.25", 5, "small").recompute(what)
    fake = FakeTensorMode()
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(fake.from_tensor(p.detach())))
    with fake:
        x = torch.empty(2, 3, 33, 40).to(memory_format=torch.channels_last)
        with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
            F.cross_entropy(model(x), torch.zeros(2, dtype=torch.int64)).backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())
    assert not [name for name in calls.seen if "native_group_norm" in name]
    assert any("group_norm_relu.default" in name for name in calls.seen), calls.seen
    assert any("group_norm_relu_backward" in name for name in calls.seen), calls.seen
    assert any("_apply" in name for name in calls.seen) == (what == "norms")


def test_without_a_gpu_the_plain_operations_run() -> None:
    assert not uses_triton(torch.zeros(1, 32, 4, 4).to(memory_format=torch.channels_last))
