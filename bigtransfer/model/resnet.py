"""ResNet-v2 with GroupNorm and Weight Standardization, as BiT uses it.

Paper: arXiv 1912.11370, section 3.1; numerics as in google-research/big_transfer (Apache-2.0),
written anew. Not from there: the small root and the depths 14 and 26, for images of 8-64 pixels,
and the other norms, for the paper's ablation.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bigtransfer.errors import ConfigError
from bigtransfer.model.batch_norm import GroupedBatchNorm2d
from bigtransfer.model.convolution import convolve
from bigtransfer.model.group_norm_relu import (
    add_group_norm_relu,
    adds_in_kernel,
    group_norm_relu,
    group_norm_relu_convs,
)
from bigtransfer.model.kernels import on_gpu, uses_kernel
from bigtransfer.model.names import Architecture, parse_architecture

WS_EPS = 1e-10  # big_transfer bit_pytorch/models.py, StdConv2d: inside the root
GN_EPS = 1e-5
_BLOCK_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4
_WIDE_PIXELS = 200_000
"""Of all images of a forward pass: 16 of 112 px, 4 of 224 px."""

Root = Literal["imagenet", "small"]
Norm = Literal["gn_ws", "gn", "bn_ws", "bn"]
Recompute = Literal["none", "norms", "units"]
ROOTS: tuple[Root, ...] = ("imagenet", "small")
NORMS: tuple[Norm, ...] = ("gn_ws", "gn", "bn_ws", "bn")
RECOMPUTE: tuple[Recompute, ...] = ("none", "norms", "units")


def standardize_kernel(weight: Tensor) -> Tensor:
    """Return the kernel with zero mean and unit variance per output filter.

    Each of the O filters is standardised over its own I*H*W values with the biased variance:
    (w - mean) / sqrt(var + 1e-10). That is a layer norm without affine over each flattened
    filter, one fused operation with a closed-form backward. Always in float32 or wider: in half
    precision the epsilon vanishes.

    Args:
        weight: Convolution kernel, shape (O, I, H, W), contiguous or channels_last.

    Returns:
        Kernel of the same shape and layout; float32 for half-precision input, else the same dtype.

    Source:
        Qiao et al. 2019, arXiv 1903.10520; epsilon and biased variance as in
        google-research/big_transfer, `bit_pytorch/models.py`.
    """
    # The order inside a filter does not matter; in this one, flattening copies nothing.
    by_layout = not weight.is_contiguous()
    ordered = weight.permute(0, 2, 3, 1) if by_layout else weight
    flat = ordered.flatten(1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    # `meta` tensors (counting operations, planning memory) know no autocast.
    kind = "cpu" if weight.is_meta else weight.device.type
    with torch.autocast(kind, enabled=False):
        standard = F.layer_norm(flat, flat.shape[1:], eps=WS_EPS).view(ordered.shape)
    return standard.permute(0, 3, 1, 2) if by_layout else standard


class StdConv2d(nn.Conv2d):
    """Convolution whose kernel is standardised on every use; no bias, no learned gain."""

    held: Tensor | None = None
    """The standardised kernel, while one is kept for several forward passes."""

    def kernel(self, x: Tensor) -> Tensor:
        """Return the standardised kernel in the dtype and, on a GPU, the layout of `x`."""
        kernel = standardize_kernel(self.weight) if self.held is None else self.held
        return _like(kernel, x)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W) to (B, O, H', W')."""
        return _convolved(self, x)


