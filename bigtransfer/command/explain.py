"""`bigtransfer explain`: which data, code and weights made a registered model; who promoted it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Say what made a registered model version: data, upstream weights, commit, run, gates, "
        "promotions, digests."
    )
    parser.add_argument(
        "model", metavar="MODEL", help="MODEL, MODEL@ALIAS or MODEL/VERSION (default: its champion)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all that can be reached again; exit 3 if something differs",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print what is known.

    Raises:
        GateError: If something is not as it was registered.
        BigTransferError: If there is no such version.
    """
    from bigtransfer.api.provenance import verified
    from bigtransfer.errors import GateError
    from bigtransfer.extras import require
    from bigtransfer.track.explaining import explain

    require("mlflow", "explain")
    found = explain(Path.cwd(), arguments.model, verify=arguments.verify)
    facts = dict(found.facts)
    if arguments.verify:
        facts["verified"] = verified(found)
    if arguments.json:
        print(json.dumps(facts, indent=1))
    else:
        for subject, own in facts.items():
            print(subject)
            for what, value in own.items():
                print(f"  {what:<20} {value}")
    differs = [f"{what}: {value}" for what, value in facts.get("verified", {}).items()
               if value.startswith("differs")]  # fmt: skip
    if differs:
        raise GateError(f"not as it was registered: {'; '.join(differs)}")
