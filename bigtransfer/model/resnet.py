"""ResNet-v2 with GroupNorm and Weight Standardization, as BiT uses it.

Paper: arXiv 1912.11370, section 3.1; numerics as in google-research/big_transfer (Apache-2.0),
written anew. Not from there: the small stem and the depths 14 and 26, for images of 8-64 pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer.model.names import Architecture, parse_architecture

WS_EPS = 1e-10  # big_transfer bit_pytorch/models.py, StdConv2d: inside the root
GN_EPS = 1e-5
_STAGE_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


def standardize_kernel(weight: Tensor) -> Tensor:
    """Return the kernel with zero mean and unit variance per output filter.

    Each of the O filters is standardised over its own I*H*W values with the biased variance:
    (w - mean) / sqrt(var + 1e-10). That is a layer norm without affine over each flattened
    filter, one fused operation with a closed-form backward. Always in float32 or wider: in half
    precision the epsilon vanishes.

    Args:
        weight: Convolution kernel, shape (O, I, H, W).

    Returns:
        Kernel of the same shape; float32 for half-precision input, else the same dtype.

    Source:
        Qiao et al. 2019, arXiv 1903.10520; epsilon and biased variance as in
        google-research/big_transfer, `bit_pytorch/models.py`.
    """
    flat = weight.flatten(1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    with torch.autocast(weight.device.type, enabled=False):
        return F.layer_norm(flat, flat.shape[1:], eps=WS_EPS).view(weight.shape)


class StdConv2d(nn.Conv2d):
    """Convolution whose kernel is standardised on every use; no bias, no learned gain."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W) to (B, O, H', W')."""
        kernel = standardize_kernel(self.weight).to(x.dtype)
        return F.conv2d(x, kernel, None, self.stride, self.padding)


class Unit(nn.Module):
    """Pre-activation bottleneck: GN-ReLU before each of 1x1, 3x3, 1x1; the sum is left as it is."""

    def __init__(self, channels: int, width: int, stride: int, groups: int, project: bool) -> None:
        super().__init__()
        out = width * _EXPANSION
        self.norm_a = nn.GroupNorm(groups, channels, GN_EPS)
        self.conv_a = StdConv2d(channels, width, 1, bias=False)
        self.norm_b = nn.GroupNorm(groups, width, GN_EPS)
        # The stride sits in the 3x3, not in the first 1x1; published weights expect it there.
        self.conv_b = StdConv2d(width, width, 3, stride, 1, bias=False)
        self.norm_c = nn.GroupNorm(groups, width, GN_EPS)
        self.conv_c = StdConv2d(width, out, 1, bias=False)
        self.proj = StdConv2d(channels, out, 1, stride, bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 4 * width, H / stride, W / stride)."""
        preact = F.relu(self.norm_a(x), inplace=True)
        # The projection reads the activated input, not x itself.
        shortcut = x if self.proj is None else self.proj(preact)
        y = self.conv_a(preact)
        y = self.conv_b(F.relu(self.norm_b(y), inplace=True))
        y = self.conv_c(F.relu(self.norm_c(y), inplace=True))
        total: Tensor = y + shortcut
        return total


class ResNetV2(nn.Module):
    """BiT's network: root, four stages of bottleneck units, norm, mean, zero-initialised head."""

    def __init__(self, architecture: Architecture, num_classes: int, stem: str) -> None:
        super().__init__()
        self.stem = stem
        groups = architecture.groups
        channels = architecture.width(_STAGE_WIDTHS[0])
        if stem == "small":
            self.root = StdConv2d(3, channels, 3, 1, 1, bias=False)
        else:
            self.root = StdConv2d(3, channels, 7, 2, 3, bias=False)
        stages = []
        for number, (units, base) in enumerate(
            zip(architecture.block_units, _STAGE_WIDTHS, strict=True)
        ):
            width = architecture.width(base)
            stage = []
            for unit in range(units):
                stride = 2 if number > 0 and unit == 0 else 1
                stage.append(Unit(channels, width, stride, groups, project=unit == 0))
                channels = width * _EXPANSION
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(groups, channels, GN_EPS)
        self.head = nn.Linear(channels, num_classes)
        self.num_features = channels
        # Small images leave the 1x1 convolutions as plain matrix products in this layout; for
        # large ones oneDNN re-blocks either way and NCHW is the faster on a CPU.
        self.layout = torch.channels_last if stem == "small" else torch.contiguous_format
        self.to(memory_format=self.layout)  # type: ignore[call-overload]  # torch types it for 4-d only

    def features(self, x: Tensor) -> Tensor:
        """Return the pooled features, (B, num_features), of images (B, 3, H, W) in [-1, 1]."""
        x = self.root(x.contiguous(memory_format=self.layout))
        if self.stem != "small":
            # BiT pads the pool with zeros; PyTorch's own padding would be -inf.
            x = F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2)
        x = F.relu(self.norm(self.stages(x)), inplace=True)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (B, num_classes), of images (B, 3, H, W) in [-1, 1]."""
        logits: Tensor = self.head(self.features(x))
        return logits

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw fresh kernels; gains 1, offsets 0, head zero.

        Kernels are uniform in +-1/sqrt(fan_in). Weight Standardization takes their scale out of
        the function, but the scale still sets the effective step size: a step of SGD moves a
        larger kernel by a smaller angle.
        """
        for module in self.modules():
            if isinstance(module, StdConv2d):
                bound = 1 / math.sqrt(module.weight[0].numel())
                module.weight.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.GroupNorm):
                module.weight.fill_(1)
                module.bias.zero_()
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
        self.to(memory_format=self.layout)  # type: ignore[call-overload]  # torch types it for 4-d only
        return self.eval()


def create_model(name: str, num_classes: int, stem: str = "imagenet", seed: int = 0) -> ResNetV2:
    """Build a network by name, with fresh kernels and a zero head.

    Args:
        name: `R50x1`, `R50x3`, `R101x1`, `R101x3`, `R152x2`, `R152x4`, or any other
            `R<depth>x<width factor>` of a known depth.
        num_classes: Outputs of the head.
        stem: `imagenet` (7x7 stride 2, max pool) or `small` (3x3 stride 1, no pool).
        seed: Of the fresh kernels.

    Raises:
        ConfigError: If the name is unknown.
    """
    model = ResNetV2(parse_architecture(name), num_classes, stem)
    if model.head.weight.device.type != "meta":
        model.initialize(torch.Generator().manual_seed(seed))
    return model


def _folded(conv: StdConv2d) -> nn.Conv2d:
    out, inp, height, width = conv.weight.shape
    plain = nn.Conv2d(inp, out, (height, width), bias=False)
    plain.stride, plain.padding = conv.stride, conv.padding
    plain.weight.copy_(standardize_kernel(conv.weight))
    return plain
