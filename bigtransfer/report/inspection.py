"""The page of training images that a person should look at."""

from __future__ import annotations

from pathlib import Path

from bigtransfer.artifacts.inspection import Inspection
from bigtransfer.report import page


def inspection_page(found: Inspection) -> str:
    """Return it as HTML."""
    return page.render(Path(__file__).with_suffix(".html"), found=found)
