"""From `params.yaml` or JSON to frozen typed params; unknown keys are errors, all faults at once.

There is no second place with defaults: a value is in `params.yaml`, where the user sees it, or it
is `null` there and the BiT-HyperRule computes it. An entry under `datasets:` or `tasks:` names
only what differs from the section `data:` or `finetune:`; here the two become one object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bigtransfer.errors import ConfigError, did_you_mean


def _whole(value: Any) -> Any:
    """Let 20.0 be the integer 20 (KFP sends numbers so); leave 20.5 and true to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
NotNegative = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**63)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
SplitName = Literal["train", "val", "test"]
Layout = Literal[
    "auto", "folders", "flat", "table", "cifar", "ilsvrc2012", "class_tars", "webdataset"
]
LAYOUTS: tuple[str, ...] = get_args(Layout)
"""How a dataset may lie where it is; `auto` tells it by the names of its files."""
SOURCES = "artifacts/sources"
"""Where the stage `fetch` writes what it found at a dataset's remote source."""


class Section(BaseModel):
    """One section of `params.yaml`: frozen, strictly typed, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MaterializeParams(Section):
    """The embedded data: which profile is rendered, from which seed."""

    profile: Literal["default", "thorough"]
    seed: NotNegative


class SplitFractions(Section):
    """Shares of a dataset that become its validation and test split; the rest is train."""

    val: Share
    test: Share

    @model_validator(mode="after")
    def _leave_some_for_train(self) -> SplitFractions:
        if self.val + self.test >= 1:
            raise ValueError("val + test must stay below 1; the rest is the train split")
        return self


class DatasetRules(Section):
    """What a dataset must obey and how it is split and packed (section `data`)."""

    seed: NotNegative
    splits: SplitFractions
    required_splits: Annotated[tuple[SplitName, ...], Field(strict=False, min_length=1)]
    min_classes: Positive
    min_examples_per_class: Positive
    min_side_pixels: Positive
    max_side_pixels: Positive
    max_image_pixels: Positive
    max_file_bytes: Positive
    small_side_pixels: NotNegative
    near_duplicate_side: NotNegative
    on_bad: Literal["error", "quarantine"]
    bad_budget: Share
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None
    exclude: Annotated[tuple[str, ...], Field(strict=False)]
    expectations: Annotated[tuple[dict[str, Any], ...], Field(strict=False)]
    layout: Layout
    source: str | None
    mirror: bool
    shard_bytes: Positive
    short_side_pixels: Positive | None

    @model_validator(mode="after")
    def _possible(self) -> DatasetRules:
        if self.min_side_pixels > self.max_side_pixels:
            raise ValueError("min_side_pixels must not exceed max_side_pixels")
        for rule in self.expectations:
            if not isinstance(rule.get("expect"), str):
                raise ValueError(
                    f"expectations: {rule!r} names no rule; write {{expect: "
                    "column_values_to_be_between, column: height, min_value: 64}"
                )
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes holds a name twice")
        return self


class DatasetParams(DatasetRules):
    """One entry of `datasets:` with the rules of `data:` filled in."""

    name: Name
    path: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _remote_lies_in_its_index(self) -> DatasetParams:
        index = f"{SOURCES}/{self.name}"
        if "://" in self.path:
            raise ValueError(
                f"path {self.path!r} is an address; DVC depends on local paths only: write "
                f"path: {index}, source: {self.path}"
            )
        if self.source is not None and self.path.rstrip("/") != index:
            raise ValueError(f"the index of a remote source lies at {index!r}; write path: {index}")
        return self


class PretrainParams(Section):
    """Upstream training (section `pretrain`)."""

    dataset: Name
    architecture: str
    root: Literal["imagenet", "small"]
    norm: Literal["gn_ws", "gn", "bn_ws", "bn"]
    epochs: Rate
    batch_size: Positive
    base_lr: Rate
    warmup_steps: NotNegative
    decay_epochs: Annotated[tuple[Rate, ...], Field(strict=False)]
    momentum: Share
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    precrop: Positive
    crop: Positive
    augmentation: Literal["square", "inception"]
    flip: bool
    seed: NotNegative
    threads: Positive
    checkpoint_steps: Positive

    @model_validator(mode="after")
    def _possible(self) -> PretrainParams:
        if self.crop > self.precrop:
            raise ValueError(f"crop {self.crop} must not exceed precrop {self.precrop}")
        epochs = self.decay_epochs
        if any(a >= b for a, b in zip(epochs, epochs[1:], strict=False)):
            raise ValueError("decay_epochs must increase")
        if epochs and epochs[-1] >= self.epochs:
            raise ValueError(f"decay_epochs must stay below epochs ({self.epochs:g})")
        return self


class FinetuneParams(Section):
    """Transfer to a task (section `finetune`); `null` leaves a value to the BiT-HyperRule."""

    inits: Annotated[tuple[Literal["upstream", "scratch"], ...], Field(strict=False, min_length=1)]
    examples_per_class: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
    seeds: Annotated[tuple[NotNegative, ...], Field(strict=False, min_length=1)]
    preset: Literal["paper", "repository"]
    total_steps: Positive | None
    batch_size: Positive | None
    base_lr: Rate | None
    precrop: Positive | None
    crop: Positive | None
    mixup_alpha: Share | None
    random_crop: bool
    flip: bool
    threads: Positive

    @model_validator(mode="after")
    def _possible(self) -> FinetuneParams:
        for name in ("inits", "examples_per_class", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds a value twice")
        if self.precrop and self.crop and self.crop > self.precrop:
            raise ValueError(f"crop {self.crop} must not exceed precrop {self.precrop}")
        return self


class TaskParams(FinetuneParams):
    """One entry of `tasks:` with the values of `finetune:` filled in."""

    name: Name
    dataset: Name


class EvaluateParams(Section):
    """Scoring of fine-tuned checkpoints (section `evaluate`)."""

    batch_size: Positive
    threads: Positive


class RegisterParams(Section):
    """What becomes a registered model, and when it becomes champion (section `register`)."""

    name_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]*$")]
    promote: Literal["if_better", "never"]


class AuditRules(Section):
    """What becomes of a leak between datasets (section `audit`)."""

    on_leak: Literal["error", "report"]


class AuditParams(AuditRules):
    """The same, with what is compared: derived from `pretrain:` and `datasets:`, never typed."""

    upstream: Name
    downstream: Annotated[tuple[Name, ...], Field(strict=False)]


class SummarizeParams(Section):
    """What the report covers: derived from `datasets:`, `tasks:` and `pretrain:`, never typed."""

    datasets: Annotated[tuple[Name, ...], Field(strict=False)]
    tasks: dict[str, str]
    upstream: Name


@dataclass(frozen=True)
class Params:
    """The whole of `params.yaml`, resolved."""

    materialize: MaterializeParams
    remote: tuple[str, ...]
    audit_rules: AuditRules
    datasets: Mapping[str, DatasetParams]
    pretrain: PretrainParams
    tasks: Mapping[str, TaskParams]
    evaluate: EvaluateParams
    register: RegisterParams

    @property
    def audit(self) -> AuditParams:
        """Return the section of the stage `audit`."""
        return AuditParams(
            on_leak=self.audit_rules.on_leak,
            upstream=self.pretrain.dataset,
            downstream=tuple(name for name in self.datasets if name != self.pretrain.dataset),
        )

    @property
    def summarize(self) -> SummarizeParams:
        """Return the section of the stage `summarize`."""
        return SummarizeParams(
            datasets=tuple(self.datasets),
            tasks={name: task.dataset for name, task in self.tasks.items()},
            upstream=self.pretrain.dataset,
        )

    def section(self, name: str) -> Section:
        """Return one section, e.g. `pretrain` or `datasets.upstream`.

        Raises:
            ConfigError: If there is no such section or entry.
        """
        head, _, entry = name.partition(".")
        if head in ("datasets", "tasks"):
            entries: Mapping[str, Section] = getattr(self, head)
            if entry not in entries:
                hint = did_you_mean(entry, entries)
                raise ConfigError(
                    f"section {head!r} has no entry {entry!r}{hint}; it has "
                    f"{', '.join(map(repr, entries))}"
                )
            return entries[entry]
        if entry or head not in _SECTION_NAMES:
            raise ConfigError(f"no section {name!r}{did_you_mean(name, _SECTION_NAMES)}")
        section: Section = getattr(self, head)
        return section


_SIMPLE: dict[str, type[Section]] = {
    "materialize": MaterializeParams,
    "pretrain": PretrainParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
    "audit": AuditRules,
}
_SECTION_NAMES = (*_SIMPLE, "summarize")
_FAMILIES: dict[str, tuple[str, type[Section], type[Section]]] = {
    "datasets": ("data", DatasetRules, DatasetParams),
    "tasks": ("finetune", FinetuneParams, TaskParams),
}
_TOP_KEYS = ("remote", *_SIMPLE, *_FAMILIES, *(shared for shared, _, _ in _FAMILIES.values()))
_SectionT = TypeVar("_SectionT", bound=Section)


def load(path: Path, overlay: Path | None = None) -> Params:
    """Read `params.yaml`, lay an overlay over it where given, and check all of it.

    Raises:
        ConfigError: One line per fault, all faults of the file together.
    """
    raw = read_yaml(path)
    if overlay is not None:
        raw = _overlaid(raw, read_yaml(overlay))
    return resolve(raw, source=path.name if overlay is None else overlay.name)


def resolve(raw: Mapping[str, Any], source: str) -> Params:
    """Turn the parsed YAML into typed params.

    Args:
        raw: Section name -> values.
        source: File name that messages begin with.

    Raises:
        ConfigError: One line per fault, all faults together.
    """
    faults = _Faults(source)
    faults.check_top(raw)
    simple = {key: faults.parse(model, raw.get(key), key) for key, model in _SIMPLE.items()}
    families: dict[str, dict[str, Any]] = {}
    for family, (shared, rules, entry_model) in _FAMILIES.items():
        shared_ok = faults.parse(rules, raw.get(shared), shared) is not None
        families[family] = {}
        entries = raw.get(family)
        if not isinstance(entries, dict) or not entries:
            faults.add(f"section {family!r} must name at least one entry, got {entries!r}")
            continue
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                faults.add(f"'{family}.{name}' must hold keys and values, got {entry!r}")
            else:
                base = raw[shared] if shared_ok else {}
                families[family][name] = faults.parse(
                    entry_model,
                    {**base, **entry, "name": name},
                    f"{family}.{name}",
                    only=None if shared_ok else set(entry),
                )
    entries = raw.get("datasets")
    known: dict[str, Any] = entries if isinstance(entries, dict) else {}
    users = {"pretrain": raw.get("pretrain")}
    if isinstance(tasks := raw.get("tasks"), dict):
        users |= {f"tasks.{name}": task for name, task in tasks.items()}
    for place, section in users.items():
        wanted = section.get("dataset") if isinstance(section, dict) else None
        if isinstance(wanted, str) and wanted not in known:
            hint = did_you_mean(wanted, known)
            faults.add(f"'{place}.dataset' is {wanted!r}, which 'datasets' does not name{hint}")
    remote = _remote(raw, faults)
    faults.report()
    simple["audit_rules"] = simple.pop("audit")
    return Params(**simple, remote=remote, datasets=families["datasets"], tasks=families["tasks"])  # type: ignore[arg-type]  # `report` raised if any is None


def _remote(raw: Mapping[str, Any], faults: _Faults) -> tuple[str, ...]:
    """Return the names under `remote`: exactly those of the datasets that have a source."""
    given = raw.get("remote")
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        faults.add(f"'remote' must be a list of dataset names, got {given!r}; write remote: []")
        return ()
    entries = raw.get("datasets")
    entries = entries if isinstance(entries, dict) else {}
    fetched = [k for k, v in entries.items() if isinstance(v, dict) and v.get("source")]
    for name, entry in entries.items():
        if isinstance(entry, dict) and "mirror" in entry:
            faults.add(
                f"'datasets.{name}.mirror': set 'mirror' under 'data', for all sources alike"
            )
    for name in fetched:
        if name not in given:
            faults.add(
                f"'datasets.{name}' has a source; add {name!r} to 'remote', so it is fetched"
            )
    for name in given:
        if name not in fetched:
            faults.add(
                f"'remote' names {name!r}, but no such dataset has a 'source'"
                f"{did_you_mean(name, fetched)}"
            )
    return tuple(given)


def from_json(text: str, model: type[_SectionT], source: str = "--params-json") -> _SectionT:
    """Parse one resolved section from JSON text, as KFP passes it.

    Raises:
        ConfigError: If the text is not JSON or does not fit the section.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source}: not JSON ({error})") from error
    faults = _Faults(source)
    parsed = faults.parse(model, values, "")
    faults.report()
    assert parsed is not None
    return parsed


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML 1.2 file (`3e-3` is a number), by the reader DVC uses.

    Raises:
        ConfigError: If the file is missing or not one YAML mapping; names line and column.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        loaded = YAML(typ="safe", pure=True).load(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; run from the project's root") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{path.name}{place}: not valid YAML: {problem}") from error
    except YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path.name}: must hold sections with keys, got {loaded!r}")
    return loaded


