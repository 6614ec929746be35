"""`bigtransfer withdraw`: a registered version must not be used any more."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.command.promote import add_model, add_who, register_params, who
from bigtransfer.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Mark a version that must not be used any more, e.g. because a person's pictures must go: "
        "every alias leaves it, `previous` becomes champion if it was that, `serve` and `predict` "
        "refuse it, and no gate lets it pass again. Its files stay where they are."
    )
    add_model(parser, "MODEL/VERSION, or MODEL@ALIAS")
    add_who(parser)
    parser.add_argument(
        "--because", metavar="TEXT", required=True, help="why; whoever asks for it reads this"
    )


def run(arguments: argparse.Namespace) -> None:
    """Withdraw and say what is champion from now on.

    Raises:
        BigTransferError: If there is no such version.
    """
    from bigtransfer.extras import require
    from bigtransfer.track.versions import split_address
    from bigtransfer.track.withdrawal import withdraw

    require("mlflow", "withdraw")
    name, wanted = split_address(arguments.model, "")
    if not wanted:
        raise ConfigError(f"which version of {name!r}? write {name}/3, or an alias of it")
    if not arguments.because.strip():
        raise ConfigError("--because is empty; say why the version must not be used")
    found = withdraw(
        Path.cwd(),
        name,
        wanted,
        by=who(arguments.by),
        because=arguments.because,
        records_at=register_params(Path.cwd()).records_at,
    )
    champion = f"version {found.version} is champion" if found.version else "nothing is champion"
    print(f"{name} version {found.replaced} is withdrawn; {champion}")
