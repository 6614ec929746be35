"""The loop that promotes what a person marked in the MLflow UI, and finds what was moved by hand.

It reads the registry again and again; nothing else need work for it to be right.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from bigtransfer.config import GateRules
from bigtransfer.errors import BigTransferError, GateError, InfrastructureError
from bigtransfer.track.address import has_login
from bigtransfer.track.failures import explained
from bigtransfer.track.gates import refusal
from bigtransfer.track.moves import MOVING_TAG
from bigtransfer.track.promotion import advance, restore
from bigtransfer.track.records import CANDIDATE, CHAMPION, records_of
from bigtransfer.track.requests import REQUEST_TAG, login_of, request_of
from bigtransfer.track.versions import MEASURED, all_models, digest_tag, open_registry

_BY_CLICK = "not known (alias candidate, set in MLflow)"
ByHand = Literal["report", "revert"]


class Watcher:
    """What one reading of the registry after another finds to do."""

    def __init__(
        self,
        project: Path,
        rules: GateRules,
        by_hand: ByHand,
        say: Callable[[str], None],
        records_at: str | None = None,
    ) -> None:
        """Take what the loop decides by.

        Args:
            project: The project's root.
            rules: The gates.
            by_hand: What becomes of a champion that no record explains: it is reported, or the
                alias goes back to the one that the last record names.
            say: Receives a line for whatever was done or found.
            records_at: Of the second copy of the records, `s3://…`; None: there is none.
        """
        self._records_at = records_at
        self._project, self._rules, self._by_hand, self._say = project, rules, by_hand, say
        self._judged: set[tuple[str, str, str, str]] = set()
        """Model, version, champion and what both were measured at, that were judged and refused:
        not every time anew."""
        self._awaited: set[tuple[str, str]] = set()
        """Candidates of a server with login that nobody is noted for yet."""
        self._failed: dict[str, str] = {}
        """Model -> what was last said of it that could not be done."""
        self._reported: set[tuple[str, str]] = set()

    def look(self) -> None:
        """Read the registry once and do what it asks for.

        Raises:
            TrackingError: If MLflow refuses.
            InfrastructureError: If it does not answer.
        """
        with explained(self._project, "could not be watched"):
            client = open_registry(self._project)
            away: InfrastructureError | None = None
            for model in all_models(client):
                try:
                    self._champion_by_hand(client, model)
                    if CANDIDATE in model.aliases:
                        self._candidate(client, client.get_registered_model(model.name))
                except InfrastructureError as error:
                    away = error
                except BigTransferError as error:  # of one model; the others have their turn
                    if self._failed.get(str(model.name)) != str(error):
                        self._say(str(error))
                    self._failed[str(model.name)] = str(error)
            if away is not None:
                raise away

    def _candidate(self, client: Any, model: Any) -> None:
        name, aliases = str(model.name), model.aliases
        if CANDIDATE not in aliases:
            return
        version, champion = str(aliases[CANDIDATE]), str(aliases.get(CHAMPION, ""))
        own = client.get_model_version(name, version)
        asked = request_of(own)
        measured = (own.tags or {}).get(digest_tag(MEASURED), "")
        judged = name, version, champion, measured
        if asked is None and judged in self._judged:
            return
        login = login_of(model, CANDIDATE, version)
        if login is None and has_login() and (name, version) not in self._awaited:
            self._awaited.add((name, version))  # the server notes who a moment after the alias
            return
        self._awaited.discard((name, version))
        if login is not None:
            by = f"{login.user} (login)"
        else:
            by = asked.by if asked is not None else _BY_CLICK
        because = asked.because if asked is not None and asked.because else "alias candidate"
        found = advance(
            self._project, client, own, self._rules, kind="promote", by=by, because=because,
            waives_comparison=asked is not None and bool(asked.because),
            records_at=self._records_at,
        )  # fmt: skip
        if asked is not None:
            client.delete_model_version_tag(name, version, REQUEST_TAG)
        if not found.gates:
            client.delete_registered_model_alias(name, CANDIDATE)  # it is the champion already
        elif (closed := refusal(found.gates)) is not None:
            self._judged.add(judged)
            self._say(f"{name} version {version} is refused: {closed}")
        else:
            was = f", version {found.replaced} is previous" if found.replaced else ""
            self._say(f"{name} version {version} is champion{was}")

    def _champion_by_hand(self, client: Any, model: Any) -> None:
        """Find a champion that no record explains; there are records from the first one on."""
        last = [record.to for record in records_of(model.tags or {})][-1:]
        champion = str(model.aliases.get(CHAMPION, ""))
        if not last or champion == last[0] or (str(model.name), champion) in self._reported:
            return
        if MOVING_TAG in model.tags:
            return  # somebody is at it, or was killed: whoever promotes next makes up for that
        what = f"the alias champion of {model.name} was moved by hand to " + (
            f"version {champion}" if champion else "nothing"
        )
        if self._by_hand == "report":
            self._reported.add((str(model.name), champion))
            self._say(f"{what}; no gate has judged that (register.by_hand: report)")
            return
        try:
            found = restore(self._project, client, str(model.name), self._records_at)
        except GateError as error:
            self._reported.add((str(model.name), champion))
            self._say(f"{what}, and cannot go back: {error}")
            return
        if found is not None:
            self._say(f"{what}; version {found} is champion again (register.by_hand: revert)")
