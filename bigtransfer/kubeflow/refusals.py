"""What a refused task leaves behind, so that its next attempt need not do the work to say no again.

A backend may try a task again whatever was wrong with it. A task that ends because its input is
wrong (exit 2) or a gate said no (exit 3) therefore leaves a small file for the rest of its run; a
later attempt that would do the very same reads it first. It counts for one run alone: whoever has
mended a bucket's rights submits a new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtransfer.errors import BigTransferError, ConfigError, GateError
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.storage import as_json, sha256_json
from bigtransfer.storage.s3 import S3Path, S3Tree, client, download, upload_bytes

_RUN_ID = "KFP_RUN_ID"
_FOLDER = "refusals"
_SECONDS = 3.0
"""That storage may take to answer: an attempt must end soon, and this is only a courtesy."""
_REFUSED = (ConfigError.exit_code, GateError.exit_code)
_MINIO = "minio://"
_SCHEMES = ("s3://", _MINIO)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class Refusal:
    """Why a task will not do its work."""

    stage: str
    exit_code: int
    message: str


@dataclass(frozen=True)
class Refusals:
    """The refusals of one run, at the places where its tasks may leave them."""

    places: Sequence[S3Path]
    is_of_task: bool = False
    """Whether a task of a run asks, which should have a place."""

    @classmethod
    def of_task(cls, uris: Sequence[str], mirror: str | None) -> Refusals:
        """Return those that a task can reach; none outside of a run of Kubeflow Pipelines.

        Args:
            uris: Of its outputs, below the pipeline root and the run's id.
            mirror: Where its checkpoints go, if anywhere.
        """
        run_id = os.environ.get(_RUN_ID, "")
        if not run_id:
            return cls(())
        return cls(tuple(_places(run_id, uris, mirror)), is_of_task=True)

    @classmethod
    def of_run(cls, root: str, pipeline: str, run_id: str) -> Refusals:
        """Return those of a run, as they are seen from outside."""
        place = _s3(root)
        return cls((place / pipeline / run_id / _FOLDER,) if place else ())

    def find(self, fingerprint: str) -> Refusal | None:
        """Return what an earlier attempt was refused for, if that can be read."""
        for place in self.places:
            try:
                data = download(_client(), place / f"{fingerprint}.json")
            except BigTransferError:
                continue
            if data is not None:
                return _parsed(data)
        return None

    def leave(self, fingerprint: str, refusal: Refusal, *, is_final: bool = False) -> str | None:
        """Leave a refusal at the first place that takes it.

        Args:
            fingerprint: Of what is refused.
            refusal: Why.
            is_final: Whether it stays wrong though its code does not say so.

        Returns:
            Why none did; None: one did, or there is no place, or it is nothing that stays wrong.
        """
        if refusal.exit_code not in _REFUSED and not is_final:
            return None
        why = "the pipeline root is not reached by S3's protocol" if self.is_of_task else None
        for place in self.places:
            try:
                data = as_json(vars(refusal)).encode()
                upload_bytes(_client(), data, place / f"{fingerprint}.json")
                return None
            except BigTransferError as error:
                why = str(error)
        return why

    def all(self) -> Mapping[str, Refusal]:
        """Return all that can be read, by stage."""
        found: dict[str, Refusal] = {}
        for place in self.places:
            try:
                tree = S3Tree(place, {}, _client())
                for file in tree.contents().files:
                    refusal = _parsed(tree.read(file.path))
                    if refusal is not None:
                        found[refusal.stage] = refusal
            except BigTransferError:
                continue
        return found


def fingerprint(stage: str, params: str, inputs: Mapping[str, Any], sources: Path) -> str:
    """Return a digest of all that decides whether a task is refused.

    Args:
        stage: The task.
        params: Its section, as it was given.
        inputs: Its input artifacts: address and metadata.
        sources: Folder that the image's code lies in.
    """
    code = source_tag(sources)
    return sha256_json([stage, params, inputs, code])[:32]


def _places(run_id: str, uris: Sequence[str], mirror: str | None) -> Iterator[S3Path]:
    for uri in uris:
        root, found, _ = uri.partition(f"/{run_id}/")
        place = _s3(root) if found else None
        if place:
            yield place / run_id / _FOLDER
            break  # all outputs lie below the same
    if mirror and (place := _s3(mirror)):
        yield place / _FOLDER / run_id


def _s3(address: str) -> S3Path | None:
    """Return an address that S3's protocol reaches; MinIO's is at AWS_ENDPOINT_URL."""
    scheme = next((scheme for scheme in _SCHEMES if address.startswith(scheme)), None)
    if scheme is None or (scheme == _MINIO and not any(map(os.environ.get, _ENDPOINTS))):
        return None  # without its endpoint, a bucket of that name elsewhere is somebody else's
    try:
        return S3Path.parse(f"s3://{address.removeprefix(scheme).partition('?')[0]}")
    except ConfigError:
        return None


def _parsed(data: bytes) -> Refusal | None:
    try:
        values = json.loads(data)
        return Refusal(str(values["stage"]), int(values["exit_code"]), str(values["message"]))
    except (ValueError, KeyError, TypeError):
        return None


def _client() -> Any:
    return client(seconds=_SECONDS, tries=1)
