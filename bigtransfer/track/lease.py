"""One writer of a model's aliases at a time, whatever machine it is on.

On a local database that is a file lock, which dies with its process. A server has no lock; but a
name can be taken there once. So the writer creates a registered model of a name that stands for the
lease, with its owner and when it ends, and removes it. An owner that died is passed over when its
time is up: of those who rename its lease away, one succeeds.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bigtransfer.errors import LockError
from bigtransfer.storage import lock
from bigtransfer.storage.home import home_of
from bigtransfer.track.address import tracking_uri

_SECONDS = 120.0
"""That a lease is good for; moving aliases takes some requests."""
_PATIENCE = 180.0
_PAUSE = 0.1
_OWNER, _ENDS = "bigtransfer.owner", "bigtransfer.ends"


@contextmanager
def only_writer(project: Path, client: Any, name: str) -> Iterator[None]:
    """Hold a model's aliases alone for the length of the block; wait for others for minutes.

    Args:
        project: The project's root.
        client: Of MLflow.
        name: Of the registered model.

    Raises:
        LockError: If another does not let go.
    """
    if tracking_uri(project).startswith(("http://", "https://")):
        with _leased(client, name):
            yield
        return
    own = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = home_of(project) / ".work" / "registry" / f"{own}.lock"
    end = time.monotonic() + _PATIENCE
    while True:
        held = lock(path, f"the aliases of {name!r}")
        try:
            held.__enter__()
            break
        except LockError:
            if time.monotonic() > end:
                raise
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        held.__exit__(None, None, None)


@contextmanager
def _leased(client: Any, name: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    lease = f"{name}.writer"
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
    end = time.monotonic() + _PATIENCE
    while True:
        tags = {_OWNER: owner, _ENDS: str(time.time() + _SECONDS)}
        try:
            client.create_registered_model(lease, tags=tags, description="held while aliases move")
            break
        except MlflowException as error:
            # The server looks up what was in the way of a name; gone by then, that is not found.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        holder = _pass_over(client, lease)
        if holder == owner:  # it was created, its answer was lost, and MLflow's client asked again
            break
        if time.monotonic() > end:
            raise LockError(
                f"{holder or 'another'} holds the aliases of {name!r}; try again, or delete the "
                f"registered model {lease!r} where that program is gone"
            )
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        with suppress(MlflowException):  # it ended, and somebody passed it over
            if client.get_registered_model(lease).tags.get(_OWNER) == owner:
                client.delete_registered_model(lease)


def _pass_over(client: Any, lease: str) -> str | None:
    """Remove a lease whose time is up; return the owner of one whose is not."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(lease).tags
        if float(tags.get(_ENDS, "0")) > time.time():
            return str(tags.get(_OWNER))
        dead = f"{lease}.{uuid.uuid4().hex[:8]}"
        client.rename_registered_model(lease, dead)  # of several, one succeeds
        if client.get_registered_model(dead).tags.get(_OWNER) != tags.get(_OWNER):
            client.rename_registered_model(dead, lease)  # a new one, taken since it was read
        else:
            client.delete_registered_model(dead)
    except MlflowException:  # another was faster
        pass
    return None
