"""The loop that promotes what a person marks in the UI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtransfer.config import GateRules
from bigtransfer.track.auditing import audited
from bigtransfer.track.promotion import promote
from bigtransfer.track.watching import ByHand, Watcher
from fixtures.registered import NAME, aliases, propose


@pytest.fixture
def two(tracked: Path, model_folder: Path) -> Path:
    propose(tracked, model_folder, "d1", 0.7)
    propose(tracked, model_folder, "d2", 0.8)
    return tracked


def watcher(project: Path, by_hand: ByHand = "report") -> tuple[Watcher, list[str]]:
    said: list[str] = []
    return Watcher(project, GateRules(), by_hand, said.append), said


def test_a_candidate_that_passes_becomes_champion(two: Path, client: Any) -> None:
    own, said = watcher(two)
    own.look()
    assert said == []
    client.set_registered_model_alias(NAME, "candidate", "2")
    own.look()
    assert said == [f"{NAME} version 2 is champion, version 1 is previous"]
    assert aliases(client) == {"champion": "2", "previous": "1"}
    own.look()
    assert len(said) == 1
    assert audited(two, [NAME]) == {NAME: (2, [])}


def test_a_candidate_that_is_refused_is_told_of_once_and_judged_anew_when_it_matters(
    two: Path, model_folder: Path, client: Any
) -> None:
    propose(two, model_folder, "d3", 0.68)
    client.set_registered_model_alias(NAME, "candidate", "3")
    own, said = watcher(two)
    own.look()
    own.look()
    assert len(said) == 1
    assert "version 3 is refused: compare" in said[0]
    assert aliases(client) == {"champion": "1", "candidate": "3", "challenger": "3"}
    assert client.get_model_version(NAME, "3").tags["gates"].startswith("refused: ")
    client.set_registered_model_alias(NAME, "candidate", "2")
    own.look()
    assert "version 2 is champion" in said[1]


def test_a_candidate_that_was_measured_since_is_judged_anew(
    two: Path, model_folder: Path, client: Any
) -> None:
    propose(two, model_folder, "d3", 0.68)
    client.set_registered_model_alias(NAME, "candidate", "3")
    own, said = watcher(two)
    own.look()
    client.set_model_version_tag(NAME, "3", "bigtransfer.measured_digest", "another")
    own.look()
    assert len(said) == 2


def test_one_model_that_cannot_be_judged_leaves_the_others_their_turn(
    two: Path, model_folder: Path, client: Any
) -> None:
    propose(two, model_folder, "e1", 0.7, name="a first one")
    propose(two, model_folder, "e2", 0.8, name="a first one")
    broken = "bigtransfer.moving"
    client.set_registered_model_tag("a first one", broken, "{}")
    for name in ("a first one", NAME):
        client.set_registered_model_alias(name, "candidate", "2")
    own, said = watcher(two)
    own.look()
    own.look()
    assert len(said) == 2
    assert f"{NAME} version 2 is champion, version 1 is previous" in said


def test_the_champion_itself_is_no_candidate(two: Path, client: Any) -> None:
    client.set_registered_model_alias(NAME, "candidate", "1")
    own, said = watcher(two)
    own.look()
    assert (said, "candidate" in aliases(client)) == ([], False)


def test_a_champion_moved_by_hand_is_reported_once(two: Path, client: Any) -> None:
    client.set_registered_model_alias(NAME, "champion", "2")
    own, said = watcher(two)
    own.look()
    own.look()
    assert said == [
        f"the alias champion of {NAME} was moved by hand to version 2; no gate has judged that "
        "(register.by_hand: report)"
    ]
    assert aliases(client)["champion"] == "2"


@pytest.mark.parametrize("away", [True, False])
def test_a_champion_moved_by_hand_goes_back_where_that_is_asked_for(
    away: bool, two: Path, client: Any
) -> None:
    if away:
        client.delete_registered_model_alias(NAME, "champion")
    else:
        client.set_registered_model_alias(NAME, "champion", "2")
    own, said = watcher(two, "revert")
    own.look()
    assert "version 1 is champion again (register.by_hand: revert)" in said[0]
    assert aliases(client) == {"champion": "1", "challenger": "2"}
    own.look()
    assert len(said) == 1
    assert audited(two, [NAME]) == {NAME: (2, [])}
    promote(two, NAME, "2", GateRules(), by="", because="")
    own.look()
    assert len(said) == 1, "a gated champion stays"


def test_a_registry_without_records_is_left_alone(two: Path, client: Any) -> None:
    for tag in client.get_registered_model(NAME).tags:
        client.delete_registered_model_tag(NAME, tag)
    client.set_registered_model_alias(NAME, "champion", "2")
    own, said = watcher(two, "revert")
    own.look()
    assert said == []
