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
    """`champion` if it was promoted, else `challenger`; of a version that was known the one that it
    has, `previous` or none (empty), too."""
    run_id: str
    new: bool
    """False if this very checkpoint was registered before."""
    reason: str
    """Why it was promoted or not."""
    gates: dict[str, str] = {}
    """Gate -> `verdict: reason`, as it was judged last; empty: nobody has asked for its promotion,
    or it was not noted before 2026-11-27."""

    @property
    def address(self) -> str:
        """Return by what it is loaded: `models:/…`."""
        return f"models:/{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")

    @property
    def alias_in_words(self) -> str:
        """Return its alias, for people."""
        return f"alias {self.alias}" if self.alias else "no alias"