class PlainConv2d(nn.Conv2d):
    """The same without standardisation: for the ablation, and what a network is folded into."""

    def kernel(self, x: Tensor) -> Tensor:
        """Return the kernel in the dtype and, on a GPU, the layout of `x`."""
        return _like(self.weight, x)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W) to (B, O, H', W')."""
        return _convolved(self, x)


Conv = StdConv2d | PlainConv2d


class Pending(NamedTuple):
    """A residual whose sum the next norm makes on its way."""

    y: Tensor
    shortcut: Tensor


class Unit(nn.Module):
    """Pre-activation bottleneck: norm-ReLU before each of 1x1, 3x3, 1x1; the sum stays as it is."""

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        conv: Callable[..., Conv],
        norm: Callable[..., nn.Module],
        *,
        project: bool,
    ) -> None:
        super().__init__()
        out = width * _EXPANSION
        self.norm_a = norm(channels)
        self.conv_a = conv(channels, width, 1)
        self.norm_b = norm(width)
        # The stride sits in the 3x3, not in the first 1x1; published weights expect it there.
        self.conv_b = conv(width, width, 3, stride, 1)
        self.norm_c = norm(width)
        self.conv_c = conv(width, out, 1)
        self.proj = conv(channels, out, 1, stride) if project else None
        self.recompute: Recompute = "none"

    def forward(self, x: Tensor | Pending) -> Tensor | Pending:
        """Map (B, C, H, W) to (B, 4 * width, H / stride, W / stride)."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self._plain(x)
        x = summed(x)
        if self.recompute == "norms":
            return self._lean(x)
        result: Tensor = checkpoint(
            lambda x: summed(self._plain(x)), x, use_reentrant=False, preserve_rng_state=False
        )
        return result

    def _plain(self, x: Tensor | Pending) -> Tensor | Pending:
        if isinstance(x, Pending):
            assert isinstance(self.norm_a, nn.GroupNorm), "no other norm leaves a sum to the next"
            x, preact = add_group_norm_relu(self.norm_a, *x)
        else:
            preact = norm_relu(self.norm_a, x)
        # The projection reads the activated input, not x itself.
        shortcut = x if self.proj is None else self.proj(preact)
        y = self.conv_a(preact)
        y = self.conv_b(norm_relu(self.norm_b, y))
        y = self.conv_c(norm_relu(self.norm_c, y))
        if isinstance(self.norm_a, nn.GroupNorm) and adds_in_kernel(y, shortcut):
            return Pending(y, shortcut)
        total: Tensor = y.add_(shortcut)  # nobody's gradient needs y itself
        return total

    def _lean(self, x: Tensor) -> Tensor:
        if self.proj is None:
            shortcut, (y,) = x, _lean_convs(self.norm_a, x, self.conv_a)
        else:
            y, shortcut = _lean_convs(self.norm_a, x, self.conv_a, self.proj)
        (y,) = _lean_convs(self.norm_b, y, self.conv_b)
        (y,) = _lean_convs(self.norm_c, y, self.conv_c)
        return y + shortcut


