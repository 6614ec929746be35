"""A version that must not be used any more: aliases leave it, and nobody gets it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.config import GateRules
from bigtransfer.errors import GateError
from bigtransfer.track import withdrawal
from bigtransfer.track.auditing import audited
from bigtransfer.track.promotion import promote, rollback
from bigtransfer.track.versions import checkpoint_uri, fetch_checkpoint
from bigtransfer.track.watching import Watcher
from bigtransfer.track.withdrawal import withdraw
from fixtures.project import environment
from fixtures.registered import NAME, aliases, propose

RULES = GateRules()


@pytest.fixture
def two(tracked: Path, model_folder: Path) -> Path:
    """Version 2 is champion, 1 previous, 3 challenger."""
    propose(tracked, model_folder, "d1", 0.7)
    propose(tracked, model_folder, "d2", 0.8)
    promote(tracked, NAME, "2", RULES, by="ada", because="")
    propose(tracked, model_folder, "d3", 0.9)
    return tracked


def test_the_champion_gives_way_to_previous(two: Path, client: Any) -> None:
    client.set_registered_model_alias(NAME, "in-the-shop", "2")
    found = withdraw(two, NAME, "champion", by="ada (claimed)", because="pictures must go")
    assert (found.version, found.replaced) == ("1", "2")
    assert aliases(client) == {"champion": "1", "challenger": "3"}
    assert audited(two, [NAME])[NAME][1] == []
    for refuse in (fetch_checkpoint, checkpoint_uri):
        with pytest.raises(GateError, match="withdrawn and must not be used: pictures must go"):
            refuse(two, f"models:/{NAME}/2")
    with pytest.raises(GateError, match="withdrawn"):
        promote(two, NAME, "2", RULES, by="ada", because="I want it")
    assert aliases(client)["champion"] == "1"


def test_without_another_nothing_is_champion(two: Path, client: Any) -> None:
    withdraw(two, NAME, "1", by="a", because="b")
    assert aliases(client) == {"champion": "2", "challenger": "3"}
    assert withdraw(two, NAME, "2", by="a", because="b").version == ""
    assert aliases(client) == {"challenger": "3"}
    assert audited(two, [NAME])[NAME][1] == []
    client.set_registered_model_alias(NAME, "champion", "2")
    said: list[str] = []
    Watcher(two, RULES, "revert", said.append).look()
    assert "moved by hand" in said[0]
    assert "champion" not in aliases(client)
    promote(two, NAME, "3", RULES, by="a", because="")
    assert aliases(client) == {"champion": "3"}


def test_previous_that_was_withdrawn_does_not_come_back(two: Path, client: Any) -> None:
    withdraw(two, NAME, "1", by="a", because="b")
    client.set_registered_model_alias(NAME, "previous", "1")
    with pytest.raises(GateError, match="withdrawn"):
        rollback(two, NAME, by="a", because="")
    assert withdraw(two, NAME, "2", by="a", because="b").version == ""


@pytest.mark.parametrize("step", range(1, 7))
def test_a_kill_on_the_way_is_made_up_for(
    step: int, two: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that changes the registry is one step; the process dies before it."""

    class KilledError(BaseException):
        pass

    opened = withdrawal.open_registry
    left = [step]

    class Dying:
        def __init__(self, own: Any) -> None:
            self.own = own

        def __getattr__(self, name: str) -> Any:
            found = getattr(self.own, name)
            if name.startswith(("set_", "delete_")):
                left[0] -= 1
                if left[0] == 0:
                    raise KilledError
            return found

    monkeypatch.setattr(withdrawal, "open_registry", lambda project: Dying(opened(project)))
    try:
        withdraw(two, NAME, "2", by="a", because="b")
    except KilledError:
        monkeypatch.setattr(withdrawal, "open_registry", opened)
        withdraw(two, NAME, "2", by="a", because="b")
    monkeypatch.setattr(withdrawal, "open_registry", opened)
    assert aliases(client) == {"champion": "1", "challenger": "3"}
    count, wrong = audited(two, [NAME])[NAME]
    assert (count, wrong) == (3, [])


def test_the_command_wants_a_version_and_a_reason(two: Path) -> None:
    line = [sys.executable, "-m", "bigtransfer.command", "withdraw"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*line, *words], cwd=two, env=environment(), capture_output=True, text=True, check=False
        )

    bare = run(NAME, "--because", "x")
    assert (bare.returncode, bare.stderr.count("\n")) == (2, 1)
    assert f"{NAME}/3" in bare.stderr
    assert run(f"{NAME}/3", "--because", " ").returncode == 2
    done = run(f"{NAME}/3", "--because", "pictures must go", "--by", "ada")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{NAME} version 3 is withdrawn; version 2 is champion\n"
