"""The image `serve`: a registered model behind the V2 protocol, as KServe runs it."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bigtransfer.api.served.folder import write_served
from bigtransfer.kubeflow.image_tag import source_tag
from fixtures.models import CLASSES, write_tuned
from fixtures.project import PROJECT
from fixtures.servers import reserved_port

BUILT = bool(os.environ.get("BIGTRANSFER_IMAGES"))
IMAGE = f"bigtransfer-serve:{source_tag(PROJECT)}"
pytestmark = pytest.mark.skipif(
    not BUILT, reason="needs the container images; `.ci/containers` builds and tests them"
)
SECONDS = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The container with a read-only root, as its manifest runs it; give the model's address."""
    place = tmp_path_factory.mktemp("serving")
    write_served(place / "model", write_tuned(place / "tuned"), card="# a card\n")
    for path in (place / "model").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in (place / "model", place, *place.parents[:2]):
        parent.chmod(0o755)  # the image's user is not ours
    with reserved_port() as http, reserved_port() as grpc, reserved_port() as metrics:
        ports = {"HTTP": http, "GRPC": grpc, "METRICS": metrics}
        words = [word for name, port in ports.items()
                 for word in ("--env", f"MLSERVER_{name}_PORT={port}")]  # fmt: skip
        name = f"serving-{http}"
        subprocess.run(
            ["docker", "run", "--detach", "--name", name, "--network", "host", "--read-only",
             "--tmpfs", "/tmp", "--cap-drop", "ALL", "--volume", f"{place}/model:/mnt/models:ro",
             "--env", "MLSERVER_MODEL_NAME=digits", *words, IMAGE],
            check=True, capture_output=True,
        )  # fmt: skip
        try:
            own = f"http://127.0.0.1:{http}/v2"
            wait(f"{own}/health/ready", name)
            yield f"{own}/models/digits"
        finally:
            subprocess.run(["docker", "rm", "--force", name], check=False, capture_output=True)


def wait(address: str, name: str) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    said = subprocess.run(["docker", "logs", name], capture_output=True, text=True, check=False)
    raise AssertionError(said.stdout[-3000:] + said.stderr[-3000:])


def ask(address: str, pictures: list[str], **body: Any) -> dict[str, Any]:
    one = {"name": "image", "datatype": "BYTES", "shape": [len(pictures)], "data": pictures}
    request = urllib.request.Request(
        f"{address}/infer", json.dumps({"inputs": [one], **body}).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def picture() -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_are_answered_with_the_outputs_of_the_signature(address: str) -> None:
    with urllib.request.urlopen(address, timeout=30) as answer:
        said = json.load(answer)
    assert [one["name"] for one in said["inputs"]] == ["image"]
    found = ask(address, [picture(), picture()], parameters={"top": 2})
    outputs = {one["name"]: one["data"] for one in found["outputs"]}
    assert list(outputs) == [one["name"] for one in said["outputs"]]
    assert list(outputs) == ["label", "probability", "sure", "top_k"]
    assert outputs["label"][0] in CLASSES
    assert outputs["label"][0] == outputs["label"][1]
    guesses = json.loads(outputs["top_k"][0])
    assert [guess["label"] for guess in guesses][0] == outputs["label"][0]
    assert (len(guesses), guesses[0]["probability"]) == (2, outputs["probability"][0])


def test_a_picture_that_cannot_be_read_is_http_400_and_one_line(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, [picture(), "no base64 at all"])
    assert refused.value.code == 400
    said = json.load(refused.value)["error"]
    assert said.startswith("row 1 is not base64")
    assert "\n" not in said
