"""Run the fused kernels in Triton's interpreter and print what was found, one JSON object.

The interpreter is chosen by the environment when Triton is imported; so this is a process of its
own, started by `test_group_norm_relu.py`.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

# batch, channels, height, width, groups, mean of x
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


def check(
    batch: int, channels: int, height: int, width: int, groups: int, mean: float, dtype: torch.dtype
) -> dict[str, float | bool]:
    """Compare one forward and backward pass with float64; errors are relative."""
    from bigtransfer.model.triton_group_norm import apply, forward

    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width) + mean
    x = x.to(dtype, memory_format=torch.channels_last)
    gain, offset = torch.randn(channels), torch.randn(channels)
    inputs = [t.requires_grad_() for t in (x, gain, offset)]
    y, m, r = forward(*inputs, groups, 1e-5)
    upper = torch.randn_like(y)
    # The ReLU is open where the kernel says so: where rounding decides, no two agree.
    exact = [t.detach().double().requires_grad_() for t in inputs]
    normal = F.group_norm(exact[0], groups, exact[1], exact[2], 1e-5)
    upper = torch.where(normal.detach().abs() > 1e-3, upper, 0)
    found = torch.autograd.grad((y * upper).sum(), inputs)
    expected = torch.autograd.grad((torch.relu(normal) * upper.double()).sum(), exact)
    plain = [t.detach() for t in inputs]
    torch.library.opcheck(forward, (*plain, groups, 1e-5), test_utils="test_schema")
    return {
        "y": float((y - torch.relu(normal)).abs().max() / normal.abs().max()),
        **{
            name: float((a.double() - b).norm() / b.norm())
            for name, a, b in zip(("dx", "dgain", "doffset"), found, expected, strict=True)
        },
        "channels_last": y.is_contiguous(memory_format=torch.channels_last),
        "float32_statistics": m.dtype == r.dtype == torch.float32,
        "dtypes_kept": [t.dtype for t in found] == [dtype, torch.float32, torch.float32],
        "applied_again": torch.equal(apply(*plain, m, r, groups), y),
    }


if __name__ == "__main__":
    print(
        json.dumps(
            {
                f"{case} {str(dtype).removeprefix('torch.')}": check(*values, dtype)
                for case, values in CASES.items()
                for dtype in (torch.float32, torch.bfloat16)
            }
        )
    )
