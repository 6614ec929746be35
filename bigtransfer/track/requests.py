"""What people ask of the loop: who set an alias, and what a `promote` from elsewhere said."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from bigtransfer.artifacts.base import Part
from bigtransfer.errors import GateError, InfrastructureError
from bigtransfer.track.records import CANDIDATE, CHAMPION

REQUEST_TAG = "request"
"""Of a version: what whoever asked for its promotion said. Anybody who may set tags writes it."""
_PATIENCE = 120.0
_PAUSE = 0.5


class Login(Part):
    """Who set an alias, as the server's login knows."""

    user: str
    version: str
    at: str
    """UTC, ISO 8601."""
    method: str
    """Of HTTP."""


class Request(Part):
    """A promotion that is asked for."""

    by: str
    because: str


def login_tag(alias: str) -> str:
    """Return the tag of a model that says who set an alias last."""
    return f"bigtransfer.login.{alias}"


def login_of(model: Any, alias: str, version: str) -> Login | None:
    """Return who gave a version an alias; None: the server has no login, or has not noted it."""
    text = (model.tags or {}).get(login_tag(alias))
    if text is None:
        return None
    try:
        found = Login.model_validate_json(text)
    except ValidationError:
        return None
    return found if found.version == version else None


def request_of(version: Any) -> Request | None:
    """Return what was said when a version's promotion was asked for; None: nothing."""
    text = (version.tags or {}).get(REQUEST_TAG)
    try:
        return None if text is None else Request.model_validate_json(text)
    except ValidationError:
        return None


def ask(client: Any, version: Any, request: Request, say: Callable[[str], None]) -> None:
    """Ask the loop to promote a version, and wait until it has.

    Args:
        client: Of MLflow.
        version: Of MLflow.
        request: What is said.
        say: Receives a line when the waiting begins.

    Raises:
        GateError: If the loop refuses.
        InfrastructureError: If no loop takes the request.
    """
    name, number = str(version.name), str(version.version)
    client.set_model_version_tag(name, number, REQUEST_TAG, request.model_dump_json())
    client.set_registered_model_alias(name, CANDIDATE, number)
    say(f"{name} version {number} is candidate; bigtransfer watch decides")
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        time.sleep(_PAUSE)
        aliases = client.get_registered_model(name).aliases
        if str(aliases.get(CHAMPION)) == number:
            return
        tags = client.get_model_version(name, number).tags or {}
        if REQUEST_TAG not in tags:  # the loop has read it
            raise GateError(
                f"{name} version {number} is not promoted: "
                f"{tags.get('gates', 'refused').removeprefix('refused: ')}; aliases are as they "
                "were"
            )
    raise InfrastructureError(
        f"nobody took the request for {name} version {number} within {_PATIENCE:.0f} s; is "
        "`bigtransfer watch` running? The version stays candidate"
    )
