"""The exception tree. Every message says what happened, with which input, and how to mend it.

    BigTransferError                exit 2: the user can mend it
    |-- ConfigError                 a value in params.yaml or on the command line
    |-- DatasetError                an image folder, a manifest or a shard
    |-- CheckpointError             weights or a resumable checkpoint
    |-- TrackingError               the MLflow registry
    |-- StorageError                a path that cannot be read or written
    |-- GateError                   exit 3: a data or quality gate said no
    |-- LockError                   exit 4: another run holds the lock
    `-- InfrastructureError         exit 75: try again
        `-- StoppedError            the same, but somebody wants this process to end

Raised where the value is used, caught once in `components/interface.py` or
`bigtransfer/command/`, printed as one line without a traceback. Anything else is a bug: it
keeps its traceback and exits 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

LAST_FAILURE = ".work/last-failure.json"
"""Below where a component runs: what one that failed leaves of its end."""


class BigTransferError(Exception):
    """An error whose message alone tells the user what to mend."""

    exit_code = 2
    is_final = False
    """Whether it was tried often enough: another attempt would be refused, whatever the code."""


class ConfigError(BigTransferError):
    """A value in `params.yaml`, in an overlay or on the command line is wrong."""


class TooLongError(ConfigError):
    """A fine-tuning would take longer than anybody has agreed to.

    Attributes:
        smaller: Values of a rule that is done within an hour, where there is one.
        smaller_takes: How long that takes, for people.
    """

    def __init__(self, line: str, smaller: Mapping[str, int], smaller_takes: str) -> None:
        super().__init__(line)
        self.smaller, self.smaller_takes = dict(smaller), smaller_takes


class DatasetError(BigTransferError):
    """An image folder, a dataset manifest or a shard cannot be used."""


class CheckpointError(BigTransferError):
    """Weights or a checkpoint are damaged or do not fit."""


class TrackingError(BigTransferError):
    """MLflow refused what was asked of it."""


class StorageError(BigTransferError):
    """A path cannot be read or written."""


class GateError(BigTransferError):
    """A data or quality gate said no."""

    exit_code = 3


class LockError(BigTransferError):
    """Another run is writing the same output."""

    exit_code = 4


class InfrastructureError(BigTransferError):
    """Something outside failed that may work the next time."""

    exit_code = 75


class StoppedError(InfrastructureError):
    """SIGTERM, or the process above is gone: what was reached is saved, another one goes on."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest other known word, or an empty string."""
    others = [name for name in map(str, known) if name != word]
    close = get_close_matches(word, others, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
