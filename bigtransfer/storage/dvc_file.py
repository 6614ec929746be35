"""What the `.dvc` file beside data says of them; read as text, DVC need not be there."""

from __future__ import annotations

import re
from pathlib import Path

_MD5 = re.compile(r"^\s*-?\s*md5:\s*([0-9a-f]{32}(?:\.dir)?)\s*$", re.MULTILINE)


def dvc_revision(data: Path) -> str:
    """Return the MD5 of data that `dvc add` put under version control; empty: it did not.

    Args:
        data: File or folder; `<data>.dvc` stands beside it.
    """
    path = data.with_name(data.name + ".dvc")
    if not path.is_file():
        return ""
    found = _MD5.search(path.read_text("utf-8", "replace"))
    return found[1] if found else ""
