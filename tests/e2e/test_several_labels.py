"""A dataset whose images have several labels, from a table to a registered model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fixtures.datasets import planted
from fixtures.images import in_base64
from fixtures.workflow import edit_params, mlflow_client, run_workflow

pytestmark = [
    pytest.mark.xdist_group("e2e-workflow"),
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning"),  # MLflow's import of itself
]


def test_several_labels_from_a_table_to_a_registered_model(own_copy: Path) -> None:
    planted(own_copy / "data" / "planted")
    edit_params(
        own_copy, "  alphabets: {path", "  planted: {path: data/planted}\n  alphabets: {path"
    )
    task = "planted: {dataset: planted, inits: [upstream], examples_per_class: [1], seeds: [0]}"
    first = "  digits: {dataset: digits}"
    edit_params(own_copy, first, f"{first}\n  {task}")

    refused = run_workflow(own_copy, "register@planted")
    assert refused.returncode == 2
    assert "set 'examples_per_class' of task 'planted' to [full]" in refused.stderr

    edit_params(own_copy, "inits: [upstream], examples_per_class: [1]",
                "inits: [upstream], examples_per_class: [full]")  # fmt: skip
    done = run_workflow(own_copy, "register@planted")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((own_copy / "artifacts/evaluate/planted/report/report.json").read_text())
    assert report["metric"] == "map"
    assert report["chosen"]["test"]["map"] > 0.95
    assert report["chosen"]["test"]["micro_f1"] > 0.9
    assert "planted: upstream, full per class: mAP " in done.stdout
    confused = json.loads((own_copy / "artifacts/evaluate/planted/confusion.json").read_text())
    (has, _), (_, has_not) = (row["row"] for row in confused["rows"])
    assert has > 0 and has_not > 0  # pairs of an image and a label, right both ways
    client = mlflow_client(own_copy)
    champion = client.get_model_version_by_alias("bigtransfer-planted", "champion")
    assert float(champion.tags["bigtransfer.test_score"]) == report["chosen"]["test"]["map"]

    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{own_copy / 'mlflow.db'}")
    served = mlflow.pyfunc.load_model("models:/bigtransfer-planted@champion")
    image = np.full((12, 12, 3), 30, np.uint8)
    image[:, 6:] = 200
    (said,) = served.predict(pd.DataFrame({"image": [in_base64(image)]}))
    (right,) = said["labels"]
    assert [guess["label"] for guess in said["top_k"]][0] == right
    left = min(said["top_k"], key=lambda guess: guess["probability"])
    assert left["probability"] < 0.5 < said["probabilities"][0]
