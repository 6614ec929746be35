"""The fused kernels without a GPU: run by Triton's interpreter, compiled for one, and traced.

The interpreter is chosen when Triton is imported; so its cases run in a process of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bigtransfer.model.group_norm_relu import uses_triton
from bigtransfer.model.resnet import Recompute, create_model
from fixtures.processes.interpreted_kernels import CASES
from fixtures.project import PROJECT

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (Linux)")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "fixtures.processes.interpreted_kernels"],
        cwd=PROJECT / "tests", env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, dict[str, float]] = json.loads(result.stdout)
    return found


@needs_triton
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_kernel_equals_the_plain_operations(
    case: str, dtype: str, interpreted: dict[str, dict[str, float]]
) -> None:
    found = interpreted[f"{case} {dtype}"]
    mean = CASES[case][-1]
    tolerance = 2e-6 * (1 + mean) if dtype == "float32" else 2e-2
    for name in ("y", "dx", "dgain", "doffset"):
        assert found.pop(name) < tolerance, name
    assert not [name for name, holds in found.items() if not holds]


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
