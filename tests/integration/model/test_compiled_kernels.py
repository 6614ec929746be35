"""The fused kernels, compiled for a GPU that is not here; Triton asks its tools for that."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (Linux)")


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
