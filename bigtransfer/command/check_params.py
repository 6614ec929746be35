"""`bigtransfer check-params`, as typed."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="file to check (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Check a file, and say that it is fine.

    Raises:
        ConfigError: One line per fault.
    """
    from bigtransfer.command.params_file import check_params

    check_params(arguments.params)
    print(f"{arguments.params}: all sections and paths are fine")
