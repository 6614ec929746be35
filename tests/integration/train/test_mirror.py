"""A machine that vanishes loses what it was at, and nothing that was finished."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import InfrastructureError, StorageError
from bigtransfer.storage.places import target_at
from bigtransfer.storage.s3 import S3Path
from bigtransfer.train import cell_trainer
from bigtransfer.train.mirror import GridMirror
from fixtures.processes.vanishing import MIRROR, RECIPE
from fixtures.project import TESTS, environment
from fixtures.training import tune

pytestmark = pytest.mark.xdist_group("mirror")
CELLS = [f"upstream-2-{seed}" for seed in RECIPE["seeds"]]


def there() -> list[str]:
    """Names of the objects of the mirror, below the run."""
    return [name.split("/", 2)[2] for name in target_at(S3Path.parse(MIRROR)).names()]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that this process trains."""
    names: list[str] = []
    whole = cell_trainer.train_cell

    def noted(cell: Any, *rest: Any, **named: Any) -> Any:
        names.append(cell.name)
        return whole(cell, *rest, **named)

    monkeypatch.setattr(cell_trainer, "train_cell", noted)
    return names


def test_a_killed_run_goes_on_from_an_empty_disk(
    pretrained: Path, packed: Path, tmp_path: Path, s3: Any, trained: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tune(pretrained, packed, tmp_path / "whole" / "out", **{**RECIPE, "checkpoint_mirror": None})
    lost = tmp_path / "lost" / "out"
    line = [sys.executable, "-m", "fixtures.processes.vanishing", pretrained, packed, lost, "1"]
    died = subprocess.run(
        line, env=environment(PYTHONPATH=TESTS), capture_output=True, text=True, check=False
    )
    assert died.returncode == -9, died.stderr
    shutil.rmtree(tmp_path / "lost")
    key = target_at(S3Path.parse(MIRROR)).names()[0].rsplit("/", 2)[0]
    for half in ("upstream-2-3/weights.safetensors", "upstream-2-2.state/step-00000007/meta.json"):
        s3.put_object(Bucket="photos", Key=f"mirror/{key}/{half}", Body=b"half an upload")
    s3.put_object(Bucket="photos", Key="mirror/photos/another/upstream-2-3/meta.json", Body=b"own")

    trained.clear()
    capsys.readouterr()
    tune(pretrained, packed, lost, **RECIPE)
    said = capsys.readouterr().out
    assert trained == CELLS[2:]
    assert "2 finished networks came from s3://photos/mirror/photos/" in said
    assert "upstream-2-2: resuming at step 5 of 8" in said
    assert "passing over" not in said
    for name in CELLS:
        whole, again = (tmp_path / side / "out" / name for side in ("whole", "lost"))
        for file in ("weights.safetensors", "meta.json", "trained_on.npy", "MANIFEST.json"):
            assert (whole / file).read_bytes() == (again / file).read_bytes(), (name, file)
    assert target_at(S3Path.parse(MIRROR)).names() == ["photos/another/upstream-2-3/meta.json"]


def stopped_after(number: int, *arguments: Any, **changes: Any) -> None:
    """Fine-tune; it fails once so many networks are finished."""

    def on_cell(cell: Any, figures: Any) -> None:
        if cell.seed == number - 1:
            raise InfrastructureError("the node is gone")

    with pytest.raises(InfrastructureError, match="the node is gone"):
        tune(*arguments, on_cell=on_cell, **{**RECIPE, **changes})


def test_what_failed_is_sent_whole_and_damage_is_trained_again(
    pretrained: Path, packed: Path, tmp_path: Path, s3: Any, trained: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stopped_after(3, pretrained, packed, tmp_path / "first" / "out")
    sealed = [name for name in there() if name.endswith("MANIFEST.json")]
    assert sealed == [f"{name}/MANIFEST.json" for name in CELLS[:3]]
    key = target_at(S3Path.parse(MIRROR)).names()[0].rsplit("/", 2)[0]
    damaged = f"mirror/{key}/upstream-2-1/weights.safetensors"
    s3.put_object(Bucket="photos", Key=damaged, Body=b"other bytes")
    trained.clear()
    capsys.readouterr()
    stopped_after(2, pretrained, packed, tmp_path / "second" / "out")
    said = capsys.readouterr().out
    assert trained == ["upstream-2-1"]
    assert "passing over a network of the mirror, it is trained again: s3://photos/mirror/" in said
    assert "weights.safetensors' has 11 bytes" in said
    trained.clear()
    tune(pretrained, packed, tmp_path / "third" / "out", **RECIPE)
    assert trained == ["upstream-2-3"]
    assert there() == []


def test_what_is_on_this_disk_alone_is_sent_at_the_next_start(
    pretrained: Path, packed: Path, tmp_path: Path, s3: Any, trained: list[str]
) -> None:
    out = tmp_path / "first" / "out"
    stopped_after(1, pretrained, packed, out, checkpoint_mirror=None)
    stopped_after(2, pretrained, packed, out)
    trained.clear()
    tune(pretrained, packed, tmp_path / "second" / "out", **RECIPE)
    assert trained == CELLS[2:]


def test_what_a_launcher_may_still_lose_stays(
    pretrained: Path, packed: Path, tmp_path: Path, s3: Any, trained: list[str]
) -> None:
    tune(pretrained, packed, tmp_path / "1" / "out", keep_mirror=True, **RECIPE)
    kept = {name.partition("/")[0] for name in there()}
    assert kept == set(CELLS) == set(trained)
    trained.clear()
    shutil.rmtree(tmp_path / "1")  # with the pod
    tune(pretrained, packed, tmp_path / "2" / "out", **RECIPE)
    assert trained == [] and there() == []
    assert {path.name for path in (tmp_path / "2" / "out").iterdir()} >= set(CELLS)


@pytest.mark.long
def test_workers_share_the_mirror(pretrained: Path, packed: Path, tmp_path: Path, s3: Any) -> None:
    stopped_after(4, pretrained, packed, tmp_path / "first" / "out", workers=2)
    whole = {name.split("/")[0] for name in there() if name.endswith("/MANIFEST.json")}
    # The other worker may have been amid its network, and left the state of that.
    finished = {name for name in whole if not name.endswith(".state")}
    assert {"upstream-2-3"} <= finished <= set(CELLS)
    tune(pretrained, packed, tmp_path / "second" / "out", **RECIPE)
    assert there() == []


@pytest.mark.parametrize("mirror", ["s3://no-such-bucket/mirror", MIRROR])
def test_a_bucket_that_refuses_is_a_warning(
    pretrained: Path, packed: Path, tmp_path: Path, s3: Any, mirror: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if mirror == MIRROR:

        def refuse(*_: Any) -> None:
            raise StorageError("no right to write")

        monkeypatch.setattr("bigtransfer.storage.places.upload", refuse)
    recipe = {**RECIPE, "checkpoint_mirror": mirror, "seeds": (0, 1)}
    listed = tune(pretrained, packed, tmp_path / "out", **recipe)
    assert len(listed.cells) == 2
    said = capsys.readouterr().out
    assert "upstream-2-0 is kept here alone, the bucket did not take it: " in said
    assert ("there is no such bucket" in said) == (mirror != MIRROR)


def test_what_cannot_be_read_for_now_stays_in_the_bucket(
    pretrained: Path, packed: Path, tmp_path: Path, s3: Any, trained: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    stopped_after(1, pretrained, packed, tmp_path / "first" / "out")
    before = there()
    (run,) = {name.rsplit("/", 2)[0] for name in target_at(S3Path.parse(MIRROR)).names()}
    state = f"{run}/upstream-2-1.state/step-00000005"
    for name in ("meta.json", "MANIFEST.json"):
        s3.put_object(Bucket="photos", Key=f"mirror/{state}/{name}", Body=b"{}")
    trained.clear()
    with monkeypatch.context() as patch:

        def refuse(*_: Any) -> None:
            raise InfrastructureError("no answer")

        patch.setattr("bigtransfer.storage.places.download", refuse)
        stopped_after(1, pretrained, packed, tmp_path / "second" / "out")
    said = capsys.readouterr().out
    assert "upstream-2-0 is trained again, the bucket did not give it: no answer" in said
    assert set(before) < set(there())
    trained.clear()
    tune(pretrained, packed, tmp_path / "third" / "out", **RECIPE)
    assert trained == CELLS[1:]
    assert "passing over a checkpoint: " in capsys.readouterr().out, "a damaged state is no end"


def test_nothing_outside_of_the_run_is_removed(tmp_path: Path, s3: Any) -> None:
    for key in (
        "mirror/photos/ab",
        "mirror/photos/abc/x/meta.json",
        "mirror/photos/ab/x/meta.json",
    ):
        s3.put_object(Bucket="photos", Key=key, Body=b"")
    GridMirror(S3Path.parse("s3://photos/mirror/photos/ab"), print).clear()
    left = [o["Key"] for o in s3.list_objects_v2(Bucket="photos")["Contents"]]
    assert left == ["mirror/photos/ab", "mirror/photos/abc/x/meta.json"]


STOPPED_AT_ONCE = """
import os, signal, sys, time
from pathlib import Path
from bigtransfer.storage.places import target_at
from bigtransfer.storage.s3 import S3Path
from fixtures.training import Trained
mirror = target_at(S3Path.parse("s3://photos/mirror"))
def log(step, values):
    if step == 6 and "loss" in values:
        while not any(n.endswith("step-00000004/MANIFEST.json") for n in mirror.names()):
            time.sleep(0.05)
        before = mirror.names()
        print(*before, sep="\\n", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
run = Trained(Path(sys.argv[1]), Path(sys.argv[2]))
run.train(log, stop_seconds=0, checkpoint_steps=4, checkpoint_mirror="s3://photos/mirror")
"""


def test_without_time_to_stop_nothing_is_written_after_sigterm(
    packed: Path, tmp_path: Path, s3: Any
) -> None:
    line = [sys.executable, "-c", STOPPED_AT_ONCE, str(tmp_path / "run"), str(packed)]
    done = subprocess.run(
        line, env=environment(PYTHONPATH=TESTS), capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert done.stderr.startswith(
        "stopped by SIGTERM, at once (stop_seconds: 0); the last checkpoint counts, run the same "
        "again to go on"
    )
    steps = [path.name for path in (tmp_path / "run" / "work").glob("*/*step-*")]
    assert steps == ["step-00000004"], "two steps are lost, less than the four between two"
    before = [line for line in done.stdout.splitlines() if line.count("/") == 2]
    assert target_at(S3Path.parse(MIRROR)).names() == before != []


CELL_STOPPED_AT_ONCE = """
import os, signal, sys, time
from pathlib import Path
from bigtransfer.train import cell as cells
from fixtures.training import tune
whole = cells._CellCallback.after_step
def after_step(self, step, *rest):
    if step == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    whole(self, step, *rest)
cells._CellCallback.after_step = after_step
tune(*map(Path, sys.argv[1:4]), total_steps=8, stop_seconds=0)
"""


def test_a_network_without_time_to_stop_is_not_kept_either(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lost" / "out"
    done = subprocess.run(
        [sys.executable, "-c", CELL_STOPPED_AT_ONCE, pretrained, packed, out],
        env=environment(PYTHONPATH=TESTS), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "stopped by SIGTERM, at once (stop_seconds: 0)" in done.stderr
    assert not list((tmp_path / "lost").rglob("*step-*"))
