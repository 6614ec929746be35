"""The cells of a study: what each sets, completed, checked, and named by what it sets.

A cell is one upstream training and what becomes of it downstream. Its name is a digest of the
values that decide its result, so a study to which seeds or values are added keeps the cells that
are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.config import FinetuneParams, Params, PretrainParams, Section
from bigtransfer.errors import ConfigError, did_you_mean
from bigtransfer.storage import sha256_json
from bigtransfer.study.study_file import Study

_DIGITS = 12
_NOT_OF_A_NAME = ("threads", "seed")
"""Of `pretrain.RECIPE`: how it is computed here; and what stands beside."""
_NOT_OF_A_TRANSFER = (
    "name", "seeds", "examples_per_class", "inits", "threads", "device", "workers",
    "micro_batch_size", "checkpoint_seconds", "checkpoint_mirror", "stop_seconds", "resume",
    "compile", "cuda_graph", "recompute",
)  # fmt: skip
"""Params of `finetune` that say which networks there are, or how they are computed here."""
_DOWNSTREAM = "finetune."


@dataclass(frozen=True)
class StudyCell:
    """One upstream training of a study, and its transfer to every task."""

    study: str
    labels: Mapping[str, str]
    """Axis -> value, as tables show it."""
    seed: int
    """Of upstream training."""
    overrides: Mapping[str, Any]
    """`section.param` -> value: all that differs from params.yaml."""
    params: Params
    """All of them."""
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return its name, the same whatever other cells there are: of an experiment of DVC."""
        return f"{self.study}-{sha256_json({**self.decisive(), 'seed': self.seed})[:_DIGITS]}"

    @property
    def upstream(self) -> str:
        """Return what names its upstream training: cells that differ downstream alone share it."""
        return sha256_json({"pretrain": self.decisive()["pretrain"], "seed": self.seed})

    @property
    def title(self) -> str:
        """Return what sets it apart, for people."""
        return f"{', '.join(f'{axis} {label}' for axis, label in self.labels.items())}" + (
            f", seed {self.seed}"
        )

    @property
    def targets(self) -> list[str]:
        """Return the stages of DVC that make it."""
        return [f"evaluate@{task}" for task in self.tasks]

    def decisive(self) -> dict[str, dict[str, Any]]:
        """Return the params that decide its result: `pretrain`, and each task.

        Those that may be absent and are as if they were, are: a younger program's param changes no
        name.
        """
        recipe = self.params.pretrain
        names = {"dataset", "precision", *recipe.RECIPE, *recipe.SCHEDULE} - {*_NOT_OF_A_NAME}
        if recipe.norm in ("bn", "bn_ws"):
            names.add("micro_batch_size")  # statistics are of the images of a pass
        found = {"pretrain": _said(recipe, names)}
        for task in self.tasks:
            own = self.params.tasks[task]
            found[task] = _said(own, {*type(own).model_fields} - {*_NOT_OF_A_TRANSFER})
        return found


def cells_of(study: Study, params: Path | dict[str, Any]) -> list[StudyCell]:
    """Return all cells, in order; what cannot be is refused before the first is begun.

    Args:
        study: The file.
        params: params.yaml or what it holds, over which the study's own and then the cell's are
            laid.

    Raises:
        ConfigError: Names each cell that is none, and why.
    """
    below = config.read_yaml(params) if isinstance(params, Path) else params
    own = config.laid_over(study.params, {"finetune": study.tuning}, whole=False)
    raw = config.laid_over(below, own)
    base = config.resolve(raw, f"the params of study {study.name}")
    tasks = tuple(study.tasks_of(base.tasks))
    faults: list[str] = []
    found: dict[str, StudyCell] = {}
    for labels, given in _points(study):
        said = " ".join(f"{axis} {label}" for axis, label in labels.items())
        for seed in study.seeds:
            try:
                changes = {**_apart(given, base.pretrain), "pretrain.seed": seed}
                changes |= _of_tasks({**_flat(own), **changes}, below, tasks)
                resolved = config.resolve(config.laid_over(raw, _nested(changes)), "")
            except ConfigError as error:
                faults.append(f"cell {said}: {' '.join(str(error).split()).lstrip(': ')}")
                break
            overrides = {**_flat(own), **changes}
            cell = StudyCell(study.name, labels, seed, overrides, resolved, tasks)
            if cell.name in found:
                faults.append(f"two cells are the same training: {dict(labels)}")
            found[cell.name] = cell
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return list(found.values())


