from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer.data.packing import write_shards
from bigtransfer.data.shard_plan import Packing
from bigtransfer.data.shards import digest_bits, open_shards
from bigtransfer.errors import ConfigError, DatasetError, InfrastructureError
from bigtransfer.model import load_checkpoint
from bigtransfer.model.checkpoint import read_curve, read_trained_on
from bigtransfer.storage import as_json, read_json, seal
from bigtransfer.train import cell as cells
from bigtransfer.train import cell_trainer
from bigtransfer.train import finetune as finetuning
from bigtransfer.train.fitting import images_that_fit
from bigtransfer.train.grid import Grid
from fixtures.datasets import pack, planted, validated
from fixtures.training import meta_of, tune, weights_of


def test_crop_can_be_switched_off_for_a_task(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:  # fmt: skip
    tune(pretrained, packed, tmp_path / "with")
    tune(pretrained, packed, tmp_path / "without", random_crop=False)
    assert meta_of(tmp_path / "with")["hyperrule"]["precrop"] == 12
    rule = meta_of(tmp_path / "without")["hyperrule"]
    assert rule["precrop"] == rule["crop"] == 10


def test_the_log_says_whose_each_value_is(
    pretrained: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    tune(pretrained, packed, tmp_path / "out", decay_steps=(1,))
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("photos, 2 per class, 6 images, HyperRule 'paper': regime small, ")
    assert "total_steps 2 (params; the rule says 500)" in line
    assert "decay_steps 1 (params; the rule says 150/300/450)" in line
    assert "mixup_alpha none" in line and "weight_decay" not in line


def test_weight_decay_is_the_rules_own_unless_it_is_given(
    pretrained: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(pretrained, packed, tmp_path / "out")
    plain = weights_of(tmp_path / "out")
    assert "weight_decay" not in meta_of(tmp_path / "out")["hyperrule"]
    found = tune(pretrained, packed, tmp_path / "out", weight_decay=0.5)
    assert found.recipe["weight_decay"] == 0.5
    assert "weight_decay 0.5 (params; the rule says 0)" in capsys.readouterr().out
    assert meta_of(tmp_path / "out")["hyperrule"]["weight_decay"] == 0.5
    decayed = weights_of(tmp_path / "out")
    smaller = [k for k in plain if plain[k].dim() == 4 and decayed[k].norm() < plain[k].norm()]
    assert len(smaller) == sum(plain[k].dim() == 4 for k in plain), "every kernel"


def test_too_few_images_name_the_class(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:  # fmt: skip
    with pytest.raises(DatasetError, match=r"class 'class_0' has 6 train images, but 'examples_"):
        tune(pretrained, packed, tmp_path / "out", examples_per_class=(7,))


def test_full_is_every_training_image(
    pretrained: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    tune(pretrained, packed, tmp_path / "out", examples_per_class=(2, "full"))
    assert "full per class, 18 images" in capsys.readouterr().out
    assert meta_of(tmp_path / "out", "upstream-full-0")["examples_per_class"] == "full"


def test_training_on_train_and_val_leaves_nothing_to_calibrate_on(
    pretrained: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    both = {"train_on": ("train", "val"), "examples_per_class": ("full",)}
    tune(pretrained, packed, tmp_path / "out", **both)
    shards = open_shards(packed)
    images = len(shards.rows("train")) + len(shards.rows("val"))
    assert f"full per class, {images} images" in capsys.readouterr().out
    validation = meta_of(tmp_path / "out", "upstream-full-0")["calibration"]
    assert validation["held_out"] is False
    assert (validation["temperature"], validation["abstain_below"]) == (1.0, None)


def test_the_head_alone_may_be_trained(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:  # fmt: skip
    upstream = load_checkpoint(pretrained)[0].state_dict()
    tune(pretrained, packed, tmp_path / "head", trained="head")
    tune(pretrained, packed, tmp_path / "all")
    for name, tensor in weights_of(tmp_path / "head").items():
        if name.startswith("head"):
            assert tensor.abs().sum() > 0
        else:
            assert torch.equal(tensor, upstream[name]), name
    trained = weights_of(tmp_path / "all")
    assert not all(torch.equal(trained[name], upstream[name]) for name in upstream)


def test_validation_goes_with_the_checkpoint(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:  # fmt: skip
    logged: list[dict[str, float]] = []
    tune(pretrained, packed, tmp_path / "out", log=lambda step, values: logged.append(values))
    validation = meta_of(tmp_path / "out")["calibration"]
    assert 0 <= validation["top1"] <= validation["top5"] == 1.0  # three classes
    assert validation["temperature"] > 0
    assert logged[-1]["upstream-2-0/val_top1"] == validation["top1"]


def test_an_interrupted_cell_goes_on_to_the_same_weights(
    pretrained: Path, packed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = {"total_steps": 8, "mixup_alpha": 0.5, "seeds": (0, 1)}
    tune(pretrained, packed, tmp_path / "whole", **recipe)
    whole = cells._CellCallback.after_step

    def stopped(self: Any, step: int, *rest: Any) -> None:
        if self._cell.seed == 1 and step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cells._CellCallback, "after_step", stopped)
        with pytest.raises(InfrastructureError, match="SIGTERM at step 5, with a checkpoint"):
            tune(pretrained, packed, tmp_path / "parts", **recipe)
    capsys.readouterr()
    tune(pretrained, packed, tmp_path / "parts", **recipe)
    assert "upstream-2-1: resuming at step 5 of 8" in capsys.readouterr().out
    for name in ("upstream-2-0", "upstream-2-1"):
        left, right = (weights_of(tmp_path / side, name) for side in ("whole", "parts"))
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert not list((tmp_path / "work").iterdir())


@pytest.fixture
def two_labels(tmp_path: Path) -> Path:
    photos = planted(tmp_path / "planted")
    validated(photos)
    write_shards(
        photos, tmp_path / "manifest.parquet", tmp_path / "shards", Packing(10**6, None, 0)
    )
    return tmp_path / "shards"


def test_several_labels_per_image_are_learnt(
    pretrained: Path, two_labels: Path, tmp_path: Path
) -> None:
    tune(pretrained, two_labels, tmp_path / "out", examples_per_class=("full",), flip=False,
        total_steps=40, base_lr=0.05, batch_size=16)  # fmt: skip
    meta = meta_of(tmp_path / "out", "upstream-full-0")
    assert meta["classes"] == ["left", "right"]
    assert meta["calibration"]["map"] > 0.95
    assert meta["calibration"]["micro_f1"] > 0.9
    assert len(meta["calibration"]["thresholds"]) == 2


def test_few_shot_of_several_labels_is_refused(
    pretrained: Path, two_labels: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"set 'examples_per_class' of task 'photos' to \[full\]"):
        tune(pretrained, two_labels, tmp_path / "out")


def test_two_workers_make_what_one_makes(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:  # fmt: skip
    grid = {"inits": ("upstream", "scratch"), "seeds": (0, 1), "total_steps": 4}
    told: list[str] = []
    tune(pretrained, packed, tmp_path / "one", **grid)
    listed = tune(pretrained, packed, tmp_path / "two", workers=2, **grid,
                 on_cell=lambda cell, figures: told.append(cell.name))  # fmt: skip
    names = [cell.folder for cell in listed.cells]
    assert sorted(told) == sorted(names)
    for name in names:
        one, two = (weights_of(tmp_path / side, name) for side in ("one", "two"))
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_a_network_knows_the_files_that_it_was_trained_on(
    pretrained: Path, photos: Path, tmp_path: Path
) -> None:
    """Also where a photo was made smaller, so that its bytes in the shards are others."""
    validated(photos)
    pack(photos, tmp_path / "shards", short_side=10)
    tune(pretrained, tmp_path / "shards", tmp_path / "out")
    shards = open_shards(tmp_path / "shards")
    known = read_trained_on(tmp_path / "out" / "upstream-2-0")
    assert known is not None
    assert len(known) == 6, "two of each class"
    paths = dict(zip(shards.origin_digests(np.arange(len(shards.index))).tolist(),
                     shards.index["path"].to_pylist(), strict=True))  # fmt: skip
    of_train = {shards.index["path"][int(row)].as_py() for row in shards.rows("train")}
    for digest in known.tolist():
        assert paths[digest] in of_train
        data = (photos / paths[digest]).read_bytes()
        assert digest == digest_bits(hashlib.sha256(data).hexdigest())


def test_the_head_alone_is_trained_in_micro_batches_too(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:
    for name, size in (("whole", None), ("pieces", 2)):
        tune(pretrained, packed, tmp_path / name, trained="head", micro_batch_size=size)
    whole, pieces = (weights_of(tmp_path / n, "upstream-2-0") for n in ("whole", "pieces"))
    start, _ = load_checkpoint(pretrained)
    for key, tensor in whole.items():
        torch.testing.assert_close(pieces[key], tensor, rtol=1e-4, atol=1e-5)
        assert key.startswith("head") or torch.equal(tensor, start.state_dict()[key])


def test_balanced_sampling_sees_rare_classes_as_often(
    pretrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3, 10):
        (photos / "class_2" / f"{i}.png").unlink()
    validated(photos)
    pack(photos, tmp_path / "shards")
    shards, seen = open_shards(tmp_path / "shards"), {}
    whole = cell_trainer.train_cell

    def noted(cell: Any, initial: Any, rows: Any, *rest: Any, **named: Any) -> Any:
        seen[key] = np.bincount(shards.labels(rows)).tolist()
        return whole(cell, initial, rows, *rest, **named)

    monkeypatch.setattr(cell_trainer, "train_cell", noted)
    for key in ("natural", "balanced"):
        tune(pretrained, tmp_path / "shards", tmp_path / "out", examples_per_class=("full",),
            sampling=key)  # fmt: skip
    assert len(set(seen["balanced"])) == 1
    assert seen["natural"][2] < seen["natural"][0] == seen["balanced"][2]


def test_a_renamed_dataset_is_the_same_data(
    pretrained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed_as(folder: Path) -> Path:
        validated(folder)
        pack(folder, tmp_path / "shards")
        return tmp_path / "shards"

    tune(pretrained, packed_as(photos), tmp_path / "out")
    monkeypatch.setattr(cell_trainer, "train_cell", None)  # nothing is trained
    renamed = photos.rename(tmp_path / "renamed")
    again = tune(pretrained, packed_as(renamed), tmp_path / "out")
    assert [cell.name for cell in again.cells] == ["upstream-2-0"]


def test_more_seeds_keep_the_networks_that_are_there(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    tune(pretrained, packed, tmp_path / "out", seeds=(0, 1))
    before = weights_of(tmp_path / "out", "upstream-2-1")
    trained: list[str] = []
    told: list[tuple[str, list[str]]] = []
    whole = cell_trainer.train_cell

    def noted(cell: Any, *rest: Any, **named: Any) -> Any:
        trained.append(cell.name)
        return whole(cell, *rest, **named)

    monkeypatch.setattr(cell_trainer, "train_cell", noted)
    tune(pretrained, packed, tmp_path / "out", seeds=(0, 1, 2),
        on_cell=lambda cell, figures: told.append((cell.name, sorted(figures))))  # fmt: skip
    assert trained == ["upstream-2-2"]
    assert [name for name, _ in told] == ["upstream-2-0", "upstream-2-1", "upstream-2-2"]
    assert all("val_top1" in figures for _, figures in told)
    after = weights_of(tmp_path / "out", "upstream-2-1")
    assert all(torch.equal(before[key], after[key]) for key in before)
    trained.clear()
    tune(pretrained, packed, tmp_path / "out", seeds=(0,), total_steps=3)
    assert trained == ["upstream-2-0"]  # another recipe: nothing of the old one is taken


def test_a_cpu_takes_as_many_images_at_once_as_fit(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    assert images_that_fit("R50x1", 2, 384, "imagenet", "gn_ws", "none") == 9
    assert images_that_fit("R50x1", 2, 384, "imagenet", "gn_ws", "units") > 20
    assert images_that_fit("R152x4", 2, 480, "imagenet", "gn_ws", "none") == 1
    assert images_that_fit("R14x0.25", 10, 32, "small", "gn_ws", "none") > 512
    machines: list[int | None] = []
    whole = cell_trainer.train_cell

    def noted(*rest: Any, compute: Any, **named: Any) -> Any:
        machines.append(compute.micro_batch_size)
        return whole(*rest, compute=compute, **named)

    monkeypatch.setattr(cell_trainer, "train_cell", noted)
    tune(pretrained, packed, tmp_path / "all")
    monkeypatch.setattr(cell_trainer, "images_that_fit", lambda *_: 3)
    tune(pretrained, packed, tmp_path / "some")
    tune(pretrained, packed, tmp_path / "own", micro_batch_size=2)
    assert machines == [None, 3, 2]


def test_a_long_run_is_foretold(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tune(pretrained, packed, tmp_path / "short")
    assert "on this CPU" not in capsys.readouterr().out
    monkeypatch.setattr("bigtransfer.train.forecast._LONG_MACS", 1.0)
    monkeypatch.setattr("bigtransfer.train.forecast._TRIAL_SECONDS", 0.1)
    tune(pretrained, packed, tmp_path / "long")
    assert "about 0 s on this CPU (8 images at " in capsys.readouterr().out


@pytest.fixture
def trained_cells(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that are trained, in order."""
    names: list[str] = []
    whole = cell_trainer.train_cell

    def noted(cell: Any, *rest: Any, **named: Any) -> Any:
        names.append(cell.name)
        return whole(cell, *rest, **named)

    monkeypatch.setattr(cell_trainer, "train_cell", noted)
    return names


def test_networks_of_other_code_are_trained_again_unless_they_are_to_be_kept(
    pretrained: Path, packed: Path, tmp_path: Path, trained_cells: list[str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    tune(pretrained, packed, out, seeds=(0, 1))
    first = read_json(out / "cells.json")["code"]
    assert list(first) == ["upstream-2-0", "upstream-2-1"] and len(set(first.values())) == 1
    monkeypatch.setattr(finetuning, "code_version", lambda recipe: "another")
    trained_cells.clear()
    capsys.readouterr()
    tune(pretrained, packed, out, seeds=(0, 1, 2), resume="any_code")
    assert trained_cells == ["upstream-2-2"]
    assert read_json(out / "cells.json")["code"] == {**first, "upstream-2-2": "another"}
    assert "other code" not in capsys.readouterr().out
    trained_cells.clear()
    tune(pretrained, packed, out, seeds=(0, 1, 2))
    assert trained_cells == ["upstream-2-0", "upstream-2-1"]
    assert "2 networks made by other code" in (said := capsys.readouterr().out)
    assert "will be trained again" in said and "resume: any_code keeps what is there" in said
    assert set(read_json(out / "cells.json")["code"].values()) == {"another"}


def test_networks_from_before_codes_were_noted_are_of_other_code(
    pretrained: Path, packed: Path, tmp_path: Path, trained_cells: list[str]
) -> None:
    out = tmp_path / "out"
    tune(pretrained, packed, out)
    listed = read_json(out / "cells.json")
    del listed["code"]
    (out / "cells.json").write_text(as_json(listed))
    (out / "MANIFEST.json").unlink()
    seal(out)
    tune(pretrained, packed, out)
    assert trained_cells == ["upstream-2-0"] * 2


def test_old_networks_stay_until_the_new_ones_are_complete(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tune(pretrained, packed, out)
    before = weights_of(out)
    monkeypatch.setattr(finetuning, "code_version", lambda recipe: "another")
    with monkeypatch.context() as patch:

        def fails(*_: Any, **__: Any) -> Any:
            raise InfrastructureError("the disk is full")

        patch.setattr(cell_trainer, "train_cell", fails)
        with pytest.raises(InfrastructureError):
            tune(pretrained, packed, out)
    after = weights_of(out)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_interrupted_cell_of_other_code_begins_anew_or_says_that_it_goes_on(
    pretrained: Path, packed: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe: dict[str, Any] = {"total_steps": 8}
    whole = cells._CellCallback.after_step

    def stopped(self: Any, step: int, *rest: Any) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(self, step, *rest)

    for resume, goes_on in (("same_code", False), ("any_code", True)):
        out = tmp_path / resume / "out"
        with monkeypatch.context() as patch:
            patch.setattr(cells._CellCallback, "after_step", stopped)
            with pytest.raises(InfrastructureError, match="SIGTERM at step 5"):
                tune(pretrained, packed, out, resume=resume, **recipe)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(finetuning, "code_version", lambda recipe: "another")
            tune(pretrained, packed, out, resume=resume, **recipe)
        said = capsys.readouterr().out
        assert ("step-00000005 was written by another version" in said) == goes_on
        assert ("resuming at step 5 of 8" in said) == goes_on


def test_each_network_has_a_curve_of_loss_and_validation(
    pretrained: Path, packed: Path, tmp_path: Path
) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    tune(pretrained, packed, tmp_path / "out", log=lambda *own: logged.append(own),
         total_steps=40, seeds=(0, 1))  # fmt: skip
    for seed in (0, 1):
        name = f"upstream-2-{seed}"
        losses = [step for step, own in logged if f"{name}/loss" in own]
        scored = [step for step, own in logged if f"{name}/val_loss" in own]
        assert losses == list(range(1, 41))
        assert scored and scored == sorted(scored) and scored[-1] < 40
        curve = read_curve(tmp_path / "out" / name)
        assert [row["step"] for row in curve] == losses
        top1 = meta_of(tmp_path / "out", name)["calibration"]["top1"]
        assert curve[-1]["val_top1"] == top1


def test_looking_at_the_validation_split_changes_no_weight(
    pretrained: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(pretrained, packed, tmp_path / "with", total_steps=40)
    monkeypatch.setattr(Grid, "validation_steps", lambda self, rule: frozenset())
    tune(pretrained, packed, tmp_path / "without", total_steps=40, resume="any_code")
    with_, without = (weights_of(tmp_path / side) for side in ("with", "without"))
    assert not any("val_loss" in row for row in read_curve(tmp_path / "without" / "upstream-2-0"))
    assert all(torch.equal(with_[name], without[name]) for name in with_)
