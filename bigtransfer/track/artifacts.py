"""Files that an MLflow server hands out itself."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bigtransfer.errors import InfrastructureError, TrackingError
from bigtransfer.storage import new_folder
from bigtransfer.storage.copying import checked
from bigtransfer.track.address import tracking_uri

_REFUSED = re.compile(r"\b4\d\d Client Error: [\w ]+?(?= for url)")
SCHEMES = ("mlflow-artifacts:", "runs:")
"""Of addresses that mean something to the server alone."""


def download(project: Path, address: str, folder: Path, sha256: str | None) -> str:
    """Bring a folder of MLflow's here, whole and checked.

    Args:
        project: The project's root.
        address: `mlflow-artifacts:/…` or `runs:/…`, of the server that is named.
        folder: Written beside and renamed when complete.
        sha256: What it must be: of the folder's MANIFEST.json, or of its only file.

    Returns:
        The SHA-256 of it.

    Raises:
        TrackingError: If there is nothing, or it may not be read.
        StorageError: If it is damaged, or not what was asked for.
        InfrastructureError: If the server does not answer.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    uri = tracking_uri(project)
    with new_folder(folder, sealed=False) as partial:
        try:
            came = Path(
                download_artifacts(artifact_uri=address, dst_path=str(partial), tracking_uri=uri)
            )
        except MlflowException as error:
            text = " ".join(str(error.message).split())
            if refused := _REFUSED.search(text):  # MLflow calls this internal, too
                raise TrackingError(
                    f"{address!r} cannot be had from MLflow at {uri!r} ({refused[0]}); correct the "
                    "address, or see to the right to read it"
                ) from error
            if error.error_code == "INTERNAL_ERROR":
                raise InfrastructureError(f"MLflow at {uri!r} does not answer: {text}") from error
            raise TrackingError(
                f"{address!r} cannot be had from MLflow at {uri!r}: {text}; correct the address"
            ) from error
        except OSError as error:
            raise TrackingError(
                f"{address!r} cannot be had from MLflow at {uri!r}: {error}; correct the address"
            ) from error
        if came.is_dir() and came != partial:  # it lies in a folder of its own name
            for path in came.iterdir():
                path.replace(partial / path.name)
            came.rmdir()
        return checked(partial, address, sha256)
