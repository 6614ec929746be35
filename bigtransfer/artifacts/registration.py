"""`registration.json`: which model version a task's network became in MLflow."""

from __future__ import annotations

from typing import ClassVar

from bigtransfer.artifacts.base import Artifact


class Registration(Artifact):
    """A registered model version and what became of it."""

    FILE: ClassVar[str] = "registration.json"
    WHAT: ClassVar[str] = "what `register` says of a model version"
    MAKER: ClassVar[str] = "register"

    name: str
    version: str
    alias: str
    """`champion` if it was promoted, else `challenger`."""
    run_id: str
    new: bool
    """False if this very checkpoint was registered before."""
    reason: str
    """Why it was promoted or not."""
