"""Rules of Kubeflow Pipelines' backend that nothing but a cluster would show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_KINDS = {
    "system.Metrics": "Metric",
    "system.ClassificationMetrics": "ClassificationMetric",
    "system.SlicedClassificationMetrics": "SlicedClassificationMetric",
}
"""Type in a pipeline -> the API's name of it, for artifacts that may not be empty."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def refusal_of(outputs: Iterable[tuple[str, Mapping[str, Any] | None]]) -> str | None:
    """Say with what words the backend refuses the artifacts of a task.

    A backend without ML Metadata checks every artifact when the launcher hands it in, and a task
    that did all its work fails then.

    Args:
        outputs: Of each artifact its type, e.g. `system.Metrics`, and its metadata.

    Returns:
        Its message; None if it takes them all.
    """
    for kind, metadata in outputs:
        if kind in _KINDS and not metadata:
            return f"No metric or metadata was found for {_KINDS[kind]} artifact"
        if kind == "system.Metrics":
            wrong = {k: v for k, v in (metadata or {}).items() if not _is_number(v)}
            if wrong:
                return f"the metrics {', '.join(wrong)} are no numbers"
    return None
