"""Kubeflow Pipelines' executor contract, without kfp: what a task gets, and what it says.

A task is given `--executor-input JSON`, in which each artifact has a URI, and writes a file, where
each output has metadata. Without it KFP's local runner knows of no output artifact at all,
and on a cluster none carries a figure. Folders of many files travel as volumes (storage.volumes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigtransfer.errors import BigTransferError, ConfigError

_LONGEST_TEXT = 200
_SOURCES = Path(__file__).parents[1]


class RefusedBeforeError(BigTransferError):
    """An earlier attempt of this run was refused for what this one would do again."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ExecutorInput:
    """The JSON text behind `--executor-input`."""

    def __init__(self, text: str) -> None:
        """Read it.

        Raises:
            ConfigError: If it is not what KFP passes.
        """
        try:
            whole = json.loads(text)
            outputs = whole["outputs"]
            self._file = Path(outputs["outputFile"])
            self._artifacts = _first_of_each(outputs)
            self.inputs = {
                name: {"uri": artifact.get("uri"), "metadata": artifact.get("metadata")}
                for name, artifact in _first_of_each(whole.get("inputs") or {}).items()
            }
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ConfigError(
                "--executor-input is not what Kubeflow Pipelines passes; leave it out elsewhere"
            ) from error

    @property
    def uris(self) -> list[str]:
        """Return where the outputs are sent."""
        return [str(artifact.get("uri", "")) for artifact in self._artifacts.values()]

    def report(self, paths: Mapping[str, Path], told: Mapping[str, str]) -> None:
        """Write what the outputs are, the file that KFP reads after the task; pack what is many.

        Args:
            paths: Output -> where it was written.
            told: What each of them is to say besides, e.g. its source, or the run in MLflow.

        Raises:
            InfrastructureError: If the disk has no room for the volumes.
        """
        from bigtransfer.storage import as_json, write_text

        said = {
            name: {"artifacts": [{**artifact, "metadata": _metadata(artifact, paths[name], told)}]}
            for name, artifact in self._artifacts.items()
            if name in paths
        }
        for path in paths.values():
            _pack(path)
        write_text(self._file, as_json({"artifacts": said}))


def unpacked(reads: Mapping[str, Any], in_place: Sequence[str], work: Path) -> dict[str, Any]:
    """Return the inputs, with those that came as volumes as the folders that they are.

    Args:
        reads: Input -> its path, or its place in a bucket.
        in_place: Inputs whose readers take volumes as they are.
        work: Where folders are unpacked.

    Raises:
        StorageError: If a volume is damaged.
        InfrastructureError: If the disk has no room.
    """
    from bigtransfer.storage import MANIFEST_NAME, sha256_file
    from bigtransfer.storage.volumes import is_packed, unpack

    found = dict(reads)
    for name, path in reads.items():
        if isinstance(path, Path) and name not in in_place and is_packed(path):
            own = sha256_file(path / MANIFEST_NAME)[:16]
            found[name] = unpack(path, work / "unpacked" / own)
    return found


@contextmanager
def refusing_once(
    executor: ExecutorInput, stage: str, params: str, say: Callable[[str], None]
) -> Iterator[None]:
    """Let later attempts of this run know at once that what the block does is refused.

    Args:
        executor: Of this task.
        stage: Its name among all of its pipeline.
        params: Its section as JSON text.
        say: Prints a line.

    Raises:
        RefusedBeforeError: Before the block is entered, with an earlier attempt's own words.
    """
    from bigtransfer.kubeflow.refusals import Refusal, Refusals, fingerprint

    refusals = Refusals.of_task(executor.uris, _mirror(params))
    key = fingerprint(stage, params, executor.inputs, _SOURCES) if refusals.places else ""
    earlier = refusals.find(key)
    if earlier is not None:
        say("an earlier attempt of this run was refused; the same is not tried again:")
        raise RefusedBeforeError(earlier.message, earlier.exit_code)
    try:
        yield
    except BigTransferError as error:
        refusal = Refusal(stage, error.exit_code, str(error))
        if why := refusals.leave(key, refusal, is_final=error.is_final):
            say(f"warning: the next attempt will not know that this is refused: {why}")
        raise


def _mirror(params: str) -> str | None:
    try:
        values = json.loads(params)
    except ValueError:
        return None
    known = values if isinstance(values, dict) else {}
    # A task whose pods do a dataset in parts has no output, and no other place.
    found = known.get("checkpoint_mirror") or known.get("shards_at")
    return found if isinstance(found, str) else None


def _first_of_each(side: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: own["artifacts"][0] for name, own in (side.get("artifacts") or {}).items()}


def _pack(path: Path) -> None:
    from bigtransfer.storage.volumes import MOST_FILES, pack

    if path.is_dir() and sum(1 for own in path.rglob("*") if own.is_file()) > MOST_FILES:
        pack(path)


def _metadata(
    artifact: Mapping[str, Any], path: Path, told: Mapping[str, str]
) -> Mapping[str, Any]:
    """Return what the UI shows of an output: its figures alone, or its digest and what is told."""
    from bigtransfer.storage import digest_of, read_json

    known: dict[str, Any] = dict(artifact.get("metadata") or {})
    kind = artifact.get("type", {}).get("schemaTitle", "")
    if kind == "system.Metrics":
        # A backend refuses metrics without a figure, after all the task's work.
        return known | (_figures(read_json(path)) or {"figures": 0.0})
    if kind == "system.ClassificationMetrics":
        return known | {"confusionMatrix": read_json(path)}
    known |= {**told, "digest": digest_of(path)}
    index = path / "index.json"
    if index.is_file():
        known |= {
            key: value
            for key, value in read_json(index).items()
            if (type(value) in (int, float) and math.isfinite(value))
            or (type(value) is str and len(value) < _LONGEST_TEXT)
        }
    return known


def _figures(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested numbers under names like `upstream.5_per_class.top1_median`."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _figures(value, f"{prefix}{key}.")
        elif type(value) in (int, float) and math.isfinite(value):
            flat[prefix + key] = float(value)
    return flat
