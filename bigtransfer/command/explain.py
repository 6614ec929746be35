"""`bigtransfer explain`: which data, code and weights made a registered model; who promoted it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

_DATASETS = Path("artifacts") / "datasets"


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
    from bigtransfer.errors import GateError
    from bigtransfer.extras import require
    from bigtransfer.track.explaining import explain

    require("mlflow", "explain")
    found = explain(Path.cwd(), arguments.model, verify=arguments.verify)
    facts = dict(found.facts)
    if arguments.verify:
        facts["verified"] = _verified(found.facts["data"], found.damage)
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


def _verified(data: dict[str, str], damage: str | None) -> dict[str, str]:
    """Return what was read again, and what could not be."""
    found = {
        "checkpoint, model, report, audit": "as registered" if damage is None
        else f"differs: {damage}",
    }  # fmt: skip
    found["shards"] = _shards(data["dataset"], data["shards"])
    return found


def _shards(dataset: str, digest: str) -> str:
    """Return whether the shards that it was trained on lie here, and are the same bytes."""
    from bigtransfer.data.shards import open_shards
    from bigtransfer.errors import BigTransferError

    folder = _DATASETS / dataset / "shards"
    if not folder.is_dir():
        return f"could not be reached: {str(folder)!r} is not here"
    try:
        own = open_shards(folder).digest
    except BigTransferError as error:
        return f"differs: {error}"
    if own != digest:
        return f"differs: those in {str(folder)!r} are others, {own}"
    return f"as registered: {folder}"
