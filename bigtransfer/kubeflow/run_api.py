"""What is asked of Kubeflow Pipelines' API about a run, through the real client's connection.

The client's own functions know one dialect of the API and turn unknown fields into nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError
from bigtransfer.kubeflow.run_state import RunState, Task, parse

_SECONDS = 20.0
_LOG_SECONDS = 10.0
_LOG_BYTES = 1 << 16
_PIECE = 1 << 16
_POD = re.compile(r"(?P<workflow>.+?)-(?P<template>(?:retry-)?system-.+)-(?P<hash>\d+)$")
_NODE = re.compile(r"(?P<workflow>.+)-(?P<hash>\d+)$")
_TEMPLATE = "system-container-impl"
"""KFP's name for what runs a container; a pod's name holds it, its node's does not."""


@dataclass(frozen=True)
class RunApi:
    """One run, by a client that is logged in."""

    client: Any
    """kfp.client.Client"""
    endpoint: str
    run_id: str
    namespace: str

    @property
    def link(self) -> str:
        """Where people look at the run."""
        return f"{self.endpoint}/#/runs/details/{self.run_id}"

    def state(self) -> RunState:
        """Ask how the run stands.

        Raises:
            ConfigError: If we are not logged in any more.
            InfrastructureError: If it does not answer.
        """
        path = f"/apis/v2beta1/runs/{quote(self.run_id, safe='')}"
        answer = self._call(path, [("view", "FULL")], "object")
        if isinstance(answer, dict):
            return parse(answer)
        raise ConfigError(self._logged_out("a login page"))

    def log(self, task: Task) -> str:
        """Return the end of the log of a task's last attempt, as the API hands it out."""
        for name in names_of(task.pods[-1]) if task.pods else ():
            node = quote(name, safe="")
            path = f"/apis/v1alpha1/runs/{quote(self.run_id, safe='')}/nodes/{node}/log"
            if text := self._tail(path, []):
                return text
        return ""

    def kept_log(self, task: Task) -> str:
        """Return the end of the log that the backend keeps as an artifact, through its page."""
        scheme, _, place = task.logs.partition("://")
        bucket, _, key = place.partition("?")[0].partition("/")
        if not key:
            return ""
        query = [("source", scheme), ("namespace", self.namespace), ("bucket", bucket)]
        return self._tail("/artifacts/get", [*query, ("key", key)])

    def _tail(self, path: str, query: list[tuple[str, str]]) -> str:
        with suppress(BigTransferError):
            response = self._call(path, query, None)
            if "html" in str(response.headers.get("Content-Type", "")):
                return ""  # a login page, or the page itself for an address it does not know
            return "".join(_end_of(response))
        return ""

    def _call(self, path: str, query: list[tuple[str, str]], kind: str | None) -> Any:
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self.client._run_api.api_client.call_api(
                path,
                "GET",
                query_params=query,
                header_params={"Accept": "application/json" if kind else "*/*"},
                response_type=kind,
                auth_settings=["Bearer"],
                _return_http_data_only=True,
                _preload_content=kind is not None,
                _request_timeout=_SECONDS if kind else _LOG_SECONDS,
            )
        except ApiException as error:
            raise self._refusal(error) from error
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            raise InfrastructureError(
                f"Kubeflow Pipelines at {self.endpoint} does not answer ({error})"
            ) from error

    def _refusal(self, error: Any) -> BigTransferError:
        status = int(error.status or 500)
        if status in (401, 403):
            return ConfigError(self._logged_out(f"{status} {error.reason}"))
        reason = error.reason
        with suppress(TypeError, ValueError, KeyError):
            reason = " ".join(str(json.loads(error.body)["message"]).split()) or reason
        return InfrastructureError(f"{self.endpoint} answers {status} {reason}")

    def _logged_out(self, answer: str) -> str:
        return (
            f"{self.endpoint} does not let us in any more ({answer}); log in again. The run goes "
            f"on: {self.link}"
        )


def names_of(pod: str) -> Iterator[str]:
    """Yield a pod's name as the API gave it, and its other one: Argo's pods and nodes differ."""
    yield pod
    if match := _POD.match(pod):
        yield f"{match['workflow']}-{match['hash']}"
    elif match := _NODE.match(pod):
        yield f"{match['workflow']}-{_TEMPLATE}-{match['hash']}"


def _end_of(response: Any) -> Iterator[str]:
    """Yield the last part of a body without holding all of it."""
    from urllib3.exceptions import HTTPError

    kept = b""
    with suppress(HTTPError, OSError):
        for piece in response.stream(_PIECE):
            kept = (kept + piece)[-_LOG_BYTES:]
    response.release_conn()
    yield kept.decode("utf-8", errors="replace")
