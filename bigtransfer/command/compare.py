"""`bigtransfer compare`: two reports on one test split, with an interval of the difference."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    for name in ("first", "second"):
        parser.add_argument(
            name,
            type=Path,
            metavar=name.upper(),
            help="report folder written by evaluate, e.g. artifacts/evaluate/digits/report",
        )


def run(arguments: argparse.Namespace) -> None:
    """Compare and print.

    Raises:
        BigTransferError: If the two cannot be compared.
    """
    from bigtransfer.evaluate.comparison import compare_reports

    found = compare_reports(arguments.first, arguments.second)
    print(f"first   {100 * found.first:.1f} %  {arguments.first}")
    print(f"second  {100 * found.second:.1f} %  {arguments.second}")
    print(
        f"second - first = {100 * (found.second - found.first):+.1f} points, 95 % interval "
        f"{100 * found.lowest:+.1f} to {100 * found.highest:+.1f} (bootstrap over images): "
        f"{found.verdict}"
    )
    print(
        f"right by the first alone {found.only_first:,} images, by the second alone "
        f"{found.only_second:,}"
    )
