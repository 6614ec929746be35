"""A study as people write it: a small YAML file, checked before its first cell.

about: Is BatchNorm's trouble the number of images on each device?
params: {pretrain: {epochs: 2.0}}          # laid over params.yaml, for all cells
axes:
norm: [gn_ws, bn_ws]                     # a param of `pretrain`
batch_size: [32, 128]                    # its learning rate follows (`cells.completed`)
decay:                                   # values that move together, under names of your own
usual: {}
early: {decay_epochs: [0.2, 0.4]}
beside:                                    # cells that are not of the product
- {norm: gn_ws, batch_size: 512, base_lr: 0.8}
seeds: [0, 1]                              # of upstream training
plot: {x: batch_size, lines: norm}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from bigtransfer.config import read_yaml
from bigtransfer.config.base import NotNegative, Section
from bigtransfer.errors import ConfigError, did_you_mean

Value = bool | int | float | str | list[float] | None
"""Of a param."""
Text = Annotated[str, Field(min_length=1)]


class Plot(Section):
    """What is drawn."""

    x: Text
    """Axis, left to right."""
    lines: Text | None = None
    """Axis, a line for each of its values."""


class Published(Section):
    """A number of the literature, to stand beside ours."""

    where: dict[Text, Any]
    """Axis -> value."""
    figure: Text
    value: float
    source: Text
    """Table or figure of which paper."""


class Study(Section):
    """A study file."""

    about: Text
    params: dict[str, Any] = {}
    """Laid over params.yaml, for all cells."""
    axes: Annotated[dict[Text, list[Value] | dict[Text, dict[Text, Value]]], Field(min_length=1)]
    """Name of a param of `pretrain` -> its values; or any name -> label -> params."""
    beside: Annotated[tuple[dict[Text, Value], ...], Field(strict=False)] = ()
    """Cells that are not of the product of the axes: values of axes, and params."""
    seeds: Annotated[tuple[NotNegative, ...], Field(strict=False, min_length=1)] = (0,)
    """Of upstream training."""
    plot: Plot
    published: Annotated[tuple[Published, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _possible(self) -> Study:
        for name, values in self.axes.items():
            if not values:
                raise ValueError(f"axis {name!r} has no value")
            labels = [str(value) for value in values]
            if len(set(labels)) < len(labels):
                raise ValueError(f"axis {name!r} holds a value twice")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds holds a value twice")
        for what, axis in (("x", self.plot.x), ("lines", self.plot.lines)):
            if axis is not None and axis not in self.axes:
                raise ValueError(
                    f"plot.{what} is {axis!r}, which is no axis{did_you_mean(axis, self.axes)}"
                )
        return self


def read_study(path: Path) -> Study:
    """Return a study file.

    Raises:
        ConfigError: One line per fault.
        StorageError: If the file cannot be read.
    """
    raw = read_yaml(path)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        faults = [_line(path, fault) for fault in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from error


def _line(path: Path, fault: Any) -> str:
    known = {*Study.model_fields, *Plot.model_fields, *Published.model_fields}
    place = ".".join(str(part) for part in fault["loc"] if part in known)
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        return f"{path.name}: no key {name!r}{did_you_mean(name, known)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{path.name}: {place + ': ' if place else ''}{message}"