def _overlaid(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: _overlaid(base.get(key), value) for key, value in over.items()}}
    return over


class _Faults:
    """Collects the faults of one source; each is one line that names its place."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(f"{self.source}: {line}")

    def check_top(self, raw: Mapping[str, Any]) -> None:
        for key in raw:
            if key not in _TOP_KEYS:
                self.add(f"unknown section {key!r}{did_you_mean(str(key), _TOP_KEYS)}")

    def parse(
        self, model: type[_SectionT], values: Any, place: str, only: set[str] | None = None
    ) -> _SectionT | None:
        """Return the typed section, or note its faults (of the keys in `only`, where given)."""
        if values is None and place:
            self.add(f"section {place!r} is missing")
            return None
        if not isinstance(values, dict):
            self.add(f"section {place!r} must hold keys and values, got {values!r}")
            return None
        try:
            return model.model_validate(values)
        except ValidationError as error:
            found = [f for f in error.errors() if only is None or set(f["loc"][:1]) & only]
            self._explain(found, model, place)
            return None

    def _explain(self, found: list[Any], model: type[Section], place: str) -> None:
        where = f" in section {place!r}" if place else ""
        suggested = set()
        places = [fault["loc"] for fault in found]
        for fault in found:
            if fault["type"] == "extra_forbidden":
                key = str(fault["loc"][-1])
                hint = did_you_mean(key, model.model_fields)
                suggested.add(hint.partition("'")[2].rstrip("'?"))
                self.add(f"unknown key {key!r}{where}{hint}")
        for fault in found:
            key = ".".join(str(part) for part in fault["loc"])
            full = ".".join(filter(None, (place, key)))
            if fault["type"] == "missing":
                if key not in suggested:
                    self.add(f"missing key {key!r}{where}")
            elif fault["type"] == "value_error":
                self.add(f"{full!r}: {fault['msg'].removeprefix('Value error, ')}")
            elif fault["type"] != "extra_forbidden":
                if any(other[:-1] == fault["loc"] for other in places):
                    continue  # only follows from the fault of one of its items
                message = fault["msg"]
                message = message[max(message.find("should"), 0) :]
                self.add(f"{full!r} is {fault['input']!r}, but it {message}")

    def report(self) -> None:
        if self.lines:
            raise ConfigError("\n".join(dict.fromkeys(self.lines)))
