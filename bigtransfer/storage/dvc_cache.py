"""What DVC took away before it ran a stage, put back from its cache.

DVC removes the outputs of a stage and then runs it. A training that is stopped would leave nobody a
model, and one of which only a dependency changed would begin from nothing. The outputs of the last
finished run are still in DVC's cache, under the digests that `dvc.lock` names.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from bigtransfer.errors import BigTransferError
from bigtransfer.storage.local import new_file, new_folder

LOCK_FILE = "dvc.lock"


def put_back(path: Path, project: Path) -> bool:
    """Put the last version of a stage's output back, where there is none.

    Files are links into the cache where the disk can do that; nobody writes into them, because
    every output is written beside its name and renamed.

    Args:
        path: Of the output, as `dvc.yaml` names it.
        project: Folder of `dvc.lock`.

    Returns:
        Whether it was put back; False if it is there, or DVC's cache does not hold all of it.
    """
    if path.exists() or not (project / LOCK_FILE).is_file():
        return False
    digest = _digest(path, project)
    cache = digest and _cache(project)
    if not digest or not cache:
        return False
    try:
        files = files_of(digest, cache)
        if not all(file.is_file() for file in files.values()):
            return False
        if digest.endswith(".dir"):
            with new_folder(path, sealed=False) as folder:
                for name, file in files.items():
                    _link(file, folder / name)
        else:
            with new_file(path) as partial:
                _link(files[""], partial)
    except (OSError, ValueError, KeyError, TypeError, BigTransferError):
        return False  # what a run makes anew must not stop it
    return True


def _digest(path: Path, project: Path) -> str:
    """Return the MD5 that `dvc.lock` has of an output; empty if it has none."""
    try:
        stages = read_lock((project / LOCK_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    for stage in stages.values():
        for out in stage.get("outs", ()) if isinstance(stage, dict) else ():
            if Path(out.get("path", "")) == path:
                return str(out.get("md5", ""))
    return ""


def read_lock(text: str) -> dict[str, Any]:
    """Return the stages of a `dvc.lock`.

    Raises:
        ValueError: If it is no YAML, or something else.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        locked: Any = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ValueError(f"no {LOCK_FILE}: {error}") from error
    stages = locked.get("stages") if isinstance(locked, dict) else None
    return stages if isinstance(stages, dict) else {}


def _cache(project: Path) -> Path | None:
    """Return the folder of DVC's cache on this machine."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.local.path)
    except (DvcException, OSError):
        return None


def files_of(digest: str, cache: Path) -> dict[str, Path]:
    """Return the files of an output -> where the cache has them; a file's own name is empty.

    Args:
        digest: MD5 of it, as `dvc.lock` names it.
        cache: Folder of the objects.

    Raises:
        OSError: If the cache does not hold the list of a folder's files.
    """
    own = _object(digest, cache)
    if not digest.endswith(".dir"):
        return {"": own}
    listed = json.loads(own.read_text("utf-8"))
    return {entry["relpath"]: _object(entry["md5"], cache) for entry in listed}


def _object(digest: str, cache: Path) -> Path:
    return cache / digest[:2] / digest[2:]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
