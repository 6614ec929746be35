"""The errors of MLflow and of its artifact store, as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigtransfer.errors import BigTransferError, InfrastructureError, TrackingError
from bigtransfer.track.address import tracking_uri

_STORES = ("boto3", "botocore", "requests", "s3transfer", "urllib3", "azure", "google")
"""Packages whose errors come out of an upload to an artifact store."""
_DATABASES = ("sqlalchemy", "sqlite3", "psycopg", "psycopg2")
_LOCKED = ("database is locked", "could not connect", "Connection refused", "timeout")


@contextmanager
def explained(project: Path, what: str) -> Iterator[None]:
    """Turn the errors of MLflow and of its artifact store into ours.

    Raises:
        TrackingError: If it is the user's to mend.
        InfrastructureError: If a server did not answer.
    """
    from mlflow.exceptions import MlflowException

    where = f"MLflow at {tracking_uri(project)!r}"
    try:
        yield
    except MlflowException as error:
        text = " ".join(str(error.message).split())
        if tracking_uri(project).startswith("http") and error.error_code == "INTERNAL_ERROR":
            raise InfrastructureError(
                f"{where} does not answer: {text}; try again later"
            ) from error
        if any(words in text for words in _LOCKED):
            raise _of_database(where, error) from error
        raise TrackingError(f"{where} {what}: {text}; {_cure(error.error_code)}") from error
    except BigTransferError:
        raise
    except Exception as error:
        room = type(error).__module__.split(".")[0]
        if room in _DATABASES:
            raise _of_database(where, error) from error
        if room not in _STORES and not isinstance(error, OSError):
            raise
        raise TrackingError(
            f"{where} {what}: its artifact store does not take our files ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); see to its address and to our right to write there"
        ) from error


def _cure(code: str) -> str:
    """Return what mends a refusal of MLflow's."""
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to one who may do that"
    if code in ("ENDPOINT_NOT_FOUND", "NOT_FOUND", "NOT_IMPLEMENTED"):
        return "is that an MLflow server, of version 3 or later? check MLFLOW_TRACKING_URI"
    return "check MLFLOW_TRACKING_URI, or move mlflow.db away to start anew"


def _of_database(where: str, error: Exception) -> BigTransferError:
    """Return what a database says, in one line."""
    text = " ".join(str(error).split()).partition(" [SQL")[0]
    if any(words in text for words in _LOCKED):
        return InfrastructureError(
            f"{where}: its database is held by another process, or away ({text}); try again"
        )
    return TrackingError(
        f"{where}: its database cannot be used ({text}); bring back a copy of it, or move it away "
        "to start anew"
    )
