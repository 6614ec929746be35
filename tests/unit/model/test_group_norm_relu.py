"""The fused kernels in a traced training step, without a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bigtransfer.errors import ConfigError
from bigtransfer.model import kernels, resnet
from bigtransfer.model.kernels import KERNELS, uses_kernel
from bigtransfer.model.resnet import Recompute, create_model

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (Linux)")


@needs_triton
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("what", ["none", "norms", "units"])
def test_training_step_is_traced_through_the_kernels(
    what: Recompute, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Calls(TorchDispatchMode):
        seen: set[str] = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.seen.add(str(func))
            return func(*args, **(kwargs or {}))

    # Tensors without data: shapes, types and layouts are worked out, no kernel runs.
    for module in (kernels, resnet):
        monkeypatch.setattr(module, "on_gpu", lambda x: True)
    monkeypatch.setattr(kernels, "_PLAIN", frozenset(["add_group_norm_relu"] if apart else []))
    model = create_model("R26x0.25", 5, "imagenet").recompute(what)
    fake = FakeTensorMode()
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(fake.from_tensor(p.detach())))
    with fake:
        x = torch.empty(2, 3, 65, 80).to(memory_format=torch.channels_last)
        with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
            F.cross_entropy(model(x), torch.zeros(2, dtype=torch.int64)).backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())
    assert not [name for name in calls.seen if "native_group_norm" in name]
    assert not [name for name in calls.seen if "max_pool2d" in name]
    expected = {"group_norm_relu", "group_norm_relu_backward", "max_pool", "max_pool_backward",
                "space_to_depth"}  # fmt: skip
    expected |= {"group_norm_relu_apply"} if what == "norms" else set()
    expected |= {"add_group_norm_relu"} if not apart and what == "none" else set()
    ours = {name.split(".")[1] for name in calls.seen if name.startswith("bigtransfer.")}
    assert ours == expected


def test_without_a_gpu_the_plain_operations_run() -> None:
    x = torch.zeros(1, 32, 4, 4).to(memory_format=torch.channels_last)
    assert not any(uses_kernel(name, x) for name in KERNELS)


@needs_triton
def test_kernels_are_switched_off_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 32, 4, 4).to(memory_format=torch.channels_last)
    monkeypatch.setattr(kernels, "on_gpu", lambda x: True)
    assert all(uses_kernel(name, x) for name in KERNELS)
    monkeypatch.setattr(kernels, "_PLAIN", frozenset(["max_pool"]))
    assert not uses_kernel("max_pool", x)
    assert uses_kernel("group_norm_relu", x)
    monkeypatch.setattr(kernels, "_PLAIN", frozenset(["all"]))
    assert not any(uses_kernel(name, x) for name in KERNELS)
    monkeypatch.setattr(kernels, "_PLAIN", frozenset(["maxpool"]))
    with pytest.raises(ConfigError, match="BIGTRANSFER_PLAIN names 'maxpool', which is no kernel"):
        uses_kernel("images", x)
