"""`bigtransfer audit-registry`: are the records of who became champion whole?"""

from __future__ import annotations

import argparse
from pathlib import Path

from bigtransfer.command.promote import register_params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Read the records of promotions of all registered models, or some; each holds the digest "
        "of the one before. Names what was changed, is missing or was cut off, and champions that "
        "no record explains (exit 3)."
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="of these alone")


def run(arguments: argparse.Namespace) -> None:
    """Check and print.

    Raises:
        GateError: If something is wrong.
        BigTransferError: If MLflow does not answer.
    """
    from bigtransfer.errors import GateError
    from bigtransfer.extras import require
    from bigtransfer.progress import counted
    from bigtransfer.track.auditing import audited

    require("mlflow", "audit-registry")
    records_at = register_params(Path.cwd()).records_at
    found = audited(Path.cwd(), arguments.models, records_at)
    for name, (records, faults) in found.items():
        print(f"{name}: {counted(records, 'record')}{'' if faults else ', whole'}")
        for fault in faults:
            print(f"  {fault}")
    also = f" and at {records_at}" if records_at else ""
    print(f"whoever can write MLflow's tags and the copies beside the database{also} can forge all")
    wrong = [name for name, (_, faults) in found.items() if faults]
    if wrong:
        raise GateError(f"the records of {', '.join(wrong)} are not whole")
