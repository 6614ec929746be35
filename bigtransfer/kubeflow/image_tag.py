"""The tag of the container images: what is in them, so that a tag never names two things."""

from __future__ import annotations

import hashlib
from pathlib import Path

CONTENT = ("bigtransfer", "components", "pyproject.toml", "requirements.lock")
"""What the Dockerfile copies."""
_LEFT_OUT = ("__pycache__",)


def source_tag(project: Path) -> str:
    """Return 12 hex digits over every file that goes into the images."""
    digest = hashlib.sha256()
    for place in CONTENT:
        start = project / place
        files = sorted(start.rglob("*")) if start.is_dir() else [start]
        for file in files:
            if file.is_file() and not set(file.parts) & set(_LEFT_OUT):
                digest.update(file.relative_to(project).as_posix().encode() + b"\0")
                digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
