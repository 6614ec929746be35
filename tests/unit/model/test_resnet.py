from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigtransfer import config
from bigtransfer.errors import ConfigError
from bigtransfer.model import ResNetV2, create_model
from bigtransfer.model.names import parse_architecture
from bigtransfer.model.resnet import (
    NORMS,
    RECOMPUTE,
    ROOTS,
    Norm,
    Recompute,
    Root,
    StdConv2d,
    standardize_kernel,
)

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


def test_layout_of_the_kernel_is_kept_and_changes_nothing() -> None:
    weight = torch.randn(6, 4, 3, 3)
    by_channel = weight.to(memory_format=torch.channels_last)
    result = standardize_kernel(by_channel)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, standardize_kernel(weight), rtol=1e-6, atol=1e-6)


def test_autocast_standardizes_in_float32() -> None:
    weight = torch.randn(4, 8, 3, 3) * 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(standardize_kernel(weight), standardize_kernel(weight))
        result = standardize_kernel(weight)
    assert result.dtype == torch.float32
    assert torch.equal(result, standardize_kernel(weight))


def small(classes: int = 5) -> ResNetV2:
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
    unit = create_model("R14x0.25", 5, "small").body.block1.unit01
    seen: list[Tensor] = []
    unit.proj.register_forward_hook(lambda _m, args, _o: seen.append(args[0].clone()))
    x = torch.randn(1, 16, 8, 8)
    unit(x)
    torch.testing.assert_close(seen[0], F.relu(unit.norm_a(x)))


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    ("images", "sides", "places"),
    [
        (1, (97, 160), (25, 40)),
        (2, (64, 64), (16, 16)),
        (3, (2, 5), (1, 2)),
        (8, (160, 161), (40, 41)),
    ],
)
def test_imagenet_root_pads_the_pool_with_zeros(
    images: int, sides: tuple[int, int], places: tuple[int, int], alone: bool
) -> None:
    model = create_model("R14x0.25", 5).eval()
    pooled: list[Tensor] = []
    model.body.register_forward_pre_hook(lambda _m, args: pooled.append(args[0].detach().clone()))
    x = torch.randn(images, 3, *sides)
    with torch.set_grad_enabled(not alone):
        model(x)
    with torch.no_grad():
        root = model.root(x)
        expected = F.max_pool2d(F.pad(root, (1, 1, 1, 1), value=0.0), 3, 2)
        wrong = F.max_pool2d(F.pad(root, (1, 1, 1, 1), value=-1e9), 3, 2)
    assert tuple(pooled[0].shape[2:]) == places
    torch.testing.assert_close(pooled[0], expected)
    assert not torch.allclose(expected, wrong)
    wide = alone and images == 8
    assert pooled[0].is_contiguous(memory_format=torch.channels_last) == wide


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


def gradients(model: ResNetV2, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    target = torch.arange(len(x)) % model.head.out_features
    F.cross_entropy(model(x), target).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("what", ["norms", "units"])
def test_recomputing_changes_no_bit_of_any_gradient(what: Recompute, root: Root) -> None:
    model = create_model("R14x0.25", 5, root, seed=1)
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(3, 3, 33, 40)
    kept = gradients(model, x)
    again = gradients(model.recompute(what), x)
    assert kept.keys() == again.keys() == dict(model.named_parameters()).keys()
    assert not [name for name in kept if not torch.equal(kept[name], again[name])]


def kept_bytes(model: ResNetV2, x: Tensor) -> int:
    """Bytes of activations that autograd keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.ndim == 4 and len(tensor) == len(x):  # an activation, not a kernel
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x).sum()
    # Counted while the graph is alive: an address that was let go could be counted for another.
    total = sum(storages.values())
    loss.backward()
    return total


@pytest.mark.parametrize(("what", "at_most"), [("norms", 0.65), ("units", 0.4)])
def test_recomputing_keeps_less(what: Recompute, at_most: float) -> None:
    model, x = create_model("R50x0.5", 5), torch.randn(5, 3, 96, 96)
    everything = kept_bytes(model, x)
    assert kept_bytes(model.recompute(what), x) <= at_most * everything


def test_kernels_standardized_once_give_the_accumulated_gradient() -> None:
    model, x = small().double(), torch.randn(6, 3, 16, 16, dtype=torch.float64)

    def accumulate() -> None:
        for part in x.split(2):
            F.cross_entropy(model(part), torch.tensor([0, 1])).backward()

    accumulate()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with model.standardized_once():
        accumulate()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_kernels_are_standardized_once_and_not_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = small(), []
    plain = standardize_kernel

    def counted(weight: Tensor) -> Tensor:
        calls.append(1)
        return plain(weight)

    monkeypatch.setattr("bigtransfer.model.resnet.standardize_kernel", counted)
    convs = sum(isinstance(m, StdConv2d) for m in model.modules())
    with model.standardized_once():
        for _ in range(3):
            model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert len(calls) == 2 * convs, "before the passes, and for the gradient of the weights"


def test_kernels_are_let_go_after_an_error() -> None:
    model = small()
    with pytest.raises(RuntimeError), model.standardized_once():
        model(torch.randn(1, 4, 16, 16))
    assert not [m for m in model.modules() if isinstance(m, StdConv2d) and m.held is not None]


@pytest.mark.parametrize("what", RECOMPUTE)
def test_training_step_under_autocast_keeps_float32_masters(what: Recompute) -> None:
    model, x = small().recompute(what), torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    F.cross_entropy(logits.float(), torch.zeros(4, dtype=torch.int64)).backward()
    exact = gradients(small().recompute("none"), x)
    for name, p in model.named_parameters():
        assert p.dtype == p.grad.dtype == torch.float32, name
        assert p.grad.shape == exact[name].shape


@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_the_ablation(norm: Norm) -> None:
    model = create_model("R14x0.25", 5, "small", norm=norm)
    kinds = {type(m).__name__ for m in model.modules()}
    assert ("StdConv2d" in kinds) == norm.endswith("_ws")
    assert ("PlainConv2d" in kinds) == (not norm.endswith("_ws"))
    assert ("GroupNorm" in kinds) == norm.startswith("gn")
    assert ("BatchNorm2d" in kinds) == norm.startswith("bn")
    assert (
        gradients(model, torch.randn(4, 3, 16, 16)).keys() == dict(model.named_parameters()).keys()
    )


def test_params_offer_what_the_network_knows() -> None:
    offered = get_type_hints(config.PretrainParams)
    assert get_args(offered["root"]) == ROOTS
    assert get_args(offered["norm"]) == NORMS


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="root is 'stem'; choose one of imagenet, small"):
        create_model("R14x0.25", 5, "stem")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="norm is 'ln'; choose one of gn_ws, gn, bn_ws, bn"):
        create_model("R14x0.25", 5, norm="ln")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="recompute is 'all'"):
        small().recompute("all")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="recompute: norms does not go with norm: bn"):
        create_model("R14x0.25", 5, "small", norm="bn").recompute("norms")
