"""A checkpoint as a file for another runtime: the real exporters, the real runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from bigtransfer.errors import BigTransferError
from bigtransfer.serve import export as exporting
from bigtransfer.serve.deployed import load_deployed
from bigtransfer.serve.export import export
from fixtures.models import CLASSES


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("made", ["tuned", "several"])
def test_an_exported_file_answers_as_the_network_on_64_images(
    kind: str, made: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    parity = export(request.getfixturevalue(made), tmp_path / f"out{kind}", kind)
    assert (parity.images, parity.same_top1) == (64, 64)
    assert parity.largest_difference < 0.01


def test_the_onnx_file_takes_any_batch_and_size_and_says_what_it_is(
    tuned: Path, tmp_path: Path
) -> None:
    export(tuned, tmp_path / "m.onnx", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]
    assert session.get_outputs()[0].shape == ["batch", 3]
    images = np.random.default_rng(0).integers(0, 256, (5, 41, 17, 3), dtype=np.uint8)
    (found,) = session.run(["probabilities"], {"images": images})
    assert found.shape == (5, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    deployed, _ = load_deployed(tuned)
    with torch.inference_mode():
        np.testing.assert_allclose(found, deployed(torch.from_numpy(images)), atol=2e-3)
    properties = {p.key: json.loads(p.value) for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert properties["classes"] == CLASSES
    assert (properties["resized_to"], properties["abstain_below"]) == (24, 0.6)


def test_a_program_that_answers_otherwise_is_not_written(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exporting._run_torch

    def turned(path: Path) -> Any:
        answer = whole(path)
        return lambda images: answer(images)[:, ::-1]

    monkeypatch.setitem(exporting._WAYS, "torch", (exporting._write_torch, turned))
    with pytest.raises(BigTransferError, match=r"of 64 images have the same top-1.*nothing was"):
        export(tuned, tmp_path / "m.pt2", "torch")
    assert not list(tmp_path.glob("*m.pt2*"))
