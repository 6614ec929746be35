"""The client of Kubeflow Pipelines' API, with the login that a cluster asks for.

Tokens come from the environment, so that they stand neither in the command line nor in a log:
`KFP_TOKEN` (bearer token), `KFP_COOKIES` (of a browser's session: Dex, oauth2-proxy),
`KF_PIPELINES_SA_TOKEN_PATH` (a pod's own token). Identity-Aware Proxy is the client's own login.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from bigtransfer.config import ClusterParams
from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError

TOKEN, COOKIES = "KFP_TOKEN", "KFP_COOKIES"
_CLIENT_SECRET = "KFP_OTHER_CLIENT_SECRET"
_POD_TOKEN = "KF_PIPELINES_SA_TOKEN_PATH"
_SECONDS = 20.0
_HEALTH = "/apis/v2beta1/healthz"


@dataclass(frozen=True)
class Session:
    """A client that is let in."""

    client: Any
    endpoint: str
    namespace: str
    several_users: bool
    """Whether a run belongs to a namespace."""


def connect(endpoint: str, cluster: ClusterParams | None, arguments: argparse.Namespace) -> Session:
    """Log in, and ask the server whether it speaks KFP's API v2.

    Raises:
        ConfigError: If it does not, or refuses us.
        InfrastructureError: If it does not answer.
    """
    if "@" in urlsplit(endpoint).netloc:
        raise ConfigError(
            "the address of the API holds a name or a password, which everybody would read and "
            f"nothing would send; leave them out, and set {TOKEN} or {COOKIES}"
        )
    namespace = str(arguments.namespace or (cluster.namespace if cluster else "kubeflow"))
    with explained(endpoint):
        client = _client(endpoint, namespace, arguments)
        several = bool(client.get_kfp_healthz().multi_user)
    return Session(client, endpoint, namespace, several)


def _health(client: Any, endpoint: str) -> Any:
    """Ask once; the client's own way asks five times and logs a traceback for each."""
    health = client._healthz_api.api_client.call_api(
        _HEALTH,
        "GET",
        response_type="object",
        auth_settings=["Bearer"],
        _return_http_data_only=True,
        _request_timeout=_SECONDS,
    )
    if not isinstance(health, dict):
        raise ConfigError(
            f"{endpoint} answers with a page, not as Kubeflow Pipelines (a login page?); set "
            f"{COOKIES} to the cookies of a browser that is logged in, or {TOKEN} to a bearer "
            "token, or give the address of the API itself"
        )
    return SimpleNamespace(multi_user=health.get("multi_user", health.get("multiUser", False)))


def _client(endpoint: str, namespace: str, arguments: argparse.Namespace) -> Any:
    from kfp import client

    class Client(client.Client):  # type: ignore[misc]  # kfp has no types
        """Kubeflow's, but for how it asks after the server's health, in its constructor too."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return _health(self, endpoint)

    token = (arguments.existing_token or os.environ.get(TOKEN) or "").strip() or None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # says that it needs API v2, as we did
        return Client(
            host=endpoint,
            namespace=namespace,
            existing_token=token,
            cookies=(os.environ.get(COOKIES) or "").strip() or None,
            client_id=arguments.iap_client_id,
            other_client_id=arguments.other_client_id,
            other_client_secret=arguments.other_client_secret or os.environ.get(_CLIENT_SECRET),
            credentials=None if token else _pod_credentials(),
        )


def _pod_credentials() -> Any:
    """Return the credentials of a pod that is given a token for KFP; None elsewhere."""
    from kfp import client

    path = os.environ.get(_POD_TOKEN) or client.KF_PIPELINES_SA_TOKEN_PATH
    if not Path(path).is_file():
        return None
    return client.set_volume_credentials.ServiceAccountTokenVolumeCredentials(path)


@contextmanager
def explained(endpoint: str) -> Iterator[None]:
    """Turn the client's errors into ours.

    Raises:
        ConfigError: If the server refuses.
        InfrastructureError: If it does not answer, or fails.
    """
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        try:
            reason = json.loads(error.body)["message"]
        except (TypeError, ValueError, KeyError):
            reason = str(error.reason)
        raise _refusal(endpoint, int(error.status or 500), " ".join(reason.split())) from error
    except HTTPError as error:
        cause = getattr(error, "reason", error)
        raise InfrastructureError(
            f"Kubeflow Pipelines at {endpoint} does not answer ({cause}); start it or its port-"
            "forward, then submit again"
        ) from error
    except ValueError as error:  # says the token, so its words are not for anybody
        raise ConfigError(
            f"the token or the cookies cannot be sent; correct {TOKEN}, {COOKIES} or "
            "--existing-token: one line without control characters"
        ) from error


def _refusal(endpoint: str, status: int, reason: str) -> BigTransferError:
    if status in (401, 403):
        return ConfigError(
            f"{endpoint} refuses us ({status} {reason}); set {TOKEN} to a bearer token, or "
            f"{COOKIES} to the cookies of a browser that is logged in"
        )
    if status == 404:
        return ConfigError(
            f"{endpoint} has no API v2beta1 (404): it is another address, or Kubeflow Pipelines "
            "older than 2.0; correct --endpoint, or upgrade"
        )
    if status >= 500:
        return InfrastructureError(f"{endpoint} answers {status} {reason}; submit again later")
    return ConfigError(f"{endpoint} answers {status} {reason}")
