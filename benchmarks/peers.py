"""What we are measured against: timm's BiT networks, and the formula of the paper written plainly.

`python benchmarks/peers.py` installs timm, alone, into `benchmarks/.peers`. Without it the
benchmarks say so and leave its rows out.
"""

from __future__ import annotations

import enum
import importlib.machinery
import subprocess
import sys
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HERE = Path(__file__).resolve().parent
FOLDER = _HERE / ".peers"
TIMM = "timm==1.0.31"

sys.path.insert(0, str(_HERE.parent))  # the project itself, where it is not installed

from bigtransfer.model.names import parse_architecture  # noqa: E402


def timm_name(name: str) -> str:
    """Return timm's name of an architecture: `R50x1` is `resnetv2_50x1_bit`."""
    return f"resnetv2_{name.removeprefix('R')}_bit"


def timm_model(name: str, num_classes: int) -> nn.Module:
    """Build timm's network.

    Raises:
        ImportError: If timm is not there; the message says how to get it.
    """
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    try:
        import torchvision  # noqa: F401
    except ImportError:
        _stand_in_for_torchvision()
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"timm: {error}; `python benchmarks/peers.py` installs it") from error
    model: nn.Module = timm.create_model(timm_name(name), pretrained=False, num_classes=num_classes)
    return model


class PaperConv(nn.Conv2d):
    """Weight Standardization as the paper writes it: mean and variance at every convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, I, H, W) to (B, O, H', W')."""
        weight = self.weight
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        standard = (weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, standard, None, self.stride, self.padding)


class _PaperUnit(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, groups: int, project: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(groups, c) for c in (channels, width, width))
        self.convs = nn.ModuleList(
            [
                PaperConv(channels, width, 1, bias=False),
                PaperConv(width, width, 3, stride, 1, bias=False),
                PaperConv(width, 4 * width, 1, bias=False),
            ]
        )
        self.proj = PaperConv(channels, 4 * width, 1, stride, bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut, y = x, x
        for number, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            y = F.relu(norm(y))
            if number == 0 and self.proj is not None:
                shortcut = self.proj(y)
            y = conv(y)
        return y + shortcut


class PaperNet(nn.Module):
    """The network of arXiv 1912.11370 out of PyTorch's own modules, nothing merged or reordered."""

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        architecture = parse_architecture(name)
        channels, groups = architecture.width(64), architecture.groups
        self.root = PaperConv(3, channels, 7, 2, 3, bias=False)
        units = []
        for number, count in enumerate(architecture.block_units):
            width = architecture.width(64 << number)
            for unit in range(count):
                stride = 2 if number and not unit else 1
                units.append(_PaperUnit(channels, width, stride, groups, unit == 0))
                channels = 4 * width
        self.body = nn.Sequential(*units)
        self.norm = nn.GroupNorm(groups, channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images (B, 3, H, W)."""
        x = F.max_pool2d(F.pad(self.root(x), (1, 1, 1, 1)), 3, 2)
        return self.head(F.relu(self.norm(self.body(x))).mean((2, 3)))


def _stand_in_for_torchvision() -> None:
    """Let timm be imported: it names things of torchvision that its networks never use."""

    class Anything(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(name)
            if name == "InterpolationMode":
                kinds = "NEAREST NEAREST_EXACT BILINEAR BICUBIC BOX HAMMING LANCZOS"
                setattr(self, name, enum.Enum(name, {k: k.lower() for k in kinds.split()}))
            else:
                setattr(self, name, type(name, (), {}))
            return self.__dict__[name]

    parts = (
        "",
        ".transforms",
        ".transforms.functional",
        ".transforms.v2",
        ".datasets",
        ".datasets.folder",
        ".models",
        ".models.feature_extraction",
        ".ops",
        ".ops.misc",
        ".utils",
        ".io",
    )
    for part in parts:
        name = f"torchvision{part}"
        module = Anything(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        module.__dict__["__version__"] = "0.0"
        sys.modules[name] = module
        if "." in name:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)


if __name__ == "__main__":
    sys.exit(
        subprocess.call(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--upgrade",
                "--target",
                str(FOLDER),
                TIMM,
            ]
        )
    )
