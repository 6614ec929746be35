"""No damage goes unnoticed, and no good checkpoint is lost."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer.errors import CheckpointError, StorageError
from bigtransfer.model import create_model
from bigtransfer.storage import seal
from bigtransfer.storage.places import Folder
from bigtransfer.train.checkpoints import Checkpoints, read_state
from bigtransfer.train.optimizer import make_optimizer
from bigtransfer.train.saver import Saver
from bigtransfer.train.state import live_state
from fixtures.checkpoints import Kept, fits, state


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "run")


def newest_file(kept: Kept, name: str) -> Path:
    return kept.folder / "step-00000030" / name


def test_empty_folder_is_a_fresh_start(kept: Kept) -> None:
    assert kept.newest() is None
    assert kept.said == []


def test_newest_two_and_best_are_kept(kept: Kept) -> None:
    kept.write(10, score=0.5)
    kept.write(20, score=0.9)
    kept.write(30, score=0.7)
    kept.write(40, 50)
    assert kept.names() == ["step-00000020", "step-00000040", "step-00000050"]
    kept.write(60, score=0.95)
    assert kept.names() == ["step-00000050", "step-00000060"]


def test_partial_checkpoints_of_the_dead_are_removed(kept: Kept) -> None:
    (kept.folder / ".step-00000010.partial-77-1").mkdir()
    assert kept.newest() is None
    assert kept.names() == []


def damage_truncated(kept: Kept, at: int) -> None:
    path = newest_file(kept, "weights.safetensors")
    path.write_bytes(path.read_bytes()[:at])


def test_cut_at_every_64_kib_is_named_and_the_one_before_is_used(kept: Kept) -> None:
    kept.write(20, 30)
    whole = newest_file(kept, "weights.safetensors").read_bytes()
    assert len(whole) > 30 * 65536
    for at in range(0, len(whole), 65536):
        damage_truncated(kept, at)
        assert kept.newest() == 20
        assert "step-00000030/weights.safetensors" in kept.said[-1]
        assert f"{at:,} bytes" in kept.said[-1]
        newest_file(kept, "weights.safetensors").write_bytes(whole)
    assert kept.newest() == 30


def test_flipped_bits_are_found_wherever_they_are(kept: Kept) -> None:
    kept.write(20, 30)
    rng = np.random.default_rng(0)
    for _ in range(40):
        name = str(rng.choice(["weights.safetensors", "momentum.safetensors", "meta.json",
                               "metrics.jsonl", "MANIFEST.json"]))  # fmt: skip
        path = newest_file(kept, name)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        assert kept.newest() == 20, name
        assert "step-00000030" in kept.said[-1]
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "momentum.safetensors", "meta.json", "metrics.jsonl"]
)
def test_missing_file_is_named(kept: Kept, name: str) -> None:
    kept.write(20, 30)
    newest_file(kept, name).unlink()
    assert kept.newest() == 20
    assert f"step-00000030/{name}' is missing" in kept.said[-1]


def rewrite(kept: Kept, change: Any) -> None:
    """Change a checkpoint and seal it again, so that only its contents are wrong."""
    folder = kept.folder / "step-00000030"
    change(folder)
    (folder / "MANIFEST.json").unlink()
    seal(folder)


def set_meta(**values: Any) -> Any:
    def change(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, **values}))

    return change


def replace_weights(tensors: dict[str, torch.Tensor]) -> Any:
    from safetensors.torch import save_file

    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return lambda folder: save_file(plain, folder / "weights.safetensors")


def with_nan() -> dict[str, torch.Tensor]:
    tensors = state()["weights"]
    tensors["head.bias"][1] = float("nan")
    return tensors


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (set_meta(schema=99), "a newer version (schema 99"),
        (set_meta(step=31), "holds step 31, not what its name says"),
        (replace_weights(dict(create_model("R14x0.5", 3, "small").state_dict())), "architecture"),
        (replace_weights(dict(create_model("R14x0.25", 4, "small").state_dict())), "class count"),
        (replace_weights(dict(create_model("R26x0.25", 3, "small").state_dict())), "another netw"),
        (replace_weights(with_nan()), "'head.bias' holds NaN or Inf"),
        (lambda folder: (folder / "meta.json").write_text("[]"), "no usable meta.json"),
        (lambda folder: (folder / "weights.safetensors").write_text("<html>"), "cannot be read"),
    ],
)
def test_wrong_contents_are_named_and_passed_over(kept: Kept, change: Any, why: str) -> None:
    kept.write(20, 30)
    rewrite(kept, change)
    assert kept.newest() == 20
    assert why in kept.said[-1]


def test_nothing_good_is_removed_before_two_new_ones_are_there(kept: Kept) -> None:
    kept.write(10, 20, 30)
    newest_file(kept, "meta.json").unlink()
    assert kept.newest() == 20
    kept.write(40)
    assert {"step-00000020", "step-00000040"} <= set(kept.names())
    kept.write(50)
    assert kept.names() == ["step-00000040", "step-00000050"]


def test_where_all_are_damaged_nothing_begins_anew_by_itself(kept: Kept) -> None:
    kept.write(20, 30)
    for path in kept.folder.glob("step-*/meta.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints under .* can be used"):
        kept.newest()
    assert kept.names() == ["step-00000020", "step-00000030"]


def test_weights_that_are_no_numbers_are_not_kept(kept: Kept) -> None:
    kept.write(20)
    bad = state()
    bad["momentum"]["head.bias"][0] = float("inf")
    with pytest.raises(CheckpointError, match=r"after step 30 the momentum of 'head.bias' hold"):
        kept.checkpoints.write(30, bad, {}, kept.journal, None)
    assert kept.names() == ["step-00000020"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "run")
    (kept.folder / "step-00000010").write_text("a file in the way")
    path = tmp_path / "file"
    path.write_text("")
    blocked = Checkpoints(path / "below", None, print)
    with pytest.raises(StorageError, match="cannot write .*Not a directory"):
        blocked.write(10, state(), {}, kept.journal, None)


def test_what_is_good_is_not_written_again(kept: Kept) -> None:
    kept.write(10)
    before = (kept.folder / "step-00000010" / "MANIFEST.json").stat().st_mtime_ns
    kept.write(10)
    assert kept.newest() == 10
    kept.write(10)
    assert (kept.folder / "step-00000010" / "MANIFEST.json").stat().st_mtime_ns == before


def test_saver_copies_before_the_weights_change(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "run")
    model = create_model("R14x0.25", 3, "small")
    optimizer = make_optimizer(model, momentum=0.9, weight_decay=0.0)
    saver = Saver(kept.checkpoints)
    for step in (10, 20):
        with torch.no_grad():
            model.head.bias.fill_(float(step))
        saver.begin(step, live_state(model, optimizer), {}, kept.journal, None)
        saver.before_update()
        with torch.no_grad():
            model.head.bias.fill_(-1.0)
    saver.finish()
    assert saver.saved == [10, 20]
    for step in (10, 20):
        found = read_state(kept.folder / f"step-{step:08d}")
        assert found["weights"]["head.bias"].tolist() == [float(step)] * 3


def test_saver_hands_its_fault_to_the_loop(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "run")
    saver = Saver(kept.checkpoints)
    bad = state(float("nan"))
    saver.begin(10, bad, {}, kept.journal, None)
    saver.wait_quietly()
    with pytest.raises(CheckpointError, match="after step 10"):
        saver.check()
    saver.check()
    assert not saver.saved


def test_nobody_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path / "run")
    free = threading.Event()
    write = kept.checkpoints.write
    monkeypatch.setattr(kept.checkpoints, "write", lambda *a: (free.wait(20), write(*a)))
    saver = Saver(kept.checkpoints)
    saver.begin(10, state(), {}, kept.journal, None)
    saver.before_update()  # returns although the disk is not done
    assert not saver.is_due(0)
    free.set()
    saver.finish()
    assert saver.is_due(0)
    assert not saver.is_due(1000)


class Contested(Folder):
    """A mirror in which another attempt removes what it takes for half an upload, once."""

    rounds = 1

    def put(self, name: str, file: Path) -> None:
        self.put_bytes(name, file.read_bytes())  # as a bucket does, it takes a copy
        if name.endswith("momentum.safetensors") and self.rounds:
            self.rounds -= 1
            for other in self.names():
                if other != name:
                    self.remove(other)


def test_what_another_attempt_removes_while_it_is_sent_is_sent_again(kept: Kept) -> None:
    mirror = Contested(kept.folder.parent / "bucket")
    sender = Checkpoints(kept.folder, mirror, kept.said.append)
    sender.write(3, state(3.0), {}, kept.journal, None)
    sender.wait_for_mirror()
    assert mirror.rounds == 0
    sent = {name.partition("/")[2] for name in mirror.names()}
    assert sent == {path.name for path in (kept.folder / "step-00000003").iterdir()}
    other = Checkpoints(kept.folder.parent / "elsewhere", mirror, kept.said.append)
    found = other.newest(fits)
    assert found is not None and found[1]["weights"]["head.bias"].tolist() == [3.0] * 3
