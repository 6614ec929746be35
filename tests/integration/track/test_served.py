"""What a server that MLflow starts answers over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer.serve.deployed import Served, facts_of, load_deployed
from bigtransfer.track.model_folder import write_model
from fixtures.models import CLASSES, write_tuned
from fixtures.project import environment
from fixtures.servers import reserved_port, wait_for_port

pytestmark = pytest.mark.xdist_group("served")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 20, 31, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned(tmp_path_factory.mktemp("served") / "tuned")


@pytest.fixture(scope="module")
def address(checkpoint: Path) -> Iterator[str]:
    deployed, meta = load_deployed(checkpoint)
    folder = checkpoint.parent / "model"
    facts = facts_of(meta, "float32")
    write_model(folder, Served(deployed), crop=24, num_classes=len(CLASSES), facts=facts)
    with reserved_port() as port:
        place = ["-m", str(folder), "-h", "127.0.0.1", "-p", str(port), "--env-manager", "local"]
        command = ["mlflow", "models", "serve", *place]
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            wait_for_port(port, process)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(address: str, body: Any) -> Any:
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_whole_numbers_are_answered_as_by_the_network(
    key: str, address: str, checkpoint: Path
) -> None:
    deployed, _ = load_deployed(checkpoint)
    with torch.inference_mode():
        wanted = deployed(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(ask(address, {key: IMAGES.tolist()}), wanted, atol=1e-5)
    as_floats = IMAGES.astype(float).tolist()
    np.testing.assert_allclose(ask(address, {key: as_floats}), wanted, atol=1e-5)


@pytest.mark.parametrize("key", ["instances", "inputs"])
@pytest.mark.parametrize(
    "images",
    [IMAGES / 255, IMAGES - 127.5, IMAGES.astype(int) + 1, IMAGES.astype(int) - 1],
    ids=["0 to 1", "centred", "up to 256", "from -1"],
)
def test_other_numbers_are_refused_with_a_reason(key: str, images: Any, address: str) -> None:
    assert images.max() > 255 or images.min() < 0 or (images % 1).any()
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, {key: images.tolist()})
    assert refused.value.code in (400, 500)
    assert b"whole numbers from 0 to 255" in refused.value.read()
