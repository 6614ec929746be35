"""`bigtransfer rollback`: the version that was champion before is champion again."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.command.promote import add_model, add_who, register_params, who


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Make the version with the alias `previous` champion, and the champion previous; its files "
        "are read again before."
    )
    add_model(parser, "name of the registered model")
    add_who(parser)
    parser.add_argument("--because", metavar="TEXT", default="", help="why")


def run(arguments: argparse.Namespace) -> None:
    """Roll back and say so.

    Raises:
        BigTransferError: If there is nothing to go back to.
    """
    from bigtransfer.extras import require
    from bigtransfer.track.promotion import rollback

    require("mlflow", "rollback")
    found = rollback(
        Path.cwd(),
        arguments.model,
        by=who(arguments.by),
        because=arguments.because,
        records_at=register_params(Path.cwd()).records_at,
    )
    was = f", version {found.replaced} is previous" if found.replaced else ""
    print(f"{found.name} version {found.version} is champion again{was}")
