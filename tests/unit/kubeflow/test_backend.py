"""What a backend without ML Metadata refuses after all the work was done."""

from __future__ import annotations

import pytest

from fixtures.kfp_api import refuse_artifacts

MATRIX = {"confusionMatrix": {"struct": {}}}


@pytest.mark.parametrize(
    ("kind", "metadata", "text"),
    [
        ("system.ClassificationMetrics", {}, "found for ClassificationMetric artifact"),
        ("system.ClassificationMetrics", None, "found for ClassificationMetric artifact"),
        ("system.ClassificationMetrics", MATRIX, None),
        ("system.SlicedClassificationMetrics", {}, "found for SlicedClassificationMetric artifact"),
        ("system.Metrics", {}, "found for Metric artifact"),
        ("system.Metrics", {"top1": 0.5}, None),
        ("system.HTML", {}, None),
    ],
)
def test_an_empty_artifact_of_metrics_is_refused(
    kind: str, metadata: dict[str, object] | None, text: str | None
) -> None:
    output = {"artifacts": {"matrix": {"artifacts": [{"name": "m", "metadata": metadata}]}}}
    said = refuse_artifacts(output, {"matrix": kind})
    assert said is None if text is None else text in (said or "")


def test_an_output_that_was_not_written_is_empty() -> None:
    assert refuse_artifacts({}, {"matrix": "system.ClassificationMetrics"}) is not None
