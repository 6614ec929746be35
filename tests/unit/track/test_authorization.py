"""What the server's login lets nobody but the loop do, whatever form a request has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask import Flask, request

from bigtransfer.track import authorization

CHAMPION_IS_2 = {"champion": "2", "previous": "1"}


def asked(path: str, method: str, body: Any = None, query: str = "") -> str | None:
    place = authorization._PATH.search(path)
    if place is None:
        return None
    with Flask("x").test_request_context(
        path, method=method, data=None if body is None else json.dumps(body), query_string=query
    ):
        return authorization._refusal(place[1], place[2], authorization._asked(request))


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"m": CHAMPION_IS_2, "free": {"challenger": "1"}}
    monkeypatch.setattr(authorization, "_aliases", lambda name: known.get(name, {}))


BASES = ["/api/2.0/mlflow", "/ajax-api/2.0/mlflow", "/prefix/api/2.0/mlflow"]
ALIAS = {"name": "m", "alias": "champion", "version": "1"}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("end", ["", "/"])
def test_champion_is_refused_in_every_form(base: str, end: str) -> None:
    path = f"{base}/registered-models/alias{end}"
    for alias in ("champion", "previous", "Champion", " champion "):
        assert asked(path, "POST", {**ALIAS, "alias": alias})
        assert asked(path, "DELETE", {"name": "m", "alias": alias})
    assert asked(path, "POST", json.dumps(ALIAS)), "JSON within JSON"
    assert asked(path, "DELETE", None, "name=m&alias=champion")
    assert asked(path, "DELETE", {"alias": "x"}, "alias=champion")
    assert asked(path, "POST", {**ALIAS, "alias": "candidate"}) is None


@pytest.mark.parametrize(
    ("action", "body", "refused"),
    [
        ("registered-models/set-tag", {"name": "m", "key": "bigtransfer.records"}, True),
        ("registered-models/delete-tag", {"name": "m", "key": "bigtransfer.record.000001"}, True),
        ("registered-models/set-tag", {"name": "m", "key": "owner"}, False),
        ("registered-models/delete", {"name": "m"}, True),
        ("registered-models/rename", {"name": "m", "new_name": "n"}, True),
        ("registered-models/delete", {"name": "free"}, False),
        ("model-versions/delete", {"name": "m", "version": "2"}, True),
        ("model-versions/delete", {"name": "m", "version": 1}, True),
        ("model-versions/delete", {"name": "m", "version": "3"}, False),
        ("model-versions/delete-tag", {"name": "m", "key": "bigtransfer.withdrawn"}, True),
        ("model-versions/set-tag", {"name": "m", "key": "note"}, False),
        ("model-versions/update", {"name": "m", "version": "2"}, False),
    ],
)
def test_what_would_move_it_by_another_way(action: str, body: Any, refused: bool) -> None:
    assert (asked(f"{BASES[0]}/{action}", "POST", body) is not None) == refused


def test_what_is_no_json_asks_for_nothing_of_ours() -> None:
    with Flask("x").test_request_context(f"{BASES[0]}/a", method="POST", data=b"\xff{"):
        assert authorization._asked(request) == {}
