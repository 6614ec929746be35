"""A version and the champion that it would replace, both with their files, to be run in turn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.artifacts.evidence import Evidence
from bigtransfer.errors import GateError, TrackingError
from bigtransfer.storage import digest_of
from bigtransfer.track.failures import explained
from bigtransfer.track.moves import champion_of, find, model_of
from bigtransfer.track.versions import (
    CHECKPOINT,
    MEASURED,
    NO_PROGRESS,
    REPORT,
    digest_tag,
    kept_of,
    open_registry,
    refuse_withdrawn,
)


@dataclass(frozen=True)
class Contest:
    """Two versions of a model."""

    name: str
    """Of the registered model."""
    version: str
    champion: str
    checkpoint: Path
    """Of the version."""
    champions: Path
    """Checkpoint of the champion."""
    champions_digest: str
    dataset: str
    """That the version was trained on; empty: not noted."""
    evidence: Evidence
    """Of the version."""
    _project: Path
    _run_id: str

    def keep(self, folder: Path) -> None:
        """Keep what was measured with the version, in place of what was kept before.

        Args:
            folder: Sealed; holds a `Measured` and the champion's answers.

        Raises:
            TrackingError: If MLflow refuses.
        """
        with explained(self._project, f"did not keep what {self.name!r} was measured at"):
            client = open_registry(self._project)
            os.environ[NO_PROGRESS] = "false"
            client.log_artifacts(self._run_id, str(folder), MEASURED)
            tag = digest_tag(MEASURED)
            client.set_model_version_tag(self.name, self.version, tag, digest_of(folder))


@contextmanager
def contest(project: Path, name: str, wanted: str) -> Iterator[Contest]:
    """Give a version and the champion, their files verified; what is not here is fetched so long.

    Args:
        project: The project's root.
        name: Of the registered model.
        wanted: Its version, or an alias of it.

    Raises:
        TrackingError: If there is no such version, or nothing to compare it with.
        GateError: If its files are not as they were registered.
    """
    with explained(project, f"did not give {name!r}"):
        client = open_registry(project)
        version, champion = find(client, name, wanted), champion_of(model_of(client, name))
        refuse_withdrawn(version)
        if champion is None:
            raise TrackingError(f"{name!r} has no champion; a first version is compared with none")
        if champion == str(version.version):
            raise TrackingError(f"{name} version {champion} is the champion itself")
        other = client.get_model_version(name, champion)
        with (
            kept_of(project, client, version, [CHECKPOINT, REPORT]) as mine,
            kept_of(project, client, other, [CHECKPOINT]) as theirs,
        ):
            for one, kept in ((version, mine), (other, theirs)):
                if kept.damage is not None or CHECKPOINT not in kept.folders:
                    why = kept.damage or "no digest of its checkpoint is noted"
                    raise GateError(f"{name} version {one.version} is not run: {why}")
            yield Contest(
                name=name,
                version=str(version.version),
                champion=champion,
                checkpoint=mine.folders[CHECKPOINT],
                champions=theirs.folders[CHECKPOINT],
                champions_digest=str(other.tags[digest_tag(CHECKPOINT)]),
                dataset=str((version.tags or {}).get("dataset", "")),
                evidence=_evidence(version, mine.folders.get(REPORT)),
                _project=project,
                _run_id=str(version.run_id),
            )


def _evidence(version: Any, report: Path | None) -> Evidence:
    """Return what a version brings to its gates.

    Raises:
        TrackingError: If older code registered it, or it kept nothing to be compared by.
    """
    named = f"{version.name} version {version.version}"
    if report is None or not (report / Evidence.FILE).is_file():
        raise TrackingError(
            f"{named} keeps no answers on validation images; register it again with this version "
            "of the program"
        )
    found = Evidence.read(report)
    if not found.held_out:
        raise TrackingError(f"{named} was trained on its validation images (train_on)")
    return found
