"""What the gates say of a version, written where people look at it: its tags and description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bigtransfer.track.gates import Gate, refusal
from bigtransfer.track.records import fitting, shortened
from bigtransfer.track.versions import LONGEST_DESCRIPTION

GATE_TAG = "gate."
"""Of a version, before the name of a gate: what it says."""
_GATES_BEGIN = "#### Gates\n"
_GATES_END = "\n`bigtransfer explain` says more.\n"
_LONGEST_CELL = 300


def note(client: Any, version: Any, gates: list[Gate]) -> None:
    """Write what the gates say as tags of a version, where people look at it."""
    for gate in gates:
        text = f"{gate.verdict}: {shortened(gate.reason)}"
        client.set_model_version_tag(version.name, version.version, GATE_TAG + gate.name, text)
    closed = refusal(gates)
    verdict = "passed" if closed is None else f"refused: {shortened(closed)}"
    client.set_model_version_tag(version.name, version.version, "gates", verdict)
    text = described(str(version.description or ""), gates)
    client.update_model_version(version.name, version.version, text)


def gates_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Return what a version's gates said when it was judged last: gate -> `verdict: reason`.

    Args:
        tags: Of the version.
    """
    return {
        tag.removeprefix(GATE_TAG): text
        for tag, text in sorted(tags.items())
        if tag.startswith(GATE_TAG)
    }


def described(description: str, gates: list[Gate]) -> str:
    """Return a version's description with what its gates say, in place of what they said before.

    Args:
        description: As it is; what a person wrote in it stays.
        gates: To show.
    """
    own, _, after = description.partition(_GATES_BEGIN)
    rest = after.partition(_GATES_END)[2]
    rows = [f"| {gate.name} | {gate.verdict} | {_in_cell(gate.reason)} |" for gate in gates]
    table = "\n".join(["", "| gate | says | because |", "|---|---|---|", *rows, ""])
    ours = f"{_GATES_BEGIN}{table}{_GATES_END}"
    room = LONGEST_DESCRIPTION - len(ours) - len(rest) - 2
    return f"{fitting(own.rstrip(), max(room, 0))}\n\n{ours}{rest}"[:LONGEST_DESCRIPTION]


def _in_cell(reason: str) -> str:
    return fitting(" ".join(reason.split()).replace("|", "\\|"), _LONGEST_CELL)
