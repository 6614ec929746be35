"""`bigtransfer promote`: a model version becomes champion, if it passes the gates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigtransfer.config import RegisterParams

_NOT_KNOWN = "not known"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Judge a version of a registered model by the gates of params.yaml (register.gates); if it "
        "passes, it becomes champion and the champion `previous`. Else no alias moves, exit 3."
    )
    add_model(parser, "MODEL, MODEL@ALIAS or MODEL/VERSION (default: its alias challenger)")
    add_who(parser)
    parser.add_argument(
        "--because",
        metavar="TEXT",
        default="",
        help="why; waives the comparison with the champion, and nothing else, where that fails",
    )


def add_model(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare the model that a command is about."""
    parser.add_argument("model", metavar="MODEL", help=what)


def add_who(parser: argparse.ArgumentParser) -> None:
    """Declare who wants it."""
    parser.add_argument("--by", metavar="NAME", help="who wants it; recorded as claimed")


def run(arguments: argparse.Namespace) -> None:
    """Promote and print what each gate said.

    Raises:
        GateError: If the version does not pass.
        BigTransferError: If MLflow does not do it.
    """
    from bigtransfer.extras import require
    from bigtransfer.track.promotion import promote
    from bigtransfer.track.versions import split_address

    require("mlflow", "promote")
    name, wanted = split_address(arguments.model)
    params = register_params(Path.cwd())
    found = promote(
        Path.cwd(),
        name,
        wanted,
        params.gates,
        by=who(arguments.by),
        because=arguments.because,
        waives_comparison=bool(arguments.because),
        records_at=params.records_at,
        say=print,
    )
    if not found.gates:
        print(f"{name} version {found.version} is the champion already")
        return
    was = f", version {found.replaced} is previous" if found.replaced else ""
    print(
        f"{name} version {found.version} is champion{was}; `bigtransfer rollback {name}` undoes it"
    )


def who(name: str | None) -> str:
    """Return who wants something, and how that is known."""
    return f"{name} (claimed)" if name else _NOT_KNOWN


def register_params(project: Path) -> RegisterParams:
    """Return what a project says of its registry, or what holds without one."""
    from bigtransfer import config

    path = project / "params.yaml"
    if path.is_file():
        return config.load(path).register
    return config.RegisterParams(name_prefix="")
