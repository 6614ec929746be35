"""The lock file of DVC: is another run at work, or did one die and leave its marks?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bigtransfer.errors import LockError


def make_way(project: Path) -> None:
    """Remove the marks of DVC processes that died; refuse if one still works here.

    DVC itself takes a dead process that nobody has collected yet for a living one, and cannot read
    the file if it was killed while writing it.

    Raises:
        LockError: If another DVC works in this project; names its pid.
    """
    path = project / ".dvc" / "tmp" / "rwlock"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        found = {}
    for pid, command in sorted(set(_holders(found))):
        if _is_at_work(pid):
            raise LockError(
                f"another run works in this project: pid {pid} ({command}); wait for it, or end "
                f"it with `kill {pid}`"
            )
    path.unlink(missing_ok=True)


def _holders(found: Any) -> Iterator[tuple[int, str]]:
    for mode in ("write", "read"):
        for infos in found.get(mode, {}).values():
            for info in infos if isinstance(infos, list) else [infos]:
                yield int(info["pid"]), str(info["cmd"])


def _is_at_work(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "dvc" in " ".join(process.cmdline())
    except psutil.Error:
        return False
