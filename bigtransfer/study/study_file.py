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
downstream: {tasks: [digits], seeds: [0, 1, 2], preset: quick}   # params of `finetune`
plot: {x: batch_size, lines: norm}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from bigtransfer.config import laid_over, read_yaml
from bigtransfer.config.base import NotNegative, Section
from bigtransfer.errors import ConfigError, did_you_mean

Value = bool | int | float | str | list[float] | None
"""Of a param."""
Text = Annotated[str, Field(min_length=1)]
_SECTIONS = ("pretrain", "finetune", "evaluate", "tasks")
"""That a study may change; its data are those of params.yaml, made once for all cells."""
_WHOLE = ("axes", "plot", "beside", "published")
"""Keys of which an overlay's takes the place of the file's."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Plot(Section):
    """What is drawn."""

    x: Text
    """Axis, left to right."""
    lines: Text | None = None
    """Axis, a line for each of its values."""
    curves: bool = False
    """Whether to draw validation top-1 over images as well, a line for each point."""


class Published(Section):
    """A figure of the literature, to stand beside ours."""

    where: dict[Text, Any]
    """What it was found with: axis -> value, and whatever else is to be said."""
    figure: Text
    value: float
    """Percent."""
    source: Text
    """Table or figure of which paper."""


class Study(Section):
    """A study file."""

    name: str
    """Of the file; it begins the names of DVC's experiments."""
    about: Text
    params: dict[str, dict[str, Any]] = {}
    """Laid over params.yaml, for all cells."""
    axes: Annotated[dict[Text, list[Value] | dict[Text, dict[Text, Value]]], Field(min_length=1)]
    """Param of `pretrain`, or `finetune.<param>` -> its values; or any name -> label -> params."""
    beside: Annotated[tuple[dict[Text, Value], ...], Field(strict=False)] = ()
    """Cells that are not of the product of the axes: values of axes, and params."""
    seeds: Annotated[tuple[NotNegative, ...], Field(strict=False, min_length=1)] = (0,)
    """Of upstream training."""
    downstream: dict[str, Any] = {}
    """Params of `finetune` for all tasks; and `tasks`, names of those there are (default: all)."""
    plot: Plot
    published: Annotated[tuple[Published, ...], Field(strict=False)] = ()
    note: str = ""
    """What the page says beneath the figures, e.g. what so small a scale cannot show."""

    @field_validator("name")
    @classmethod
    def _can_be_named(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot begin a name; take letters, digits, - and _")
        return name

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
        if self.plot.x == self.plot.lines:
            raise ValueError(f"plot.x and plot.lines are one axis, {self.plot.x!r}")
        for section in self.params:
            if section not in _SECTIONS:
                raise ValueError(
                    f"params.{section}: a study changes {', '.join(_SECTIONS)}, and its data are "
                    f"those of params.yaml{did_you_mean(section, _SECTIONS)}"
                )
        return self

    @property
    def tuning(self) -> dict[str, Any]:
        """Return the params of `finetune`; without a control, which no axis changes."""
        own = {key: value for key, value in self.downstream.items() if key != "tasks"}
        return {"inits": ["upstream"], **own}

    def tasks_of(self, known: Mapping[str, Any]) -> list[str]:
        """Return the tasks that every upstream network is tried on.

        Args:
            known: Those of params.yaml.

        Raises:
            ConfigError: If one of them is not there.
        """
        wanted = self.downstream.get("tasks", [*known])
        named = isinstance(wanted, list) and all(isinstance(one, str) for one in wanted)
        if not named or not wanted or len(set(wanted)) < len(wanted):
            raise ConfigError(
                f"{self.name}: downstream.tasks must name tasks, each once, got {wanted!r}"
            )
        for name in wanted:
            if name not in known:
                raise ConfigError(
                    f"{self.name}: downstream.tasks: params.yaml has no task {str(name)!r}"
                    f"{did_you_mean(str(name), known)}"
                )
        if "upstream" not in self.tuning["inits"]:
            raise ConfigError(
                f"{self.name}: downstream.inits must hold upstream: it is what varies"
            )
        return [*wanted]


def read_study(path: Path, overlay: Path | None = None) -> Study:
    """Return a study file.

    Args:
        path: The file.
        overlay: Another, laid over it: a study at another size. It may have its own `name`.

    Raises:
        ConfigError: One line per fault.
        StorageError: If a file cannot be read.
    """
    raw = read_yaml(path)
    if overlay is not None:
        raw = _over(raw, read_yaml(overlay))
    raw.setdefault("name", path.stem)
    source = path.name if overlay is None else f"{path.name} with {overlay.name}"
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        faults = [_line(source, fault) for fault in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from error


def _over(raw: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return a study with an overlay on it: axes and what hangs on them as a whole."""
    whole: dict[str, Any] = {key: own[key] for key in _WHOLE if key in own}
    rest = {key: value for key, value in own.items() if key not in whole}
    return {**laid_over(raw, rest, whole=False), **whole}


def _line(source: str, fault: Any) -> str:
    known = {*Study.model_fields, *Plot.model_fields, *Published.model_fields}
    place = ".".join(str(part) for part in fault["loc"] if part in known)
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        return f"{source}: no key {name!r}{did_you_mean(name, known)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{source}: {place + ': ' if place else ''}{message}"
