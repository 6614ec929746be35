"""Kubeflow Pipelines' executor contract, without kfp: what a task says of its outputs.

A task is given `--executor-input JSON`, in which each output has a URI, and writes a file in which
each output has metadata. Without that file KFP's local runner knows of no output artifact at all,
and on a cluster none carries a figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Any

from bigtransfer.errors import ConfigError, InfrastructureError, StoppedError
from bigtransfer.retry import doubling, retry

_TRIES = 5
_PAUSE_SECONDS = 15.0
_LONGEST_TEXT = 200


class ExecutorInput:
    """The JSON text behind `--executor-input`."""

    def __init__(self, text: str) -> None:
        """Read it.

        Raises:
            ConfigError: If it is not what KFP passes.
        """
        try:
            outputs = json.loads(text)["outputs"]
            self._file = Path(outputs["outputFile"])
            self._artifacts: dict[str, Mapping[str, Any]] = {
                name: listed["artifacts"][0]
                for name, listed in outputs.get("artifacts", {}).items()
            }
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                "--executor-input is not what Kubeflow Pipelines passes; leave it out elsewhere"
            ) from error

    def report(self, paths: Mapping[str, Path]) -> None:
        """Write what the outputs are: the file that KFP reads after the task.

        Args:
            paths: Output -> where it was written.
        """
        from bigtransfer.storage import as_json, write_text

        said = {
            name: {"artifacts": [{**artifact, "metadata": _metadata(artifact, paths[name])}]}
            for name, artifact in self._artifacts.items()
            if name in paths
        }
        write_text(self._file, as_json({"artifacts": said}))


def _metadata(artifact: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Return what the UI shows of an output: its figures, or its digest."""
    from bigtransfer.storage import digest_of, read_json

    known: dict[str, Any] = dict(artifact.get("metadata") or {})
    kind = artifact.get("type", {}).get("schemaTitle", "")
    if kind == "system.Metrics":
        return known | _figures(read_json(path))
    if kind == "system.ClassificationMetrics":
        matrix = read_json(path)
        return known | ({"confusionMatrix": matrix} if matrix else {})
    known["digest"] = digest_of(path)
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


def run_again(run: Callable[[], None], say: Callable[[str], None]) -> None:
    """Call `run` again when something outside failed that may work the next time.

    KFP's own retry cannot tell exit codes apart; it would repeat a wrong value as well.

    Raises:
        InfrastructureError: If it fails five times, or was stopped from outside.
        BigTransferError: At once, if it is no such failure.
    """
    attempts = count(2)
    retry(
        run,
        may_help=lambda error: (
            isinstance(error, InfrastructureError) and not isinstance(error, StoppedError)
        ),
        pauses=islice(doubling(_PAUSE_SECONDS, longest=math.inf), _TRIES - 1),
        tell=lambda error, seconds: say(
            f"{error}; attempt {next(attempts)} of {_TRIES} in {seconds:.0f} s"
        ),
    )