class ResNetV2(nn.Module):
    """BiT's network: root, four blocks of bottleneck units, norm, mean, zero-initialised head.

    Attributes:
        num_features: Width of the pooled features.
        root_kind: `imagenet` or `small`.
        norm_kind: `gn_ws`, `gn`, `bn_ws` or `bn`.
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int,
        root: Root,
        norm: Norm,
        norm_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.root_kind, self.norm_kind = root, norm
        conv, make_norm = _conv(norm), _norm(norm, architecture, norm_batch)
        channels = architecture.width(_BLOCK_WIDTHS[0])
        if root == "small":
            self.root = conv(3, channels, 3, 1, 1)
        else:
            self.root = conv(3, channels, 7, 2, 3)
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (units, base) in enumerate(
            zip(architecture.block_units, _BLOCK_WIDTHS, strict=True), start=1
        ):
            width = architecture.width(base)
            block: OrderedDict[str, nn.Module] = OrderedDict()
            for unit in range(1, units + 1):
                stride = 2 if number > 1 and unit == 1 else 1
                block[f"unit{unit:02d}"] = Unit(
                    channels, width, stride, conv, make_norm, project=unit == 1
                )
                channels = width * _EXPANSION
            blocks[f"block{number}"] = nn.Sequential(block)
        self.body = nn.Sequential(blocks)
        self.norm = make_norm(channels)
        self.head = nn.Linear(channels, num_classes)
        self.num_features = channels
        if root == "small":
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types it for 4-d only

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the features before they are pooled, of images (B, 3, H, W) in [-1, 1].

        Returns:
            (B, num_features, H / 32, W / 32) of the root `imagenet`, H / 8 and W / 8 of `small`.
        """
        wants_last = self.root_kind == "small" or on_gpu(x) or _is_wide(x)
        layout = torch.channels_last if wants_last else torch.contiguous_format
        if self.root_kind == "small":
            x = self.root(x.contiguous(memory_format=layout))
        else:
            x = _pooled(self._before_pool(x, layout), layout)
        x = self.body(x)
        if isinstance(x, Pending):
            assert isinstance(self.norm, nn.GroupNorm), "no other norm leaves a sum to the next"
            return add_group_norm_relu(self.norm, *x)[1]
        return norm_relu(self.norm, x)

    def _before_pool(self, x: Tensor, layout: torch.memory_format) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last if _is_forward_alone() else layout)
        if uses_kernel("root", x) and not x.requires_grad:
            return _by_depth(self.root, x)
        y: Tensor = self.root(x)
        return y

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled features, (B, num_features), of images (B, 3, H, W) in [-1, 1]."""
        return self.feature_map(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, num_classes), of images (B, 3, H, W) in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits

    def recompute(self, what: Recompute) -> ResNetV2:
        """Choose what is made again in the backward pass instead of being kept; return self.

        Args:
            what: `none`; `norms`: norm and ReLU before each convolution, half of the memory for a
                few percent of time; `units`: whole units, least memory, a third more time.

        Raises:
            ConfigError: If `what` is unknown, or `norms` is asked of a network with BatchNorm,
                whose statistics would be updated twice.
        """
        if what not in RECOMPUTE:
            raise ConfigError(f"recompute is {what!r}; choose one of {', '.join(RECOMPUTE)}")
        if what != "none" and self.norm_kind in ("bn", "bn_ws"):
            raise ConfigError(
                f"recompute: {what} does not go with norm: {self.norm_kind}, whose running "
                "statistics would be updated twice; choose recompute: none or norm: gn_ws"
            )
        for module in self.modules():
            if isinstance(module, Unit):
                module.recompute = what
        return self

    @contextmanager
    def standardized_once(self) -> Iterator[None]:
        """Standardise every kernel once for all forward and backward passes of the block.

        For gradient accumulation; `weight.grad` is complete when the block ends.
        """
        kernels = HeldKernels(self)
        kernels.make()
        with kernels.held():
            yield
        kernels.pull_back(drop=True)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh kernels; gains 1, offsets 0, head zero.

        Kernels are uniform in +-1/sqrt(fan_in). Weight Standardization takes their scale out of
        the function, but the scale still sets the effective step size: a step of SGD moves a
        larger kernel by a smaller angle.
        """
        for module in self.modules():
            if isinstance(module, StdConv2d | PlainConv2d):
                bound = 1 / math.sqrt(module.weight[0].numel())
                fresh = torch.empty(module.weight.shape, device=generator.device)
                module.weight.copy_(fresh.uniform_(-bound, bound, generator=generator))
        self.zero_head()

    @torch.no_grad()
    def zero_head(self) -> None:
        """Set the head to zero, as every transfer of BiT starts."""
        self.head.weight.zero_()
        self.head.bias.zero_()

    @torch.no_grad()
    def fold(self) -> ResNetV2:
        """Replace every standardised convolution by a plain one with the same function, in place.

        For inference only: the kernels can no longer be trained as BiT does.
        """
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, StdConv2d):
                    setattr(module, name, _folded(child))
        return self.eval()


