"""The fused kernels in Triton's interpreter.

It is chosen when Triton is imported; so its cases run in a process of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from fixtures.processes.interpreted_kernels import CASES, POOLED
from fixtures.project import PROJECT

pytestmark = pytest.mark.xdist_group("kernels")

_TIMES = os.environ.get("BIGTRANSFER_TEST_TIMES")
DTYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.long)]
"""The kernels compute in float32 whatever they read and write; `make test-long` tries both."""

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton (Linux)")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "fixtures.processes.interpreted_kernels",
         "--dtypes", "float32", *([] if _TIMES is None else ["bfloat16"])],
        cwd=PROJECT / "tests", env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    found: dict[str, dict[str, float]] = json.loads(result.stdout)
    return found


@needs_triton
@pytest.mark.parametrize("how", ["", ", on chip"])
@pytest.mark.parametrize("adds", ["", ", a sum"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_kernel_equals_the_plain_operations(
    case: str, dtype: str, adds: str, how: str, interpreted: dict[str, dict[str, float]]
) -> None:
    if how and case == "several splits of the rows":
        assert f"{case}{adds}{how} {dtype}" not in interpreted, "too large for a program"
        return
    found = interpreted[f"{case}{adds}{how} {dtype}"]
    mean = CASES[case][-1]
    tolerance = 2e-6 * (1 + mean) if dtype == "float32" else 2e-2
    for name in ("y", "dx", "dgain", "doffset"):
        assert found.pop(name) < tolerance, name
    assert not [name for name, holds in found.items() if not holds]


@needs_triton
@pytest.mark.parametrize("case", POOLED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pool_is_pytorchs_with_a_frame_of_zeros(
    case: str, dtype: str, interpreted: dict[str, dict[str, float]]
) -> None:
    found = interpreted[f"pool, {case} {dtype}"]
    assert found.pop("y") == 0
    assert found.pop("dx") < 1e-6
    assert not [name for name, holds in found.items() if not holds]


@needs_triton
@pytest.mark.parametrize("case", POOLED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_root_on_places_two_by_two_is_the_7x7_convolution(
    case: str, dtype: str, interpreted: dict[str, dict[str, float]]
) -> None:
    found = interpreted[f"root, {case} {dtype}"]
    assert found.pop("y") < 1e-12
    assert found.pop("dgain") < 1e-12
    assert not [name for name, holds in found.items() if not holds]


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 3e-7), pytest.param("bfloat16", 8e-3, marks=pytest.mark.long)],
)
def test_images_enter_as_by_the_plain_operations(
    dtype: str, tolerance: float, interpreted: dict[str, dict[str, float]]
) -> None:
    found = interpreted[f"images {dtype}"]
    assert found.pop("y") <= tolerance
    assert not [name for name, holds in found.items() if not holds]
