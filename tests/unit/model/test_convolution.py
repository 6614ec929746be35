from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigtransfer.model.convolution import convolve, convolve_backward, is_product

CASES = [
    # channels in and out, side, kernel, stride, height; whether it is a product, and in NHWC
    (64, 128, 1, 1, 2, True, True), (64, 128, 1, 1, 7, True, False),
    (64, 128, 1, 1, 8, False, False), (64, 128, 1, 2, 5, True, True),
    (64, 128, 1, 2, 17, True, False), (512, 512, 3, 1, 2, True, True),
    (512, 512, 3, 2, 4, True, True), (512, 512, 3, 1, 4, False, False),
    (64, 64, 3, 1, 2, False, False),
]  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("inp", "out", "side", "stride", "size", "product", "in_nhwc"), CASES)
def test_both_ways_are_the_same_function_with_the_same_gradients(
    inp: int, out: int, side: int, stride: int, size: int, product: bool, in_nhwc: bool, last: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, inp, size, size + 1, generator=generator)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(out, inp, side, side, generator=generator) / (inp * side * side) ** 0.5
    steps, padding = (stride, stride), (side // 2, side // 2)
    assert is_product(x, kernel, steps) == (in_nhwc if last else product)
    x.requires_grad_()
    kernel.requires_grad_()
    plain = F.conv2d(x, kernel, None, steps, padding)
    ours = convolve(x, kernel, steps, padding)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    assert ours.shape == plain.shape
    if ours.shape[2] > 1:
        layout = torch.channels_last if last else torch.contiguous_format
        assert ours.is_contiguous(memory_format=layout)
    upper = torch.randn(plain.shape, generator=generator)
    expected = torch.autograd.grad(plain, (x, kernel), upper)
    got = torch.autograd.grad(ours, (x, kernel), upper)
    again = convolve_backward(upper, x.detach(), kernel.detach(), steps, padding)
    for a, b, c in zip(expected, got, again, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)
        assert torch.equal(b, c)


def test_single_images_single_places_half_precision_and_traced_graphs_stay_convolutions() -> None:
    x, kernel = torch.randn(2, 64, 2, 2), torch.randn(64, 64, 1, 1)
    assert is_product(x, kernel, (1, 1))
    assert not is_product(x[:1], kernel, (1, 1))
    assert not is_product(x[:, :, :1, :1], kernel, (1, 1))
    assert not is_product(x.bfloat16(), kernel.bfloat16(), (1, 1))
    exported = torch.export.export(_Net(), (x,), dynamic_shapes={"x": {2: torch.export.Dim.AUTO}})
    assert any("conv2d" in str(node.target) for node in exported.graph.nodes)


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.randn(64, 64, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolve(x, self.kernel, (1, 1), (0, 0))