class HeldKernels:
    """Kernels that are standardised once for several forward and backward passes.

    Gradients of the standardised kernels are summed over the micro-batches and pulled through
    Weight Standardization once, at the end; that is exact, because the pullback is linear. The
    tensors stay where they are, as a recorded step needs it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._convs = [m for m in model.modules() if isinstance(m, StdConv2d)]
        self.weights = [conv.weight for conv in self._convs]
        """What is standardised."""
        self._kernels: list[Tensor] = []

    def make(self) -> None:
        """Standardise into new tensors, without gradients."""
        self._kernels = [
            # A frozen kernel (`trained: head`) has no use for a gradient.
            standardize_kernel(conv.weight).detach().requires_grad_(conv.weight.requires_grad)
            for conv in self._convs
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Standardise the weights of now into the same tensors, and begin with zero gradients."""
        for conv, kernel in zip(self._convs, self._kernels, strict=True):
            kernel.copy_(standardize_kernel(conv.weight))
            if kernel.grad is not None:
                kernel.grad.zero_()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the network convolve with them, in the block."""
        try:
            for conv, kernel in zip(self._convs, self._kernels, strict=True):
                conv.held = kernel
            yield
        finally:
            for conv in self._convs:
                conv.held = None

    def pull_back(self, *, drop: bool = False) -> None:
        """Add to `weight.grad` what the gradients of the standardised kernels say.

        Args:
            drop: Whether to let go of the kernels one by one: never two sets of gradients at once.
        """
        for number, conv in enumerate(self._convs):
            kernel = self._kernels[number]
            if kernel.grad is None:
                continue
            with torch.enable_grad():
                torch.autograd.backward(standardize_kernel(conv.weight), kernel.grad)
            if drop:
                self._kernels[number] = kernel.detach()
        if drop:
            self.drop()

    def drop(self) -> None:
        """Let go of the kernels."""
        self._kernels = []


def summed(x: Tensor | Pending) -> Tensor:
    """Return a unit's output as one tensor."""
    return x.y + x.shortcut if isinstance(x, Pending) else x


def _is_wide(x: Tensor) -> bool:
    """Say whether a CPU had better read these images in channels_last.

    On a GPU convolutions always want it. On a CPU small images leave the 1x1 convolutions as plain
    matrix products in it. Else oneDNN re-blocks either way and group norm is faster in NCHW, but
    for a forward pass alone over many pixels (a fifth to three tenths less time from 16 images on).
    """
    return _is_forward_alone() and x.shape[0] * x.shape[2] * x.shape[3] >= _WIDE_PIXELS


