"""A fine-tuned network with all that belongs around it: images in, probabilities out."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.artifacts.weights import TunedMeta, WeightsMeta
from bigtransfer.model.checkpoint import load_checkpoint, load_tuned
from bigtransfer.model.inference import normalize_
from bigtransfer.model.resnet import ResNetV2


class Deployed(nn.Module):
    """uint8 images (B, H, W, 3), RGB, of any size, to float32 probabilities (B, classes).

    Resized to a square, bilinear with antialias, as in evaluation: there a kernel on uint8 rounds
    after the rows and after the columns, so this does. Probabilities are calibrated: softmax at the
    checkpoint's temperature, or a sigmoid per class where images have several labels.
    """

    def __init__(
        self,
        network: nn.Module,
        crop: int,
        temperature: float,
        multi_label: bool,
        decode: DecodeSettings,
    ) -> None:
        super().__init__()
        self.network = network
        self.crop, self.temperature, self.multi_label = crop, temperature, multi_label
        self.decode = decode
        """How files become the images that it takes; for those who read files."""

    def narrow(self) -> Deployed:
        """Hold the weights in bfloat16 from here on; probabilities stay float32. Return self."""
        self.network.bfloat16()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities."""
        x = images.permute(0, 3, 1, 2).float()
        x = _resized(x, (x.shape[2], self.crop))
        x = _resized(x, (self.crop, self.crop))
        return self.probabilities(normalize_(x))

    def probabilities(self, x: Tensor) -> Tensor:
        """Return the probabilities (B, classes) of float32 squares (B, 3, crop, crop) in [-1, 1].

        The network's own part, for images that were resized already.
        """
        logits = self.network(x.to(next(self.network.parameters()).dtype)).float()
        if self.multi_label:
            return torch.sigmoid(logits)
        return torch.softmax(logits / self.temperature, dim=1)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    return torch.clamp(torch.round(x), 0, 255)


def load_deployed(folder: Path) -> tuple[Deployed, TunedMeta]:
    """Build what is deployed of a fine-tuned checkpoint, folded for inference; and its meta.

    Raises:
        CheckpointError: If it is damaged, or an upstream checkpoint.
    """
    network, meta = load_tuned(folder)
    return _deployed(network, meta), meta


def load_any(folder: Path) -> tuple[Deployed, WeightsMeta]:
    """Build the same of any checkpoint with a head; what nobody calibrated stays uncalibrated.

    Raises:
        CheckpointError: If it is damaged.
    """
    network, meta = load_checkpoint(folder)
    return _deployed(network, meta), meta


def _deployed(network: ResNetV2, meta: WeightsMeta) -> Deployed:
    calibration = meta.calibration if isinstance(meta, TunedMeta) else None
    temperature = calibration.temperature if isinstance(calibration, Calibration) else 1.0
    multi_label = isinstance(calibration, MultiLabelCalibration)
    return Deployed(network.eval().fold(), meta.crop, temperature, multi_label, meta.decode).eval()


def facts_of(meta: TunedMeta, takes: str = "uint8") -> Json:
    """Return what a user of a deployed network must know, as JSON values.

    Args:
        meta: Of its checkpoint.
        takes: What it takes, e.g. the type of its images.
    """
    own = meta.calibration
    one = own if isinstance(own, Calibration) else None
    several = own if isinstance(own, MultiLabelCalibration) else None
    return {
        "classes": [*meta.classes],
        "input": f"{takes} (batch, height, width, 3), RGB, whole numbers from 0 to 255, any size; "
        + _how(meta.decode),
        "orientation": meta.decode.orientation,
        "background": meta.decode.background,
        "output": "probabilities (batch, classes)",
        "resized_to": meta.crop,
        "multi_label": meta.multi_label,
        "temperature": one.temperature if one else None,
        "abstain_below": one.abstain_below if one else None,
        "calibrated": one.calibrated if one else None,
        "thresholds": [*several.thresholds] if several else None,
        "architecture": meta.architecture,
        "hyperrule": meta.hyperrule,
        "checkpoint_digest": meta.digest,
        "shards_digest": meta.shards_digest,
        "upstream_digest": meta.upstream_digest,
    }


def _how(settings: DecodeSettings) -> str:
    turned = (
        "upright (EXIF orientation applied)" if settings.orientation == "apply" else "as stored"
    )
    ground = settings.background
    return f"{turned}, " + (f"transparency laid on {ground}" if ground else "transparency dropped")
