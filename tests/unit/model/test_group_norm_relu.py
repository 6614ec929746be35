"""The fused kernels without a GPU: run by Triton's interpreter, compiled for one, and traced.

The interpreter is chosen when Triton is imported; so its cases run in a process of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import PROJECT

from bigtransfer.model.group_norm_relu import uses_triton
from bigtransfer.model.resnet import Recompute, create_model

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (Linux)")

CHECK = """
import sys, torch, torch.nn.functional as F
from bigtransfer.model.triton_group_norm import apply, backward, forward
torch.manual_seed(0)
batch, channels, height, width, groups, mean, dtype = eval(sys.argv[1])
x = torch.randn(batch, channels, height, width) + mean
x = x.to(dtype, memory_format=torch.channels_last)
gain, offset = torch.randn(channels), torch.randn(channels)
inputs = [t.requires_grad_() for t in (x, gain, offset)]
y, m, r = forward(*inputs, groups, 1e-5)
upper = torch.randn_like(y)
found = torch.autograd.grad((y * upper).sum(), inputs)
exact = [t.detach().double().requires_grad_() for t in inputs]
normal = F.group_norm(exact[0], groups, exact[1], exact[2], 1e-5)
# Where rounding of x decides whether the ReLU is open, no two implementations agree.
clear = normal.abs() > 1e-3
expected = torch.autograd.grad((torch.relu(normal) * upper.double()).sum(), exact)
tolerance = {torch.float32: 2e-6 * (1 + mean), torch.bfloat16: 2e-2}[dtype]
assert (y - torch.relu(normal)).abs().max() < tolerance * normal.abs().max()
for a, b in zip(found, expected):
    assert a.dtype in (dtype, torch.float32)
    assert (a.double() - b).norm() < 3 * tolerance * b.norm(), (a - b).norm() / b.norm()
assert y.is_contiguous(memory_format=torch.channels_last) and m.dtype == torch.float32
assert torch.equal(apply(x.detach(), gain, offset, m, r, groups), y)
plain = (x.detach(), gain.detach(), offset.detach(), groups, 1e-5)
torch.library.opcheck(forward, plain, test_utils="test_schema")
print("fine")
"""
CASES = {
    "two channels a group": (2, 64, 14, 14, 32, 0.0),
    "several splits of the rows": (1, 64, 40, 40, 32, 0.0),
    "three channels a group": (1, 96, 9, 9, 32, 0.0),
    "six channels a group": (2, 192, 5, 7, 32, 3.0),
    "a mean that would cancel": (1, 128, 12, 12, 8, 1000.0),
    "narrow network": (1, 16, 3, 3, 8, 0.0),
    "one pixel": (2, 256, 1, 1, 32, 0.0),
    "sixty-four channels a group": (1, 2048, 3, 3, 32, 0.0),
}


@needs_triton
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_kernel_equals_the_plain_operations(case: str, dtype: str) -> None:
    values = "(" + ", ".join(map(str, CASES[case])) + f", torch.{dtype})"
    if dtype == "bfloat16" and CASES[case][-1] > 100:
        pytest.skip("bfloat16 cannot hold a spread of 1 around 1000")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK, values], cwd=PROJECT, capture_output=True,
        env={**os.environ, "TRITON_INTERPRET": "1"}, text=True, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == "fine", result.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("what", ["none", "norms", "units"])
def test_training_step_on_a_gpu_is_traced_through_the_kernels(
    what: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch would switch CUDA's autocast off on a machine without a GPU.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        seen: set[str] = set()

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.seen.add(str(func))
            return func(*args, **(kwargs or {}))

    # Tensors without data that say they are on a GPU: shapes, types and layouts are worked out.
    with FakeTensorMode():
        with torch.device("meta"):
            model = create_model("R26x3", 5).recompute(what)
        for module in model.modules():
            for name, p in list(module.named_parameters(recurse=False)):
                on_gpu = torch.empty(p.shape, device="cuda")
                setattr(module, name, torch.nn.Parameter(on_gpu))
        x = torch.empty(2, 3, 97, 160, device="cuda", memory_format=torch.channels_last)
        with Calls() as calls, torch.autocast("cuda", torch.bfloat16):
            F.cross_entropy(model(x), torch.zeros(2, dtype=torch.int64, device="cuda")).backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())
    assert not [name for name in calls.seen if "native_group_norm" in name]
    assert any("group_norm_relu" in name for name in calls.seen), calls.seen


def test_without_a_gpu_the_plain_operations_run() -> None:
    assert not uses_triton(torch.zeros(1, 32, 4, 4).to(memory_format=torch.channels_last))


@needs_triton
def test_kernels_compile_for_a_gpu_with_wide_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bigtransfer.model import triton_group_norm as kernels

    pointers = {"x", "y", "dx", "dy"}
    constants = {"G": 32, "CPG": 6, "CPP": 8, "BG": 32, "BC": 64, "BR": 32}
    whole = {"rows", "C", "per_split", "S"}
    for kernel in (kernels._statistics, kernels._merge, kernels._apply, kernels._backward_sums,
                   kernels._backward_merge, kernels._backward_x):  # fmt: skip
        names = kernel.arg_names
        kinds = {
            name: "constexpr" if name in constants
            else "i32" if name in whole
            else "fp32" if name == "eps"
            else "*bf16" if name in pointers
            else "*fp32"
            for name in names
        }  # fmt: skip
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if kinds[name][0] == "*" or name in ("C", "per_split")
        }
        values = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
        source = ASTSource(fn=kernel, signature=kinds, constexprs=values, attrs=aligned)
        built = compile_for(source, target=GPUTarget("cuda", 90, 32))
        loads = set(re.findall(r"ld\.global[.\w]*", built.asm["ptx"]))
        if pointers & set(names):
            assert "ld.global.v4.b32" in loads, (kernel.__name__, loads)
