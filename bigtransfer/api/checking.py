"""Whether a folder of images is fit to be used, without a project."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.api.transfer import DEFAULTS
from bigtransfer.errors import ConfigError

if TYPE_CHECKING:
    from bigtransfer.data.checking import Asked, Checked


@dataclass(frozen=True)
class Check:
    """What a check has found; nothing was changed."""

    address: str
    """Of the images."""
    success: bool
    """Whether the gate says yes."""
    images: int
    """Usable ones."""
    classes: Mapping[str, int]
    """Class -> usable images with it."""
    broken_rules: tuple[str, ...]
    """A line for each rule that the images break."""
    unusable: Mapping[str, str]
    """Path -> why the file cannot be used."""
    leaks: Mapping[str, str]
    """Path -> what it is a copy of, in another split."""
    details: Checked
    """All of it."""

    def __repr__(self) -> str:
        said = "yes" if self.success else "no"
        return (
            f"Check({self.address!r}: {self.images:,} images of {len(self.classes)} classes, "
            f"{len(self.unusable):,} unusable, the gate says {said})"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{count:,}</td></tr>"
            for name, count in self.classes.items()
        )
        broken = "".join(f"<li>{escape(line)}</li>" for line in self.broken_rules)
        return (
            f"<p>{escape(repr(self))}</p><ul>{broken}</ul>"
            f"<table><tr><th>class</th><th>images</th></tr>{rows}</table>"
        )


def check(images: str | PathLike[str], *, layout: str = "auto", quarantine: float = 0.0) -> Check:
    """Decode every image; find bad files, copies, and leaks between splits.

    Args:
        images: A folder, table or archive.
        layout: `auto`, or one of `bigtransfer.config.LAYOUTS`.
        quarantine: Share of unusable files that may be left out, e.g. 0.01.

    Raises:
        ConfigError: If a value is wrong.
        DatasetError: If nothing can be read there.
    """
    from bigtransfer.data.checking import check as look
    from bigtransfer.data.manifest import faulty
    from bigtransfer.data.sources.opening import open_source
    from bigtransfer.data.tables import iter_rows

    path = Path(images)
    source = open_source(path, layout, flat_allowed=True)
    checked = look(source, path.name or str(path), asked_of_images(quarantine))
    table = checked.table
    counts = dict.fromkeys(source.labels, 0)
    for labels, fault in iter_rows(table, "labels", "fault"):
        for label in labels if fault is None else ():
            counts[label] += 1
    return Check(
        address=str(path),
        success=checked.success,
        images=checked.counts.images,
        classes=counts,
        broken_rules=tuple(o.line() for o in checked.outcomes if not o.success),
        unusable=dict(faulty(table)),
        leaks={
            name: leak
            for name, leak in zip(iter_rows(table, "path"), checked.leaks, strict=True)
            if leak
        },
        details=checked,
    )


def asked_of_a_task() -> Asked:
    """Return the default rules for a dataset that a network is trained on."""
    from bigtransfer import config
    from bigtransfer.data.checking import asked_of

    return asked_of(config.DatasetRules.model_validate(config.read_yaml(DEFAULTS)["data"]))


def asked_of_images(quarantine: float) -> Asked:
    """Return the default rules without those that ask for a whole task.

    Args:
        quarantine: Share of unusable files that may be left out.

    Raises:
        ConfigError: If it is no share.
    """
    from bigtransfer import config
    from bigtransfer.data.checking import asked_of

    if not 0 <= quarantine < 1:
        raise ConfigError(f"quarantine is {quarantine:g}; give a share from 0 to below 1")
    raw = config.read_yaml(DEFAULTS)["data"]
    if quarantine:
        raw = {**raw, "on_bad": "quarantine", "bad_budget": quarantine}
    asked = asked_of(config.DatasetRules.model_validate(raw))
    rules = replace(asked.rules, required_splits=(), min_classes=1, min_examples_per_class=1)
    return replace(asked, rules=rules, val=0.0, test=0.0)
