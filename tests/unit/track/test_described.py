"""The description of a version: what a person wrote, and what the gates say of it now."""

from __future__ import annotations

from bigtransfer.track.gates import Gate
from bigtransfer.track.verdict import described

OPEN = Gate("leakage", "pass", "the audit found none")


def test_what_gates_say_is_replaced_and_what_a_person_wrote_stays() -> None:
    first = described("R50x1, 90 %", [Gate("compare", "fail", "a | b\nc")])
    assert first.startswith("R50x1, 90 %\n\n#### Gates\n")
    assert "| compare | fail | a \\| b c |" in first
    second = described(first + "Seen by ada.", [OPEN])
    assert "compare" not in second
    assert second.startswith("R50x1, 90 %\n")
    assert second.endswith("Seen by ada.")
    assert second == described(second, [OPEN])


def test_it_fits_the_column_of_every_database() -> None:
    gates = [Gate(f"g{n}", "fail", "🦩" * 4000) for n in range(9)]
    for own in ("", "🦩" * 9000, "short"):
        found = described(described(own, gates), gates)
        assert len(found) <= 5000
        assert "| g8 | fail |" in found
