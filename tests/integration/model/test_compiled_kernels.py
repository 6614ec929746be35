"""The kernels, compiled for GPUs that are not here; Triton asks its tools for that.

Triton compiles a kernel anew for what its integer arguments are: one that equals 1 becomes a Python
number, a multiple of 16 is known to be one. Its interpreter sees nothing of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (Linux)"),
    pytest.mark.xdist_group("kernels"),
]

CONSTANTS: dict[str, list[dict[str, int]]] = {
    "_statistics": [{"ADDS": 0, "BC": 64, "BR": 32}, {"ADDS": 1, "BC": 64, "BR": 32}],
    "_merge": [{"G": 32, "CPG": 6, "CPP": 8, "BG": 32}],
    "_apply": [{"G": 32, "CPG": 6, "BC": 64, "BR": 32}],
    "_backward_sums": [{"G": 32, "CPG": 6, "BC": 64, "BR": 32}],
    "_backward_merge": [{"G": 32, "CPG": 6, "CPP": 8, "BG": 32, "BC": 16, "BN": 128}],
    "_backward_x": [
        {"ADDS": 0, "G": 32, "CPG": 6, "BC": 64, "BR": 32},
        {"ADDS": 1, "G": 32, "CPG": 6, "BC": 64, "BR": 32},
    ],
    "_forward_on_chip": [
        {"ADDS": 0, "G": 32, "CPG": 6, "CPP": 8, "GP": 4, "BR": 64},
        {"ADDS": 1, "G": 32, "CPG": 6, "CPP": 8, "GP": 4, "BR": 64},
    ],
    "_backward_on_chip": [
        {"ADDS": 0, "G": 32, "CPG": 6, "CPP": 8, "GP": 4, "BR": 64},
        {"ADDS": 1, "G": 32, "CPG": 6, "CPP": 8, "GP": 4, "BR": 64},
    ],
    "_pool": [{"BC": 64, "BR": 16}],
    "_pool_backward": [{"BC": 64, "BR": 16}],
    "_images": [{"MIXES": 0, "B": 2048}, {"MIXES": 1, "B": 2048}],
    "_space_to_depth": [{"BR": 64}],
}
"""Kernel -> what is known when it is compiled, in the forms that a network gives it."""
ACTIVATIONS = {"x", "y", "dx", "dy", "other", "total", "past", "out"}
BYTES = {"kept", "images", "partners"}
NUMBERS = {"merged", "batch", "rows", "C", "per_split", "S", "H", "W", "OH", "OW", "size"}
NARROW = ("_merge", "_backward_merge", "_space_to_depth")
"""They read few bytes, or three colours at a time."""
ARCHITECTURES = (80, 90)
Values = dict[str, int]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def kernel_named(name: str) -> Any:
    from bigtransfer.model import triton_group_norm, triton_root

    return getattr(triton_group_norm, name, None) or getattr(triton_root, name)


def compiled(name: str, architecture: int, values: Values, constants: Values) -> str:
    """Compile a kernel as a launch with these integers would; return its PTX."""
    from triton import compile as compile_for
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = kernel_named(name)
    signature, known, attributes = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], known[place,] = "constexpr", constants[argument]
        elif argument in NUMBERS and values[argument] == 1:
            signature[argument], known[place,] = "constexpr", 1
        elif argument in NUMBERS:
            signature[argument] = "i32"
            if values[argument] % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
        elif argument == "eps":
            signature[argument] = "fp32"
        else:
            kind = "bf16" if argument in ACTIVATIONS else "u8" if argument in BYTES else "fp32"
            signature[argument] = f"*{kind}"
            attributes[place,] = [["tt.divisibility", 16]]  # PyTorch's memory is aligned
    source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=attributes)
    built = compile_for(source, target=GPUTarget("cuda", architecture, 32))
    return str(built.asm["ptx"])


def shapes(channels: int) -> Iterator[tuple[Values, Values]]:
    """Yield the integers and constants of tensors of so many channels, as networks have them."""
    import torch

    from bigtransfer.model.triton_group_norm import _Plan
    from bigtransfer.model.triton_root import _blocks

    for (height, width), batch in product(((1, 1), (7, 9), (56, 56)), (1, 4)):
        groups = 8 if channels == 16 else 32
        x = torch.empty(batch, channels, height, width, device="meta")
        plan = _Plan(x, groups)
        lanes, rows = _blocks(channels)
        values = {
            "merged": batch, "batch": batch, "rows": plan.rows, "C": plan.channels,
            "S": plan.splits, "per_split": plan.per_split, "H": height, "W": width,
            "OH": (height - 1) // 2 + 1, "OW": (width - 1) // 2 + 1,
            "size": batch * height * width * 3,
        }  # fmt: skip
        constants = {
            "G": plan.groups, "CPG": plan.per_group, "CPP": plan.padded, "BG": plan.merged,
            "BC": plan.lanes, "BR": plan.block_rows, "ADDS": 1, "MIXES": 1, "BN": 128, "B": 2048,
        }  # fmt: skip
        yield values, constants
        yield values, {**constants, "BC": lanes, "BR": rows}
        if plan.groups_on_chip:
            on_chip = {"GP": plan.groups_on_chip, "BR": plan.all_rows}
            yield {**values, "merged": 0, "S": 1}, {**constants, **on_chip}


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(n, marks=() if n == 90 else pytest.mark.long) for n in ARCHITECTURES],
)
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_kernel_compiles_for_every_kind_of_integer(name: str, architecture: int) -> None:
    own = sorted(NUMBERS & set(kernel_named(name).arg_names))
    usual = dict.fromkeys(own, 7)
    tried = [{**usual, number: value} for number in own for value in (1, 48)]
    tried += [dict.fromkeys(own, value) for value in (1, 7, 48)]
    for constants in CONSTANTS[name]:
        for values in tried:
            compiled(name, architecture, values, constants)


@pytest.mark.parametrize(
    "channels",
    [pytest.param(16, marks=pytest.mark.long), pytest.param(192, marks=pytest.mark.long), 256],
)
@pytest.mark.parametrize("name", CONSTANTS)
def test_a_kernel_compiles_for_the_shapes_of_networks(name: str, channels: int) -> None:
    arguments = set(kernel_named(name).arg_names)
    done = set()
    for values, constants in shapes(channels):
        kinds = {n: v if v == 1 else v % 16 == 0 for n, v in values.items() if n in arguments}
        own = {n: v for n, v in constants.items() if n in arguments}
        if "GP" in arguments and "GP" not in own:
            continue
        key = (*sorted(kinds.items()), *sorted(own.items()))
        if key not in done:
            done.add(key)
            compiled(name, 90, values, own)
    assert done


@pytest.mark.parametrize("name", ["_apply", "_forward_on_chip"])
def test_the_relu_passes_on_what_is_no_number(name: str) -> None:
    ptx = compiled(name, 90, dict.fromkeys(NUMBERS, 48), CONSTANTS[name][-1])
    assert "max.NaN.f32" in ptx
    assert "max.f32" not in ptx


def test_threads_that_share_a_sum_agree_on_it() -> None:
    one_place = {"ADDS": 0, "G": 32, "CPG": 8, "CPP": 8, "GP": 8, "BR": 1}
    ptx = compiled("_forward_on_chip", 90, {**dict.fromkeys(NUMBERS, 1), "C": 256}, one_place)
    squared = re.findall(r"fma\.rn\.f32 \s*%r\d+, (%r\d+), (%r\d+),", ptx)
    assert squared
    assert not [pair for pair in squared if pair[0] == pair[1]], "a square within an addition"


@pytest.mark.parametrize("name", [k for k in CONSTANTS if k not in NARROW])
def test_a_kernel_reads_many_bytes_at_a_time(name: str) -> None:
    values = dict.fromkeys(NUMBERS, 3136)
    ptx = compiled(name, 90, values, CONSTANTS[name][-1])
    loads = set(re.findall(r"ld\.global[.\w]*", ptx))
    assert any(wide in load for load in loads for wide in (".v4.b32", ".v2.b32")), loads
