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
    data = data.absolute()
    path = data.parent / f"{data.name}.dvc"
    if not data.name or not path.is_file():
        return ""
    # Before `outs:` stands the digest of where it was imported from.
    _, _, outs = path.read_text("utf-8", "replace").partition("outs:")
    found = _MD5.search(outs)
    return found[1] if found else ""
