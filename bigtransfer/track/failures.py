"""The errors of MLflow and of its artifact store, as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bigtransfer.errors import BigTransferError, InfrastructureError, TrackingError
from bigtransfer.track.address import tracking_uri

_STORES = ("boto3", "botocore", "requests", "s3transfer", "urllib3", "azure", "google")
"""Packages whose errors come out of an upload to an artifact store."""


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
        raise TrackingError(
            f"{where} {what}: {text}; check MLFLOW_TRACKING_URI, or move mlflow.db away to start "
            "anew"
        ) from error
    except BigTransferError:
        raise
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _STORES and not isinstance(error, OSError):
            raise
        raise TrackingError(
            f"{where} {what}: its artifact store does not take our files ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); see to its address and to our right to write there"
        ) from error
