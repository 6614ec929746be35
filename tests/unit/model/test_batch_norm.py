"""BatchNorm over groups of images, against BatchNorm of each group alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigtransfer.errors import ConfigError
from bigtransfer.model import create_model
from bigtransfer.model.batch_norm import GroupedBatchNorm2d


def grouped(images: int) -> GroupedBatchNorm2d:
    norm = GroupedBatchNorm2d(3, images, eps=1e-5).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_each_group_is_normalised_as_if_it_were_alone(
    images: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    norm = grouped(images)
    x = torch.randn(8, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=layout)
    x.requires_grad_()
    y = norm(x)
    other = x.detach().clone().requires_grad_()
    weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    alone = [F.batch_norm(part, None, None, weight, bias, True) for part in other.split(images)]
    torch.testing.assert_close(y, torch.cat(alone))
    (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    wanted = torch.cat(alone)
    (wanted * torch.arange(y.numel()).view_as(y)).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(norm.weight.grad, weight.grad)
    torch.testing.assert_close(norm.bias.grad, bias.grad)


def test_running_statistics_follow_the_mean_over_the_groups_once_a_step() -> None:
    norm = grouped(2)
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64) + torch.arange(6).view(6, 1, 1, 1)
    norm(x)
    parts = x.split(2)
    mean = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    var = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var)
    assert norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 1
    plain = torch.nn.BatchNorm2d(3).double()
    plain.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm.eval()(x[:5]), plain.eval()(x[:5]))


def test_images_that_make_no_groups_are_named() -> None:
    with pytest.raises(ConfigError, match="norm_batch 4 does not divide the 6 images"):
        grouped(4)(torch.zeros(6, 3, 2, 2, dtype=torch.float64))


def test_a_network_of_it_has_the_weights_of_one_without() -> None:
    torch.manual_seed(0)
    made = create_model("R14x0.25", 5, "small", norm="bn", norm_batch=2).double()
    plain = create_model("R14x0.25", 5, "small", norm="bn").double()
    assert made.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(made.head.weight, plain.head.weight)
        made.head.weight.normal_(), plain.head.weight.copy_(made.head.weight)
        plain.load_state_dict(made.state_dict())
        apart = torch.cat([plain(part) for part in x.split(2)])
        torch.testing.assert_close(made(x), apart)
        assert not torch.allclose(made(x), plain(x), rtol=1e-2)