def _is_forward_alone() -> bool:
    """Say whether no backward pass will follow; programs are compiled for both alike."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def _by_depth(root: Conv, x: Tensor) -> Tensor:
    """Return what the 7x7 root with stride 2 makes of images (B, 3, H, W), on a GPU."""
    from bigtransfer.model.triton_root import space_to_depth

    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    deep: Tensor = space_to_depth(x, kind)
    return F.conv2d(deep, depth_kernel(root.kernel(deep)))


def depth_kernel(kernel: Tensor) -> Tensor:
    """Return a kernel (O, 3, 7, 7) of stride 2 as one of `space_to_depth`: (O, 16, 4, 4)."""
    out = len(kernel)
    # The first of eight rows and columns is zero: a window begins three places before its middle.
    halves = F.pad(kernel, (1, 0, 1, 0)).reshape(out, 3, 4, 2, 4, 2)
    deep = halves.permute(0, 2, 4, 3, 5, 1).reshape(out, 4, 4, 12)
    return F.pad(deep, (0, 4)).permute(0, 3, 1, 2)


def _pooled(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return the 3x3 maximum with stride 2; BiT pads with zeros, PyTorch would with -inf."""
    if uses_kernel("max_pool", x):
        from bigtransfer.model.triton_root import max_pool

        y: Tensor = max_pool(x)[0]
        return y
    if _is_forward_alone() and not x.is_meta:
        # Its frame of -inf, made one of zeros where a window reaches over it: no copy into a frame.
        y = F.max_pool2d(x, 3, 2, padding=1)
        for side in (2, 3):
            y.select(side, 0).clamp_(min=0)
            if x.shape[side] % 2:
                y.select(side, -1).clamp_(min=0)
        return y.contiguous(memory_format=layout)
    # PyTorch's CPU kernel is several times faster in channels_last, both copies included.
    x = F.pad(x, (1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    return F.max_pool2d(x, 3, 2).contiguous(memory_format=layout)


def norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    """Return relu(norm(x)), in one pass where there is a kernel for it."""
    if isinstance(norm, nn.GroupNorm):
        return group_norm_relu(norm, x)
    return F.relu(norm(x), inplace=True)


def create_model(
    name: str,
    num_classes: int,
    root: Root = "imagenet",
    seed: int = 0,
    *,
    norm: Norm = "gn_ws",
    norm_batch: int | None = None,
) -> ResNetV2:
    """Build a network by name, with fresh kernels and a zero head.

    Under `torch.device("meta")` nothing is allocated and nothing drawn.

    Args:
        name: `R50x1`, `R50x3`, `R101x1`, `R101x3`, `R152x2`, `R152x4`, or any other
            `R<depth>x<width factor>` of a known depth.
        num_classes: Outputs of the head.
        root: `imagenet` (7x7 stride 2, max pool) or `small` (3x3 stride 1, no pool).
        seed: Of the fresh kernels; drawn on the CPU, so equal on every device.
        norm: `gn_ws` is BiT's; `gn`, `bn_ws`, `bn` are the ablation's.
        norm_batch: Images over which BatchNorm takes its statistics in training; None: all of a
            forward pass.

    Raises:
        ConfigError: If a name is unknown.
    """
    for value, known, what in ((root, ROOTS, "root"), (norm, NORMS, "norm")):
        if value not in known:
            raise ConfigError(f"{what} is {value!r}; choose one of {', '.join(known)}")
    model = ResNetV2(parse_architecture(name), num_classes, root, norm, norm_batch)
    if model.head.weight.device.type != "meta":
        model.initialize(torch.Generator("cpu").manual_seed(seed))
    return model


def _convolved(conv: Conv, x: Tensor) -> Tensor:
    alone = not torch.is_grad_enabled()
    stride, padding = _pair(conv.stride), _pair(conv.padding)
    return convolve(x, conv.kernel(x), stride, padding, forward_alone=alone)


def _lean_convs(norm: nn.Module, x: Tensor, *convs: Conv) -> tuple[Tensor, ...]:
    assert isinstance(norm, nn.GroupNorm)
    return group_norm_relu_convs(
        norm,
        x,
        [conv.kernel(x) for conv in convs],
        [_pair(conv.stride) for conv in convs],
        [_pair(conv.padding) for conv in convs],
    )


def _pair(value: object) -> tuple[int, int]:
    assert isinstance(value, tuple)
    return value[0], value[1]


def _like(kernel: Tensor, x: Tensor) -> Tensor:
    # One copy for both: cast under autocast, and the layout that cuDNN would copy into anyway.
    if on_gpu(x):
        return kernel.to(x.dtype, memory_format=torch.channels_last)
    return kernel.to(x.dtype)


def _conv(norm: Norm) -> Callable[..., Conv]:
    return partial(StdConv2d if norm.endswith("_ws") else PlainConv2d, bias=False)


def _norm(
    norm: Norm, architecture: Architecture, norm_batch: int | None
) -> Callable[..., nn.Module]:
    if norm.startswith("gn"):
        return partial(nn.GroupNorm, architecture.groups, eps=GN_EPS)
    if norm_batch is not None:
        return partial(GroupedBatchNorm2d, group_images=norm_batch, eps=GN_EPS)
    return partial(nn.BatchNorm2d, eps=GN_EPS)


def _folded(conv: StdConv2d) -> PlainConv2d:
    out, inp, height, width = conv.weight.shape
    plain = PlainConv2d(inp, out, (height, width), bias=False, device="meta")
    plain.stride, plain.padding = conv.stride, conv.padding
    plain.weight = nn.Parameter(standardize_kernel(conv.weight), requires_grad=False)
    return plain
