"""`bigtransfer run`, which is `make run`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="STAGE",
        help="only these stages and what they need, e.g. shard@photos (default: all)",
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="show all that DVC and the stages say (default: a line a stage; the rest is in "
        ".work/log)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the workflow of this project; return the exit code of the whole."""
    from bigtransfer.command.workflow import repro

    return repro(Path.cwd(), arguments.targets, verbose=arguments.verbose)
