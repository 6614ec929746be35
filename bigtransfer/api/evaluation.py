"""How often a model is right on labelled images from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.errors import ConfigError, DatasetError
from bigtransfer.progress import tracked

if TYPE_CHECKING:
    from bigtransfer.serve.labelled import Judged

_BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of labelled images."""

    images: tuple[Judged, ...]
    """Each that was looked at."""
    classes: tuple[str, ...]
    """Of the model."""
    left_out: int
    """Names in the dataset that are none of the model's."""
    seen: int | None
    """Usable images that the network was trained on; None: not noted."""
    top1_of_new: float | None
    """Top-1 of the others; None: not noted, or there are none."""

    @property
    def usable(self) -> tuple[Judged, ...]:
        """Return the images that could be read."""
        return tuple(one for one in self.images if one.fault is None)

    @property
    def top1(self) -> float:
        """Return the share of usable images whose first answer is right."""
        return _share([one.right for one in self.usable])

    @property
    def top5(self) -> float:
        """Return the share with the right one among the first five answers."""
        return _share([one.in_top5 for one in self.usable])

    def __repr__(self) -> str:
        return f"Evaluation(top-1 {100 * self.top1:.1f} % of {len(self.usable):,} images)"


def evaluate_on(
    checkpoint: Path,
    images: Path,
    *,
    device: str = "auto",
    class_map: Path | None = None,
    short_side: int | None = None,
    crop: int | None = None,
    border: int = 0,
    name: str = "",
) -> Evaluation:
    """Look at every image and say how many are recognised.

    Args:
        checkpoint: Of any network with a head.
        images: A folder per class, or another layout; of splits, test.
        device: `auto`, `cpu` or `cuda`.
        class_map: YAML or JSON, `name: class` or `name: [class, …]`; or ObjectNet's folder
            `mappings`; None: names are the model's classes.
        short_side: Resize so that the shorter side is so long, in pixels, and cut the middle out;
            None: squeeze the whole image into a square.
        crop: Side of the square, pixels; None: the model's own.
        border: Pixels that are cut off all around first.
        name: Of the model, for messages.

    Raises:
        ConfigError: If images have several labels, or the map is wrong.
        DatasetError: If no image could be used.
    """
    from bigtransfer.artifacts.decoding import as_stored_line
    from bigtransfer.data.sources.opening import open_source
    from bigtransfer.model.checkpoint import read_trained_on
    from bigtransfer.model.processor import device_named
    from bigtransfer.serve.class_map import read_class_map, same_names
    from bigtransfer.serve.deployed import load_any
    from bigtransfer.serve.labelled import counted_images, judged
    from bigtransfer.serve.prediction import Framing

    source = open_source(images)
    where = device_named(device)
    deployed, meta = load_any(checkpoint)
    if line := as_stored_line(name or str(checkpoint), meta.decode):
        print(line, flush=True)
    for note in source.notes:
        print(note, flush=True)
    if source.multi_label or deployed.multi_label:
        raise ConfigError("several labels per image: only top-1 and top-5 are counted here")
    framing = Framing(crop or deployed.crop, short_side, border)
    classes = meta.classes
    counts_as = (
        read_class_map(class_map, classes) if class_map else same_names(source.labels, classes)
    )
    wanted = counted_images(source, counts_as)
    names = {image.labels[0] for image in wanted}
    left_out = len(source.labels) - len(names)
    print(
        f"{len(wanted):,} images of {len(names):,} names"
        + (f"; {left_out:,} names are left out" if left_out else ""),
        flush=True,
    )
    looked = judged(deployed.to(where), source, wanted, counts_as, _BATCH, where, framing)
    found = tuple(tracked(looked, "evaluate", len(wanted), unit="image"))
    usable = [one for one in found if one.fault is None]
    if not usable:
        for one in found[:3]:
            print(f"  {one.image.path}: {one.fault}")
        raise DatasetError(f"none of the images in {str(images)!r} could be used")
    seen, of_new = None, None
    if (trained_on := read_trained_on(checkpoint)) is not None:
        known = set(trained_on.tolist())
        new = [one.right for one in usable if one.digest not in known]
        seen, of_new = len(usable) - len(new), _share(new) if new else None
    return Evaluation(found, tuple(classes), left_out, seen, of_new)


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right)
