"""Kubernetes objects through the real client: made strictly, followed, removed.

`kube` looks and raises nothing; here something is done, and what fails is said in our words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bigtransfer.errors import ConfigError, InfrastructureError
from bigtransfer.kubeflow.kube import Kube
from bigtransfer.kubeflow.pod_words import line
from bigtransfer.retry import doubling, retry

_PLACES = {
    "Job": ("/apis/batch/v1", "jobs"),
    "TrainJob": ("/apis/trainer.kubeflow.org/v1alpha1", "trainjobs"),
    "Service": ("/api/v1", "services"),
    "Pod": ("/api/v1", "pods"),
    "Event": ("/api/v1", "events"),
}
"""Kind -> group and version, and its name in addresses."""
_SECONDS = 15.0
_QUIET_SECONDS = 600.0
"""Of a log without a line, after which it is opened anew: its connection may be dead."""
_TRIES = 6
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_GONE = 410
_ABSENT = (404,)
_NOTHING_TO_DO = {"POST": (409,), "DELETE": (404, 409)}
"""Verb -> what says that it is there already, or that it, or the one that is meant, is not."""
_TRANSIENT = (429, 500, 502, 503, 504)
_REFUSED = (400, 415, 422)


@dataclass(frozen=True)
class Objects:
    """The objects of one namespace."""

    kube: Kube
    namespace: str
    pause_seconds: float = field(default=_FIRST_PAUSE)
    """Before the second of six tries, where the API does not answer; then growing."""

    def create(self, thing: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make an object, every field of it; None if one of its name is there.

        Raises:
            ConfigError: If it may not be made, or is no such object to this cluster.
            InfrastructureError: If the API does not answer.
        """
        kind = str(thing["kind"])
        found = self._call(kind, "POST", self._path(kind), {"fieldValidation": "Strict"}, thing)
        return found if isinstance(found, dict) else None

    def read(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return an object; None if there is none of its name."""
        found = self._call(kind, "GET", f"{self._path(kind)}/{name}", {})
        return found if isinstance(found, dict) else None

    def list(self, kind: str, selector: str = "", fields: str = "") -> list[dict[str, Any]]:
        """Return the objects that a selector of labels, or of fields, names."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        given = {key: value for key, value in query.items() if value}
        found = self._call(kind, "GET", self._path(kind), given)
        return list(found.get("items") or []) if isinstance(found, dict) else []

    def label(self, kind: str, name: str, labels: Mapping[str, str]) -> None:
        """Change labels of an object."""
        self._call(
            kind, "PATCH", f"{self._path(kind)}/{name}", {}, {"metadata": {"labels": labels}}
        )

    def delete(self, kind: str, name: str, uid: str = "") -> bool:
        """Remove an object and, first, what belongs to it; say whether there was one.

        Args:
            kind: Of it.
            name: Of it.
            uid: Where it is known, another one of the name stays.
        """
        options: dict[str, Any] = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground",
        }  # fmt: skip
        if uid:
            options["preconditions"] = {"uid": uid}
        found = self._call(kind, "DELETE", f"{self._path(kind)}/{name}", {}, options)
        return found is not None

    def changes(self, kind: str, name: str, version: str, seconds: float) -> Iterator[None]:
        """Yield at each change of an object after a version of it, for so long at most.

        A watch that the API ends, or that it has forgotten the version of (410), ends: read the
        object again and go on from there.
        """
        from kubernetes.client import ApiException
        from kubernetes.watch.watch import iter_resp_lines
        from urllib3.exceptions import HTTPError

        query = {
            "watch": "true", "fieldSelector": f"metadata.name={name}", "resourceVersion": version,
            "timeoutSeconds": str(max(1, round(seconds))), "allowWatchBookmarks": "false",
        }  # fmt: skip
        try:
            answer = self._send("GET", self._path(kind), query, None, seconds + _SECONDS, raw=True)
            for text in iter_resp_lines(answer):
                event = json.loads(text)
                if event.get("type") == "ERROR":
                    return
                yield None
        except ApiException as error:
            if error.status not in (_GONE, *_TRANSIENT):
                raise self._refused(error, kind, "GET") from error
        except (HTTPError, OSError, ValueError):
            return

    def log(self, pod: str, since: str) -> Iterator[tuple[str, str]]:
        """Yield time and text of the lines of a pod's log, as they come; ends where it is cut.

        Args:
            pod: Name of the pod.
            since: Time of the last line that was read; empty: from the start.
        """
        from kubernetes.client import ApiException
        from kubernetes.watch.watch import iter_resp_lines
        from urllib3.exceptions import HTTPError

        query = {"follow": "true", "timestamps": "true", "sinceTime": since}
        given = {key: value for key, value in query.items() if value}
        path = f"{self._path('Pod')}/{pod}/log"
        try:
            answer = self._send("GET", path, given, None, _QUIET_SECONDS, raw=True)
            for text in iter_resp_lines(answer):
                time, _, words = text.partition(" ")
                if time > since:
                    yield time, words
        except (ApiException, HTTPError, OSError, ValueError):
            return

    def tail(self, pod: str, lines: int = 200) -> str:
        """Return the end of a pod's log, or nothing."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        path = f"{self._path('Pod')}/{pod}/log"
        try:
            answer = self._send("GET", path, {"tailLines": str(lines)}, None, _SECONDS, raw=True)
            return str(answer.data.decode("utf-8", "replace"))
        except (ApiException, HTTPError, OSError, ValueError):
            return ""

    def _path(self, kind: str) -> str:
        group, plural = _PLACES[kind]
        return f"{group}/namespaces/{self.namespace}/{plural}"

    def _call(
        self, kind: str, verb: str, path: str, query: Mapping[str, str], body: Any = None
    ) -> Any:
        """Return what the API answers; None for an object that is not there, or that is (POST)."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        def attempt() -> Any:
            try:
                return self._send(verb, path, query, body, _SECONDS)
            except ApiException as error:
                if error.status in _NOTHING_TO_DO.get(verb, _ABSENT):
                    return None
                raise self._refused(error, kind, verb) from error
            except (HTTPError, OSError) as error:
                raise InfrastructureError(
                    f"Kubernetes does not answer ({line(error)}); try again"
                ) from error

        pauses = doubling(self.pause_seconds, longest=_LONGEST_PAUSE)
        return retry(
            attempt,
            may_help=lambda error: isinstance(error, InfrastructureError),
            pauses=[pause for pause, _ in zip(pauses, range(_TRIES - 1), strict=False)],
        )

    def _send(
        self, verb: str, path: str, query: Mapping[str, str], body: Any, seconds: float | None,
        *, raw: bool = False,
    ) -> Any:  # fmt: skip
        kind = "application/merge-patch+json" if verb == "PATCH" else "application/json"
        return self.kube.api.call_api(
            path,
            verb,
            query_params=list(query.items()),
            header_params={"Accept": "*/*" if raw else "application/json", "Content-Type": kind},
            body=body,
            response_type="object",
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=not raw,
            _request_timeout=seconds,
        )

    def _refused(self, error: Any, kind: str, verb: str) -> Exception:
        said = _message(error)
        what = f"{kind} in namespace {self.namespace!r}"
        if error.status == 403 and "exceeded quota" in said:
            return InfrastructureError(f"a {what} is more than its quota leaves: {said}")
        if error.status == 403:
            return ConfigError(
                f"Kubernetes does not let this service account do that (403, {verb} {what}): "
                f"{said}; give it the Role of manifests/runs (cluster.service_account), or run the "
                "component in its task's own pod: cluster.launcher=task"
            )
        if error.status == 404:
            return ConfigError(
                f"this cluster knows no {what} ({said or '404'}): correct cluster.namespace; a "
                "TrainJob needs Kubeflow Trainer (cluster.launcher=job needs nothing)"
            )
        if error.status in _REFUSED:
            return ConfigError(f"Kubernetes refuses a {what} ({error.status}): {said}")
        if error.status == 401:
            return InfrastructureError("Kubernetes does not know this login (401); log in again")
        return InfrastructureError(f"Kubernetes answers {error.status} ({said}); try again")


def _message(error: Any) -> str:
    try:
        return line(json.loads(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return line(error.reason or "")
