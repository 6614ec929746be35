"""Runs inside an MLflow server with login: only the loop moves `champion`; who asked is noted.

Named in the server's `auth.ini`, in place of MLflow's own function, which it calls:

    authorization_function = bigtransfer.track.authorization:authorize

MLflow calls it before every request. What moves or removes `champion` or `previous`, or touches the
records, is refused (403) to everybody but the user of `bigtransfer watch`. Who set another alias is
written to the model, since MLflow itself keeps no user of an alias.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from bigtransfer.track.records import CHAMPION, PREVIOUS, now
from bigtransfer.track.requests import Login, login_tag
from bigtransfer.track.versions import WITHDRAWN_TAG

WRITER = "BIGTRANSFER_WRITER"
"""Environment variable of the server: the user that `bigtransfer watch` logs in as."""
_DEFAULT_WRITER = "bigtransfer"
_PATH = re.compile(r"/mlflow/(registered-models|model-versions)/([a-z-]+)/?$")
_OURS = "bigtransfer."
_ALIASES = (CHAMPION, PREVIOUS)


def authorize() -> Any:
    """Return who asks, as MLflow's own function does, or a refusal.

    Returns:
        werkzeug's Authorization, or a Response of 401 or 403.
    """
    from flask import g, request
    from mlflow.server.auth import authenticate_request_basic_auth

    found = authenticate_request_basic_auth()
    user = getattr(found, "username", None)
    place = _PATH.search(request.path)
    if user is None or place is None or request.method == "GET":
        return found
    asked = _asked(request)
    if user != os.environ.get(WRITER, _DEFAULT_WRITER):
        if reason := _refusal(place[1], place[2], asked):
            return _forbidden(reason)
    is_alias = (place[1], place[2]) == ("registered-models", "alias")
    # MLflow asks several times within one request.
    if is_alias and request.method == "POST" and not g.get("bigtransfer_noted"):
        g.bigtransfer_noted = True
        _note_when_done(str(user), asked)
    return found


def _asked(request: Any) -> dict[str, list[str]]:
    """Return all that a request says, wherever it says it: name -> values."""
    body = request.get_json(force=True, silent=True)
    if isinstance(body, str):  # MLflow reads JSON within JSON
        try:
            body = json.loads(body)
        except ValueError:
            body = None
    found: dict[str, list[str]] = {key: list(request.args.getlist(key)) for key in request.args}
    for key, value in (body if isinstance(body, dict) else {}).items():
        found.setdefault(key, []).append(str(value))
    return found


def _refusal(kind: str, action: str, asked: dict[str, list[str]]) -> str | None:
    """Return why somebody who is not the loop may not do that; None: he may."""
    if kind == "registered-models":
        if action == "alias":
            for alias in asked.get("alias", []):
                if alias.strip().lower() in _ALIASES:
                    return (
                        f"the alias {alias!r} is moved by the gates alone; give the version the "
                        "alias candidate, and it is judged within seconds"
                    )
        if action in ("set-tag", "delete-tag"):
            if any(key.startswith(_OURS) for key in asked.get("key", [])):
                return "tags bigtransfer.* of a model are its records; nobody changes them by hand"
        if action in ("delete", "rename"):
            for name in asked.get("name", []):
                if CHAMPION in _aliases(name):
                    return f"{name!r} has a champion; withdraw it before (bigtransfer withdraw)"
    elif action == "delete":
        for name in asked.get("name", []):
            own = _aliases(name)
            for alias in _ALIASES:
                if own.get(alias) in asked.get("version", []):
                    return f"version {own[alias]} is {alias}; withdraw it before"
    elif action in ("set-tag", "delete-tag") and WITHDRAWN_TAG in asked.get("key", []):
        return "who withdraws a version is recorded; use bigtransfer withdraw"
    return None


def _aliases(name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        found = _store().get_registered_model(name).aliases
    except MlflowException:  # there is none: MLflow itself will say so
        return {}
    return {str(alias): str(version) for alias, version in found.items()}


def _store() -> Any:
    from mlflow.server.handlers import _get_model_registry_store

    return _get_model_registry_store()


def _forbidden(reason: str) -> Any:
    from flask import Response

    body = json.dumps({"error_code": "PERMISSION_DENIED", "message": reason})
    return Response(body, status=403, mimetype="application/json")


def _note_when_done(user: str, asked: dict[str, list[str]]) -> None:
    """Write who set an alias, once MLflow has set it."""
    from flask import after_this_request

    @after_this_request  # type: ignore[untyped-decorator]
    def note(response: Any) -> Any:
        names, aliases, versions = (asked.get(key, []) for key in ("name", "alias", "version"))
        if response.status_code == 200 and names and aliases and versions:
            from mlflow.entities.model_registry import RegisteredModelTag

            own = Login(user=user, version=versions[-1], at=now(), method="POST")
            tag = RegisteredModelTag(login_tag(aliases[-1]), own.model_dump_json())
            _store().set_registered_model_tag(names[-1], tag)
            print(f"alias {aliases[-1]} of {names[-1]} -> {versions[-1]} by {user}", flush=True)
        return response
