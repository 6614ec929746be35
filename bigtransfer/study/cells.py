"""The cells of a study: what each sets, completed, checked, and named by what it sets.

A cell's name is a digest of its own values, so a study to which seeds or values are added keeps the
cells that are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.config import Params, PretrainParams
from bigtransfer.errors import ConfigError, did_you_mean
from bigtransfer.storage import sha256_json
from bigtransfer.study.study_file import Study

_DIGITS = 12


@dataclass(frozen=True)
class StudyCell:
    """One training of a study."""

    labels: Mapping[str, str]
    """Axis -> value, as tables show it."""
    seed: int
    """Of upstream training."""
    changes: Mapping[str, Any]
    """Params of `pretrain` that it sets, complete."""
    params: Params
    """All of them."""

    @property
    def name(self) -> str:
        """Return its name, the same whatever other cells there are."""
        return sha256_json({"changes": dict(self.changes), "seed": self.seed})[:_DIGITS]


def cells_of(study: Study, params: Path) -> list[StudyCell]:
    """Return all cells, in order; what cannot be is refused before the first is begun.

    Args:
        study: The file.
        params: params.yaml, over which the study's own and then the cell's are laid.

    Raises:
        ConfigError: Names each cell that is none, and why.
    """
    raw = config.laid_over(config.read_yaml(params), study.params)
    base = config.resolve(raw, "the study's params").pretrain
    faults: list[str] = []
    found: dict[str, StudyCell] = {}
    for labels, own in _points(study):
        for seed in study.seeds:
            try:
                changes = completed(own, base)
                made = {"pretrain": {**changes, "seed": seed}}
                resolved = config.resolve(config.laid_over(raw, made), "")
            except ConfigError as error:
                said = " ".join(f"{axis} {label}" for axis, label in labels.items())
                faults.append(f"cell {said}: {' '.join(str(error).split()).lstrip(': ')}")
                break
            cell = StudyCell(labels, seed, changes, resolved)
            if cell.name in found:
                faults.append(f"two cells are the same training: {dict(labels)}")
            found[cell.name] = cell
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return list(found.values())


def completed(own: Mapping[str, Any], base: PretrainParams) -> dict[str, Any]:
    """Return what a cell sets with what must move along, unless it is set, too.

    The learning rate follows the batch by the linear rule, and warm-up is as many images; decays
    and warm-up keep their place in a schedule of other length. So equal `epochs` are equal budgets
    in images, whatever the batch.
    """
    given = dict(own)
    batch = given.get("batch_size", base.batch_size) / base.batch_size
    epochs = given.get("epochs", base.epochs) / base.epochs
    if batch != 1:
        given.setdefault("base_lr", base.base_lr * batch)
    if batch != 1 or epochs != 1:
        given.setdefault("warmup_steps", max(1, round(base.warmup_steps * epochs / batch)))
    if epochs != 1:
        given.setdefault("decay_epochs", [own * epochs for own in base.decay_epochs])
    return given


def _points(study: Study) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield labels and params of each point: those of the product, then those beside it."""
    axes = {name: _values(name, values) for name, values in study.axes.items()}
    for chosen in product(*axes.values()):
        labels = dict(zip(axes, (label for label, _ in chosen), strict=True))
        yield labels, _together(labels, [own for _, own in chosen])
    for cell in study.beside:
        labels, parts = {}, []
        for name, value in cell.items():
            known = dict(axes.get(name, ()))
            if name in axes and str(value) in known:
                labels[name] = str(value)
                parts.append(known[str(value)])
            elif name in axes and isinstance(study.axes[name], dict):
                raise ConfigError(
                    f"beside: axis {name!r} has no {str(value)!r}{did_you_mean(str(value), known)}"
                )
            else:
                _require_param(name)
                parts.append({name: value})
                if name in axes:
                    labels[name] = str(value)
        if missing := [name for name in axes if name not in labels]:
            raise ConfigError(f"beside: {cell} says nothing of {', '.join(missing)}")
        yield labels, _together(labels, parts)


def _values(name: str, values: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return label and params of each value of an axis."""
    if isinstance(values, dict):
        for own in values.values():
            for key in own:
                _require_param(key)
        return [(label, dict(own)) for label, own in values.items()]
    _require_param(name)
    return [(str(value), {name: value}) for value in values]


def _require_param(name: str) -> None:
    known = [key for key in PretrainParams.model_fields if key != "seed"]
    if name == "seed":
        raise ConfigError("seed is no axis; write seeds: [0, 1, 2]")
    if name not in known:
        raise ConfigError(f"{name!r} is no param of pretrain{did_you_mean(name, known)}")


def _together(labels: Mapping[str, str], parts: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for own in parts:
        for key, value in own.items():
            if found.setdefault(key, value) != value:
                said = " ".join(f"{axis} {label}" for axis, label in labels.items())
                raise ConfigError(f"cell {said}: two axes set {key}, to {found[key]} and {value}")
    return found
