from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer.errors import ConfigError
from bigtransfer.model import create_model
from bigtransfer.model.names import parse_architecture
from bigtransfer.model.resnet import StdConv2d, standardize_kernel

# arXiv 1912.11370: the number of the abstract, 928 million, is R152x4 without a head; the others
# were counted over the arrays of the published files' layout (backbone, no head).
BACKBONE_PARAMETERS = {
    "R50x1": 23_500_352,
    "R50x3": 211_174_080,
    "R101x1": 42_492_480,
    "R101x3": 381_789_888,
    "R152x2": 232_238_208,
    "R152x4": 928_340_224,
}


@pytest.mark.parametrize(("name", "count"), BACKBONE_PARAMETERS.items())
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    head = sum(p.numel() for p in model.head.parameters())
    assert sum(p.numel() for p in model.parameters()) - head == count
    assert head == model.num_features * 10 + 10


def test_standardized_kernel_is_the_papers_formula() -> None:
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64) * 0.01 + 0.3
    variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
    expected = (weight - mean) / torch.sqrt(variance + 1e-10)
    torch.testing.assert_close(standardize_kernel(weight), expected, rtol=1e-12, atol=1e-12)


def test_constant_filter_stays_finite() -> None:
    assert standardize_kernel(torch.full((2, 3, 3, 3), 0.7)).abs().max() == 0


def test_half_precision_is_standardized_in_float32() -> None:
    weight = torch.randn(4, 8, 1, 1) * 1e-3
    result = standardize_kernel(weight.half())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, standardize_kernel(weight.half().float()))


def small(classes: int = 5) -> torch.nn.Module:
    model = create_model("R14x0.25", classes, "small", seed=1)
    torch.nn.init.normal_(model.head.weight)
    return model


def test_folded_network_is_the_same_function() -> None:
    model, x = small(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        torch.testing.assert_close(model.fold()(x), before, rtol=1e-6, atol=1e-6)
    assert not [m for m in model.modules() if isinstance(m, StdConv2d)]


def test_logits_do_not_depend_on_the_rest_of_the_batch() -> None:
    model, x = small().double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-12, atol=1e-12)


def test_scale_of_a_kernel_does_not_change_the_function() -> None:
    model, x = small().double(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        for module in model.modules():
            if isinstance(module, StdConv2d):
                module.weight.mul_(3.0)
        torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)  # epsilon alone differs


def test_projection_reads_the_activated_input() -> None:
    model = create_model("R14x0.25", 5, "small")
    unit = model.stages[0][0]
    seen: list[Tensor] = []
    unit.proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0].clone()))
    x = torch.randn(1, 16, 8, 8)
    unit(x)
    torch.testing.assert_close(seen[0], F.relu(unit.norm_a(x)))


def test_imagenet_stem_pads_the_pool_with_zeros() -> None:
    model = create_model("R14x0.25", 5).eval()
    shapes: list[Tensor] = []
    model.stages.register_forward_pre_hook(lambda _m, args: shapes.append(args[0].clone()))
    x = torch.randn(1, 3, 97, 160)
    with torch.no_grad():
        model(x)
        root = model.root(x)
        expected = F.max_pool2d(F.pad(root, (1, 1, 1, 1), value=0.0), 3, 2)
        wrong = F.max_pool2d(F.pad(root, (1, 1, 1, 1), value=-1e9), 3, 2)
    assert tuple(shapes[0].shape[2:]) == (25, 40)
    torch.testing.assert_close(shapes[0], expected)
    assert not torch.allclose(expected, wrong)


def test_seed_decides_the_weights_and_the_head_is_zero() -> None:
    one, same, other = (create_model("R14x0.25", 5, "small", seed=s) for s in (1, 1, 2))
    assert torch.equal(one.root.weight, same.root.weight)
    assert not torch.equal(one.root.weight, other.root.weight)
    assert one.head.weight.abs().max() == one.head.bias.abs().max() == 0


@pytest.mark.parametrize("name", ["R50X1", "resnet50", "R51x1", "R50x0.01", "R50x"])
def test_wrong_names_say_what_names_look_like(name: str) -> None:
    with pytest.raises(ConfigError, match=r"architecture '"):
        parse_architecture(name)


def test_did_you_mean() -> None:
    with pytest.raises(ConfigError, match="did you mean 'R50x1'"):
        parse_architecture("R50X1")
