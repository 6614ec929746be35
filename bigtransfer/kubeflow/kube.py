"""Kubernetes itself, where a kubeconfig is at hand: what Kubeflow's API does not show.

Nothing here raises: who asks is told nothing, and goes on with what the API says. The context is
named in what is said, for it may be another cluster than the API's.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtransfer.errors import InfrastructureError
from bigtransfer.extras import install
from bigtransfer.kubeflow.pod_words import line, part, waiting, words

_SECONDS = 3.0
_OPEN_SECONDS = 10.0
_RUN_LABEL = "pipeline/runid"
_NODE_NAME = "workflows.argoproj.io/node-name"
_LOG_LINES = 200
_IN_CLUSTER = "this cluster"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True)
class Trouble:
    """Why a pod does not start, or what Argo says of a node."""

    pod: str
    node: str
    """Argo's name of it, e.g. `quickstart-x.root.evaluate-2.executor(0)`."""
    text: str


@dataclass(frozen=True)
class Kube:
    """A cluster that answered."""

    context: str
    """Its name in the kubeconfig."""
    _api: Any = field(repr=False)

    @property
    def api(self) -> Any:
        """Return the client that is logged in."""
        return self._api

    def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """Return an object or a list as the API has it; None if it does not answer or refuses."""
        found = _ask(self._api, path, query)
        return found if isinstance(found, dict) else None

    def items(self, path: str, **query: str) -> list[dict[str, Any]]:
        """Return what a list holds; an empty list if it does not answer or refuses."""
        found = (self.get(path, **query) or {}).get("items")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Ask something that is asked by POST; None if it does not answer or refuses."""
        found = _ask(self._api, path, {}, body=body)
        return found if isinstance(found, dict) else None

    def status(self, path: str) -> int | None:
        """Return the status of an answer; None where there is none."""
        found = _ask(self._api, path, {})
        if isinstance(found, InfrastructureError):
            number = str(found).partition(" ")[0]
            return int(number) if number.isdigit() else None
        return 200

    def text(self, path: str) -> str:
        """Return an answer that is plain text, or nothing."""
        found = _ask(self._api, path, {}, "str")
        return found.strip() if isinstance(found, str) else ""

    def log(self, namespace: str, pod: str) -> str:
        """Return the end of the log of a task's pod, or nothing."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        found = _ask(self._api, path, {"container": "main", "tailLines": str(_LOG_LINES)}, "str")
        return found if isinstance(found, str) else ""

    def troubles(self, namespace: str, run_id: str) -> list[Trouble]:
        """Return why pods of a run do not start, and what Argo says of nodes that failed."""
        select = f"{_RUN_LABEL}={run_id}"
        pods = self.items(f"/api/v1/namespaces/{namespace}/pods", labelSelector=select)
        found = [trouble for pod in pods for trouble in self._of_pod(namespace, pod)]
        workflows = self.items(
            f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows", labelSelector=select
        )
        return [*found, *(trouble for one in workflows for trouble in _of_workflow(one))]

    def _of_pod(self, namespace: str, pod: Mapping[str, Any]) -> Iterator[Trouble]:
        meta, status = part(pod.get("metadata")), part(pod.get("status"))
        name = str(meta.get("name", ""))
        node = str(part(meta.get("annotations")).get(_NODE_NAME, ""))
        told = next(waiting(pod), "")
        if not told and status.get("phase") == "Pending":
            events = self.items(
                f"/api/v1/namespaces/{namespace}/events",
                fieldSelector=f"involvedObject.name={name},type=Warning",
            )
            told = next((words(e.get("reason"), e.get("message")) for e in events[::-1]), "")
        if not told and status.get("phase") == "Failed":
            told = words(status.get("reason"), status.get("message"))
        if told:
            yield Trouble(name, node, told)


