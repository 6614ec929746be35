"""Check the whole of params.yaml, and the paths in it, before anything starts."""

from __future__ import annotations

from pathlib import Path

from bigtransfer import config
from bigtransfer.config import Params
from bigtransfer.data.embedded import EMBEDDED
from bigtransfer.errors import BigTransferError, ConfigError
from bigtransfer.model.names import parse_architecture

_MATERIALIZED = {f"data/{name}" for name in EMBEDDED}


def check_params(path: Path) -> Params:
    """Return the params if every value and every path is fine.

    DVC refuses a missing dependency before any component starts, with a message that does not
    name params.yaml; so the paths are looked at here.

    Raises:
        ConfigError: One line per fault.
    """
    params = config.load(path)
    faults = []
    try:
        parse_architecture(params.pretrain.architecture)
    except BigTransferError as error:
        faults.append(f"{path.name}: 'pretrain.architecture': {error}")
    for name, dataset in params.datasets.items():
        folder = Path(dataset.path)
        place = f"{path.name}: 'datasets.{name}.path' is {dataset.path!r}"
        if folder.as_posix() in _MATERIALIZED:
            continue
        if not (path.parent / folder).exists():
            faults.append(
                f"{place}, but there is no such folder; correct it, or fetch the data "
                "(`dvc pull` if it is tracked by DVC)"
            )
        elif not (path.parent / folder).is_dir():
            faults.append(f"{place}, which is a file; give the folder of class folders")
    if faults:
        raise ConfigError("\n".join(faults))
    return params
