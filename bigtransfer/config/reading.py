"""From `params.yaml` or JSON to typed params; unknown keys are errors, all faults at once.

An entry under `datasets:` or `tasks:` names only what differs from the section `data:` or
`finetune:`; here the two become one object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bigtransfer.config.base import Section
from bigtransfer.config.sections import FAMILIES, SIMPLE, Params
from bigtransfer.errors import ConfigError, did_you_mean

_TOP_KEYS = ("remote", *SIMPLE, *FAMILIES, *(shared for shared, _, _ in FAMILIES.values()))
_SectionT = TypeVar("_SectionT", bound=Section)


def load(
    path: Path, overlay: Path | None = None, changes: Mapping[str, Any] | None = None
) -> Params:
    """Read `params.yaml`, lay an overlay over it where given, and check all of it.

    An overlay that gives an entry of `datasets` or `tasks` the value null takes it away.

    Args:
        path: Of params.yaml.
        overlay: YAML file that holds only what differs.
        changes: The same, in memory; laid over both.

    Raises:
        ConfigError: One line per fault, all faults of the file together.
    """
    raw = read_yaml(path)
    return resolve(
        laid_over(raw, {} if overlay is None else read_yaml(overlay), changes or {}),
        source=path.name if overlay is None else overlay.name,
    )


def laid_over(
    raw: dict[str, Any], *overlays: Mapping[str, Any], whole: bool = True
) -> dict[str, Any]:
    """Return parsed params with overlays laid over them, the last on top.

    Args:
        raw: Below.
        overlays: Above.
        whole: Whether `raw` is all of params.yaml, so that null takes an entry away; else it is
            an overlay itself, and null stays in it.
    """
    result: dict[str, Any] = raw
    for overlay in overlays:
        result = _overlaid(result, overlay)
        for family in FAMILIES:
            if whole and family in overlay and isinstance(entries := result.get(family), dict):
                kept = {name: entry for name, entry in entries.items() if entry is not None}
                result = {**result, family: kept}
    return result


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
    simple = {key: faults.parse(model, raw.get(key), key) for key, model in SIMPLE.items()}
    families: dict[str, dict[str, Any]] = {}
    for family, (shared, rules, entry_model) in FAMILIES.items():
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
    if isinstance(users["pretrain"], dict):
        users["pretrain.probe"] = users["pretrain"].get("probe")
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


def typed_value(text: str) -> Any:
    """Return a value typed on a command line: JSON where it is JSON, else the text itself.

    In a list or a mapping words need no quotes, as in YAML: `[upstream, scratch]`.
    """
    try:
        return json.loads(text)
    except ValueError:
        return _of_yaml(text) if text[:1] in ("[", "{") else text


def _of_yaml(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text


def from_json(text: str, model: type[_SectionT], source: str = "--params-json") -> _SectionT:
    """Parse one resolved section from JSON text, as KFP passes it.

    Raises:
        ConfigError: If the text is not JSON or does not fit the section.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        if model.PLAIN is None:
            raise ConfigError(f"{source}: not JSON ({error})") from error
        values = {model.PLAIN: text}
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
    if isinstance(base, dict) and isinstance(over, Mapping):
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
                said = fault["msg"].removeprefix("Value error, ")
                self.add(f"{full!r}: {said}" if full else said)
            elif fault["type"] != "extra_forbidden":
                if any(other[:-1] == fault["loc"] for other in places):
                    continue  # only follows from the fault of one of its items
                message = fault["msg"]
                message = message[max(message.find("should"), 0) :]
                self.add(f"{full!r} is {fault['input']!r}, but it {message}")

    def report(self) -> None:
        if self.lines:
            raise ConfigError("\n".join(dict.fromkeys(self.lines)))