def namespace_here() -> str:
    """Return the namespace of this pod or, elsewhere, of the kubeconfig's context."""
    with suppress(OSError):
        return _OWN_NAMESPACE.read_text("utf-8").strip()
    from kubernetes import config
    from kubernetes.config.config_exception import ConfigException

    with suppress(ConfigException, OSError, KeyError, TypeError):
        _, current = config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))
        return str(current["context"].get("namespace") or "default")
    return "default"


def at_hand() -> tuple[Kube | None, str]:
    """Open the kubeconfig's current context, or the cluster this process runs in.

    A kubeconfig may name a program that logs in, which may ask or wait: nobody waits for that long.

    Returns:
        What answered, and why nothing did.
    """
    answer: list[tuple[Kube | None, str]] = []
    thread = threading.Thread(target=lambda: answer.append(_open()), daemon=True)
    thread.start()
    thread.join(_OPEN_SECONDS)
    late = f"the login of the kubeconfig took more than {_OPEN_SECONDS:g} s"
    return answer[0] if answer else (None, late)


def _open() -> tuple[Kube | None, str]:
    try:
        from kubernetes import client, config
        from kubernetes.config.config_exception import ConfigException
        from kubernetes.config.kube_config import yaml
    except ImportError:
        return None, f"the package kubernetes is not installed; {install('kubernetes')}"
    place = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    made = client.Configuration()
    try:
        # Not the module's default: it reads KUBECONFIG once, when it is imported.
        if any(Path(one).expanduser().is_file() for one in place.split(os.pathsep)):
            config.load_kube_config(place, client_configuration=made, persist_config=False)
            _, current = config.list_kube_config_contexts(place)
            context = str(current["name"])
        else:
            config.load_incluster_config(client_configuration=made)
            context = _IN_CLUSTER
    except ConfigException as error:
        missing = "no kubeconfig" if "incluster" in str(error) or "host/port" in str(error) else ""
        return None, missing or f"kubeconfig {place}: {line(error)}"
    except (yaml.YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"kubeconfig {place} cannot be read ({line(error)})"
    made.retries = False
    api = client.ApiClient(made)
    answer = _ask(api, "/version", {})
    if isinstance(answer, dict):
        return Kube(context, api), ""
    return None, f"the cluster of context {context!r} ({made.host}) does not answer ({answer})"


def _ask(
    api: Any, path: str, query: Mapping[str, str], kind: str = "object", body: Any = None
) -> Any:
    """Return what the API answers, or, unraised, why it does not."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return api.call_api(
            path,
            "GET" if body is None else "POST",
            body=body,
            query_params=list(query.items()),
            header_params={"Accept": "application/json" if kind == "object" else "*/*"},
            response_type=kind,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _request_timeout=_SECONDS,
        )
    except ApiException as error:
        return InfrastructureError(f"{error.status} {error.reason}")
    except (HTTPError, OSError, ValueError, AttributeError) as error:
        return InfrastructureError(line(error))


def _of_workflow(workflow: Mapping[str, Any]) -> Iterator[Trouble]:
    status = part(workflow.get("status"))
    nodes = part(status.get("nodes"))
    if packed := status.get("compressedNodes"):  # a large workflow
        with suppress(ValueError, OSError, EOFError):
            nodes = part(json.loads(gzip.decompress(base64.b64decode(packed))))
    for node in sorted(
        map(part, nodes.values()), key=lambda node: str(node.get("startedAt") or "")
    ):
        message = str(node.get("message") or "")
        if node.get("type") == "Pod" and message:
            yield Trouble("", str(node.get("name", "")), line(message))


def of_task(troubles: list[Trouble], pods: tuple[str, ...], spec_name: str) -> str:
    """Return what is said of one task among the troubles of its run; the latest last attempt."""
    own = re.compile(rf"\.{re.escape(spec_name)}(-driver)?(\(|\.|$)") if spec_name else None
    last = pods[-1] if pods else None
    mine = [
        trouble
        for trouble in troubles
        if (last and trouble.pod == last) or (own and own.search(trouble.node))
    ]
    exact = [trouble.text for trouble in mine if last and trouble.pod == last]
    return (exact or [trouble.text for trouble in mine] or [""])[-1]
