"""The page of networks that were trained here: its figures are those of the networks."""

from __future__ import annotations

import html
import math
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.artifacts.report import TaskReport
from bigtransfer.config import EvaluateParams
from bigtransfer.data.batches import Squares
from bigtransfer.data.shards import open_shards
from bigtransfer.evaluate.task import Outputs, evaluate
from bigtransfer.model.checkpoint import load_tuned
from bigtransfer.model.inference import predict
from bigtransfer.report.summary import write_report
from fixtures.training import tune


def evaluated(folder: Path, pretrained: Path, shards: Path, **changes: object) -> Path:
    """Fine-tune and evaluate; return the folder of the evaluation."""
    tune(pretrained, shards, folder / "tuned", **changes)
    outputs = Outputs(*(folder / name for name in ("report", "m.json", "c.csv", "p.csv")))
    params = EvaluateParams(batch_size=4, threads=1, device="cpu")
    evaluate(params, folder / "tuned", shards, outputs, lambda *_: None)
    return folder


@pytest.mark.parametrize(("crop", "places"), [(56, 7), (48, 0)])
def test_maps_of_mistakes_add_up_to_what_the_network_says(
    crop: int, places: int, pretrained: Path, packed: Path, tmp_path: Path
) -> None:
    folder = evaluated(tmp_path / "t", pretrained, packed, crop=crop, precrop=crop, base_lr=0.1)
    report = TaskReport.read(folder / "report")
    assert report.mistakes and report.reliability and report.reliability.asked == 0.95
    shards = open_shards(packed)
    model, meta = load_tuned(folder / "tuned" / report.chosen.folder)
    rows = shards.rows("test")
    paths = shards.index["path"].take(rows).to_pylist()
    logits = predict(model, iter([Squares(shards, rows, crop).get(np.arange(len(rows)))]))
    for mistake in report.mistakes:
        own = logits[paths.index(mistake.path)]
        named = dict(zip(meta.classes, own.tolist(), strict=True))
        assert [part.name for part in mistake.maps] == (
            [mistake.predicted, mistake.actual] if places else []
        )
        for part in mistake.maps:
            assert np.shape(part.values) == (places, places)
            assert part.logit == pytest.approx(named[part.name], abs=1e-4)
        # Not calibrated, so the temperature is 1 and probabilities are those of the logits.
        gap = named[mistake.predicted] - named[mistake.actual]
        assert mistake.actual_probability is not None
        assert mistake.probability / mistake.actual_probability == pytest.approx(
            math.exp(gap), rel=1e-3
        )

    write_report(
        tmp_path / "page", pretrain=None, datasets={}, evaluations={"t": folder},
        registrations={}, params="", commit="",
    )  # fmt: skip
    page = html.unescape((tmp_path / "page" / "index.html").read_text())
    assert ("how the logit adds up over places" in page) == bool(places)
    assert f"2 steps of 4 images at {crop} px, not cut, learning rate 0.1," in page
    assert f"always saying “{report.largest_class}”" in page
