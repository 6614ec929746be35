"""What a server answers over HTTP: MLflow's own, and ours that follows an alias."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigtransfer.api.served.folder import write_served
from bigtransfer.serve.deployed import load_deployed
from bigtransfer.serve.prediction import answers
from bigtransfer.track.promotion import promote, rollback
from bigtransfer.track.withdrawal import withdraw
from fixtures.models import CLASSES, write_tuned
from fixtures.project import environment
from fixtures.registered import NAME, GateRules, propose
from fixtures.servers import reserved_port, wait_for_port

pytestmark = pytest.mark.xdist_group("served")


def picture(seed: int = 0, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (31, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuned(tmp_path_factory.mktemp("served") / "tuned")


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    path = checkpoint.parent / "model"
    write_served(path, checkpoint, card="# a card\n")
    return path


@contextmanager
def running(command: list[str], port: int, where: Path, **more: str) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=where,
        env=environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false", **more),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with reserved_port() as port:
        place = ["-m", str(folder), "-h", "127.0.0.1", "-p", str(port), "--env-manager", "local"]
        with running(["mlflow", "models", "serve", *place], port, folder.parent) as found:
            yield found


def ask(address: str, body: Any) -> tuple[Any, str]:
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"], answer.headers.get("x-bigtransfer-model", "")


@pytest.mark.parametrize("layout", ["instances", "dataframe_split", "dataframe_records"])
def test_a_picture_in_base64_is_answered_as_by_predict(
    layout: str, address: str, checkpoint: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for file, kind in zip(files, ("JPEG", "PNG"), strict=True):
        file.write_bytes(picture(1, kind))
    deployed, _ = load_deployed(checkpoint)
    wanted = [one.probabilities for one in answers(deployed, files, 2, torch.device("cpu"))]
    rows = [{"image": text(file.read_bytes())} for file in files]
    split = {"columns": ["image"], "data": [[row["image"]] for row in rows]}
    body = {layout: split if layout == "dataframe_split" else rows, "params": {"top": 2}}
    found, _ = ask(address, body)
    for one, own in zip(found, wanted, strict=True):
        assert own is not None
        assert one["label"] == CLASSES[int(own.argmax())]
        assert abs(one["probability"] - own.max()) < 1e-5
        assert isinstance(one["sure"], bool)
        assert [guess["label"] for guess in one["top_k"]] == [
            CLASSES[c] for c in np.argsort(-own)[:2]
        ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("no base64!", "row 1 is not base64"),
        ("", "row 1 holds no picture"),
        (text(b"GIF89a and no more"), "row 1 "),
        (text(picture()[:200]), "row 1 "),
    ],
    ids=["no base64", "empty", "no picture", "cut off"],
)
def test_what_cannot_be_read_is_400_in_one_line_and_names_the_others(
    bad: str, reason: str, address: str
) -> None:
    good = {"image": text(picture())}
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(address, {"instances": [good, {"image": bad}, good]})
    assert refused.value.code == 400
    said = json.load(refused.value)["message"]
    assert said.startswith(reason)
    assert "2 of 3 rows can be read (0, 2)" in said
    assert "\n" not in said


def test_line_ends_and_a_data_address_are_read(address: str) -> None:
    own = base64.encodebytes(picture()).decode()
    rows = [{"image": own}, {"image": f"data:image/jpeg;base64,{own}"}]
    found, _ = ask(address, {"instances": rows})
    assert found[0] == found[1]


def test_a_server_follows_its_alias(tracked: Path, folder: Path) -> None:
    propose(tracked, folder, "d1", 0.7)
    propose(tracked, folder, "d2", 0.8)
    picture_of = {"instances": [{"image": text(picture())}]}

    def until(version: str) -> None:
        end = time.monotonic() + 60
        while (seen := ask(where, picture_of)[1]) != f"{NAME}/{version}":
            assert time.monotonic() < end, seen
            time.sleep(0.2)

    with (
        reserved_port() as port,
        running(
            ["bigtransfer.command", "serve", f"models:/{NAME}@champion", "--port", str(port)],
            port, tracked, MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"],
        ) as where,
    ):  # fmt: skip
        assert ask(where, picture_of)[1] == f"{NAME}/1"
        promote(tracked, NAME, "2", GateRules(), by="x", because="")
        until("2")
        rollback(tracked, NAME, by="x", because="")
        until("1")
        withdraw(tracked, NAME, "1", by="x", because="a person's pictures")
        until("2")
        withdraw(tracked, NAME, "2", by="x", because="the same pictures")
        end = time.monotonic() + 60
        with pytest.raises(urllib.error.HTTPError) as refused:
            while time.monotonic() < end:
                ask(where, picture_of)
                time.sleep(0.2)
        assert refused.value.code == 503
        assert "the same pictures" in json.load(refused.value)["message"]
