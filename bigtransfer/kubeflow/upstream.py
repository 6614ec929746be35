"""Kubeflow's own command `kfp`, for all that is not ours."""

from __future__ import annotations

from typing import Any


def main() -> Any:
    """Be it: reads `sys.argv`, ends the process."""
    from kfp.cli.__main__ import main as upstream

    return upstream()