def completed(own: Mapping[str, Any], base: PretrainParams) -> dict[str, Any]:
    """Return what a cell sets with what must move along, unless it is set, too.

    The learning rate follows the batch by the linear rule, and warm-up is as many images; decays
    and warm-up keep their place in a schedule of other length (`epochs`, `train_share`). So equal
    `epochs` of one share are equal budgets in images, whatever the batch.

    Args:
        own: Params of `pretrain` that it sets.
        base: Those of all cells.

    Raises:
        ConfigError: If one of them is no number above 0.
    """
    given = dict(own)
    batch, epochs, share = (
        _number(key, given.get(key, getattr(base, key))) / getattr(base, key)
        for key in ("batch_size", "epochs", "train_share")
    )
    if batch != 1:
        given.setdefault("base_lr", base.base_lr * batch)
    if (steps := epochs * share / batch) != 1:
        given.setdefault("warmup_steps", max(1, round(base.warmup_steps * steps)))
    if epochs != 1:
        given.setdefault("decay_epochs", [own * epochs for own in base.decay_epochs])
    return given


def _said(section: Section, names: Iterable[str]) -> dict[str, Any]:
    fields, own = type(section).model_fields, section.model_dump(mode="json")
    return {
        name: own[name]
        for name in names
        if fields[name].is_required() or getattr(section, name) != fields[name].default
    }


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"{key} must be a number above 0, got {value!r}")
    return value


def _apart(given: Mapping[str, Any], base: PretrainParams) -> dict[str, Any]:
    """Return what a cell sets, by section and param."""
    upstream = {key: own for key, own in given.items() if not key.startswith(_DOWNSTREAM)}
    whole = {f"pretrain.{key}": own for key, own in completed(upstream, base).items()}
    return whole | {key: own for key, own in given.items() if key.startswith(_DOWNSTREAM)}


def _of_tasks(
    overrides: Mapping[str, Any], below: Mapping[str, Any], tasks: Iterable[str]
) -> dict[str, Any]:
    """Return what a study says of all tasks, for tasks that params.yaml says otherwise of."""
    return {
        place: value
        for key, value in overrides.items()
        if key.startswith(_DOWNSTREAM)
        for task in tasks
        if key.removeprefix(_DOWNSTREAM) in below["tasks"][task]
        and (place := f"tasks.{task}.{key.removeprefix(_DOWNSTREAM)}") not in overrides
    }


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *above, name = key.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[name] = value
    return found


def _flat(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        place = f"{above}{key}"
        found |= _flat(value, f"{place}.") if isinstance(value, dict) else {place: value}
    return found


def _points(study: Study) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Yield labels and params of each point: those of the product, then those beside it."""
    axes = {name: _values(name, values) for name, values in study.axes.items()}
    for chosen in product(*axes.values()):
        labels = dict(zip(axes, (label for label, _ in chosen), strict=True))
        yield labels, _together(labels, [one for _, one in chosen])
    taken = [*product(*([label for label, _ in values] for values in axes.values()))]
    for cell in study.beside:
        labels, parts, extra = {}, [], {}
        for name, value in cell.items():
            known = dict(axes.get(name, ()))
            label = label_of(value)
            if name in axes and label in known:
                labels[name] = label
                parts.append(known[label])
            elif name in axes and isinstance(study.axes[name], dict):
                raise ConfigError(
                    f"beside: axis {name!r} has no {label!r}{did_you_mean(label, known)}"
                )
            else:
                _require_param(name)
                parts.append({name: value})
                if name in axes:
                    labels[name] = label
                else:
                    extra[name] = value
        if missing := [name for name in axes if name not in labels]:
            raise ConfigError(f"beside: {cell} says nothing of {', '.join(missing)}")
        own = _together(labels, parts)
        if tuple(labels[axis] for axis in axes) in taken:  # it needs a name of its own
            axis = study.plot.lines or study.plot.x
            labels[axis] += "".join(f", {key} {label_of(value)}" for key, value in extra.items())
        taken.append(tuple(labels[axis] for axis in axes))
        yield labels, own


def _values(name: str, values: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return label and params of each value of an axis."""
    if isinstance(values, dict):
        for own in values.values():
            for key in own:
                _require_param(key)
        return [(label, dict(own)) for label, own in values.items()]
    _require_param(name)
    return [(label_of(value), {name: value}) for value in values]


def label_of(value: Any) -> str:
    """Return how a value is spelled in a study's file."""
    named = {None: "null", True: "true", False: "false"}
    return named[value] if value is None or isinstance(value, bool) else str(value)


def _require_param(name: str) -> None:
    if name in ("seed", "finetune.seeds"):
        raise ConfigError(f"{name} is no axis; write seeds: [0, 1, 2] (of upstream training), or "
                          "downstream: {seeds: [0, 1, 2]}")  # fmt: skip
    section, fields = ("finetune", FinetuneParams) if name.startswith(_DOWNSTREAM) else (
        "pretrain", PretrainParams)  # fmt: skip
    known = [*fields.model_fields]
    own = name.removeprefix(_DOWNSTREAM)
    if own not in known:
        raise ConfigError(f"{own!r} is no param of {section}{did_you_mean(own, known)}")


def _together(labels: Mapping[str, str], parts: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for own in parts:
        for key, value in own.items():
            if found.setdefault(key, value) != value:
                said = " ".join(f"{axis} {label}" for axis, label in labels.items())
                raise ConfigError(f"cell {said}: two axes set {key}, to {found[key]} and {value}")
    return found
