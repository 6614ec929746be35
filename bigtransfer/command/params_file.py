"""Check the whole of params.yaml, and the paths in it, before anything starts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.config import SOURCES, Params
from bigtransfer.data.embedded import EMBEDDED
from bigtransfer.errors import BigTransferError, ConfigError
from bigtransfer.model.names import parse_architecture

_FILES = (".tar", ".tar.gz", ".tgz")
"""Suffixes of the files that are a dataset by themselves."""
_MATERIALIZED = {f"data/{name}" for name in EMBEDDED}


def check_params(path: Path) -> Params:
    """Return the params if every value and every path is fine.

    DVC refuses a missing dependency before any component starts, with a message that does not
    name params.yaml; so the paths are looked at here.

    Raises:
        ConfigError: One line per fault.
    """
    raw = config.read_yaml(path)
    faults: list[str] = []
    try:
        params = config.resolve(raw, path.name)
    except ConfigError as error:
        faults.append(str(error))
    faults += [f"{path.name}: {line}" for line in _meaning_faults(raw, path.parent)]
    if faults:
        raise ConfigError("\n".join(faults))
    return params


def _meaning_faults(raw: dict[str, Any], project: Path) -> Iterator[str]:
    """Say what is wrong with values that have the right type."""
    pretrain, datasets = raw.get("pretrain"), raw.get("datasets")
    if isinstance(pretrain, dict) and isinstance(name := pretrain.get("architecture"), str):
        try:
            parse_architecture(name)
        except BigTransferError as error:
            yield f"'pretrain.architecture': {error}"
    for name, entry in (datasets if isinstance(datasets, dict) else {}).items():
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            yield from _path_faults(name, Path(entry["path"]), project)


def _cure(folder: Path, project: Path) -> str:
    """Say how data get to a path: by its `.dvc` file, where there is one (0003)."""
    for path in (folder, *folder.parents[:-1]):
        pointer = path.with_name(f"{path.name}.dvc")
        if (project / pointer).is_file():
            return f"fetch it: `.venv/bin/dvc pull {shlex.quote(str(pointer))}`"
    return (
        f"correct it, or put the data there (`.venv/bin/dvc pull {shlex.quote(f'{folder}.dvc')}` "
        "if they are tracked by DVC)"
    )


def _path_faults(name: str, folder: Path, project: Path) -> Iterator[str]:
    if folder.as_posix() in _MATERIALIZED or folder.is_relative_to(SOURCES):
        return
    place = f"'datasets.{name}.path' is {str(folder)!r}"
    if not (project / folder).exists():
        yield f"{place}, but there is no such folder; {_cure(folder, project)}"
    elif folder.name.endswith((".csv", ".tsv", ".parquet")):
        yield (
            f"{place}, a table: DVC would not notice when its images change; give the folder that "
            "holds table and images (the table is found by itself)"
        )
    elif not (project / folder).is_dir() and not folder.name.endswith(_FILES):
        yield f"{place}, a file that is no dataset; give a folder, or one of {', '.join(_FILES)}"
