"""A training may be stopped anyhow and goes on as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtransfer import config
from bigtransfer.errors import (
    BigTransferError,
    CheckpointError,
    ConfigError,
    DatasetError,
    InfrastructureError,
    LockError,
)
from bigtransfer.model import ResNetV2, load_checkpoint
from bigtransfer.storage import read_json
from bigtransfer.train.group import Group
from bigtransfer.train.pretrain import nested, uneven_lanes
from bigtransfer.train.schedule import planned_schedule
from fixtures.datasets import pack, packed_in, validate_table
from fixtures.project import PROJECT, environment
from fixtures.training import STEPS, HiddenSteps, Trained, small_params

pytestmark = pytest.mark.xdist_group("pretrain")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same training, run to its end without a disturbance."""
    folder = tmp_path_factory.mktemp("undisturbed")
    torch.set_num_threads(1)
    result = Trained(folder / "run", packed_in(folder))
    result.train()
    return result


def signal_at(step: int, number: int) -> Any:
    def log(at: int, values: dict[str, float]) -> None:
        if at == step and "loss" in values:
            os.kill(os.getpid(), number)

    return log


@pytest.mark.parametrize("at", [1, 6, 12, 18])
def test_sigterm_saves_that_step_and_the_same_again_goes_on(
    trained: Trained, undisturbed: Trained, at: int
) -> None:
    with pytest.raises(InfrastructureError, match=rf"stopped by SIGTERM at step {at}, with a ch"):
        trained.train(signal_at(at, signal.SIGTERM))
    assert not trained.outputs.checkpoint.exists()
    (folder,) = trained.work.iterdir()
    assert (folder / f"step-{at:08d}" / "MANIFEST.json").is_file()
    trained.train()
    assert trained.weights() == undisturbed.weights()
    assert trained.history() == undisturbed.history()
    assert list(trained.work.glob("*/step-*")) == []


def test_ctrl_c_saves_too(trained: Trained) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained.train(signal_at(6, signal.SIGINT))
    assert list(trained.work.glob("*/step-00000006/MANIFEST.json"))


def test_a_signal_in_the_evaluation_leaves_it_for_the_restart(
    trained: Trained, undisturbed: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigtransfer.train import health

    real = health.predicted

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(health, "predicted", interrupted)
        with pytest.raises(InfrastructureError, match="stopped by SIGTERM at step 6"):
            trained.train()
    assert not any("val_top1" in values for _, values in trained.logged)
    trained.train()
    assert trained.history() == undisturbed.history()
    assert trained.weights() == undisturbed.weights()


def test_evaluations_and_results_see_what_the_steps_write_back(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigtransfer.train.health import Health

    seen: list[float] = []

    def look(self: Health, model: ResNetV2, between: Any) -> dict[str, float]:
        seen.append(float(model.head.bias.detach()[0]))
        return {"val_top1": 0.5}

    monkeypatch.setattr("bigtransfer.train.run.choose_step", HiddenSteps)
    monkeypatch.setattr(Health, "look", look)
    trained.train()
    assert seen == [6.0, 12.0, 18.0, 24.0]
    written, _ = load_checkpoint(trained.outputs.checkpoint)
    assert written.head.bias.tolist() == [STEPS] * 3


def test_other_params_or_data_are_another_training(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InfrastructureError):
        trained.train(signal_at(6, signal.SIGTERM))
    (first,) = trained.work.iterdir()
    capsys.readouterr()
    trained.train(base_lr=0.05)
    said = capsys.readouterr().out
    assert "resuming" not in said
    assert f"({first.name}); they are not used for this training" in said
    assert (first / "step-00000006").is_dir()


def test_how_it_is_computed_may_change_in_between(trained: Trained) -> None:
    with pytest.raises(InfrastructureError):
        trained.train(signal_at(6, signal.SIGTERM))
    trained.logged.clear()
    trained.train(micro_batch_size=3, recompute="norms", checkpoint_steps=5)
    steps = [step for step, values in trained.logged if "loss" in values]
    assert steps == [1, 6, 12, 18, 20, STEPS], "the earlier points are told again, each once"


def test_another_version_goes_on_only_where_that_is_asked_for(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InfrastructureError):
        trained.train(signal_at(6, signal.SIGTERM), resume="any_code")
    monkeypatch.setattr("bigtransfer.train.pretrain.code_version", lambda recipe: "another")
    trained.train(resume="any_code")
    said = capsys.readouterr().out
    assert "step-00000006 was written by another version of this program or of PyTorch" in said
    assert f"resuming at step 6 of {STEPS}" in said


CODE_THAT_TRAINS = """
import sys
from pathlib import Path
from fixtures.training import Trained
from bigtransfer.errors import InfrastructureError
import os, signal
def log(step, values):
    if step == 6 and "loss" in values and sys.argv[3] == "stop":
        os.kill(os.getpid(), signal.SIGTERM)
try:
    Trained(Path(sys.argv[1]), Path(sys.argv[2])).train(log)
except InfrastructureError as error:
    print(error)
"""


@pytest.mark.long
def test_other_normalisation_between_two_starts_is_another_training(
    packed: Path, tmp_path: Path
) -> None:
    """Stopped at step 6, x/255 in the place of (x-127.5)/127.5, started again."""
    shutil.copytree(PROJECT / "bigtransfer", tmp_path / "library" / "bigtransfer")
    library = tmp_path / "library"
    env = environment(PYTHONPATH=f"{library}{os.pathsep}{PROJECT / 'tests'}")

    def start(how: str) -> str:
        line = [sys.executable, "-c", CODE_THAT_TRAINS, str(tmp_path / "run"), str(packed), how]
        done = subprocess.run(
            line, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert "stopped by SIGTERM at step 6" in start("stop")
    inference = library / "bigtransfer" / "model" / "inference.py"
    text = inference.read_text()
    inference.write_text(text.replace("x.sub_(_MIDDLE).div_(_MIDDLE)", "x.div_(255.0)"))
    assert inference.read_text() != text
    said = start("go on")
    assert "resuming" not in said
    assert "holds checkpoints of other params, data or code" in said
    inference.write_text(f"# A comment more.\n{text}")
    assert "stopped by" not in start("go on")


def test_a_second_training_of_the_same_is_locked_out(trained: Trained) -> None:
    seen: list[BaseException] = []

    def second(step: int, values: dict[str, float]) -> None:
        if step == 6 and not seen:
            seen.append(pytest.raises(LockError, trained.train).value)

    trained.train(second)
    assert f"is being written by pid {os.getpid()} " in str(seen[0])


def test_all_checkpoints_damaged_is_an_error_not_a_new_start(trained: Trained) -> None:
    with pytest.raises(InfrastructureError):
        trained.train(signal_at(6, signal.SIGTERM))
    for path in trained.work.glob("*/step-*/weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="can be used.*to begin this training anew, remove"):
        trained.train()


def test_divergence_keeps_the_good_checkpoint_and_the_names_of_the_images(
    trained: Trained, packed: Path
) -> None:
    with pytest.raises(BigTransferError, match=r"the loss became .* at step \d+; lower 'base_lr'"):
        trained.train(base_lr=1e6, warmup_steps=0, max_loss_factor=3.0)
    (evidence,) = trained.work.glob("*/diverged-*.json")
    facts = read_json(evidence)
    assert len(facts["samples"]) == 8
    assert facts["samples"][0].startswith("class_")


def test_probe_and_validation_are_noted_at_every_evaluation(undisturbed: Trained) -> None:
    rows = [values for _, values in undisturbed.logged if "val_top1" in values]
    assert len(rows) == STEPS // 6
    for row in rows:
        assert 0 <= row["val_top1"] <= 1
        assert 0 <= row["probe_top1_2shot"] <= 1


def test_probe_without_enough_images_says_so(trained: Trained) -> None:
    wanted = {"dataset": "upstream", "examples_per_class": (60,), "seeds": (0,)}
    with pytest.raises(DatasetError, match=r"'pretrain.probe' wants 60 images of every class"):
        trained.train(probe=wanted)


def test_sigmoid_starts_where_the_head_bias_puts_it(trained: Trained) -> None:
    trained.train(loss="sigmoid", head_bias=-10.0)
    first = next(values["loss"] for step, values in trained.logged if step == 1)
    # One label of three: 10 for it, nearly nothing for the two others.
    assert first == pytest.approx(10.0001, abs=1e-3)


def test_several_labels_per_image_are_learned_with_a_sigmoid(photos: Path, tmp_path: Path) -> None:
    images = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    lines = [
        f"{path},{'odd|' if i % 2 else ''}{path.split('/')[0]}" for i, path in enumerate(images)
    ]
    (photos / "list.csv").write_text("\n".join(["path,labels", *lines]) + "\n")
    validate_table(photos)
    shards = tmp_path / "several"
    pack(photos / "list.csv", shards)
    several = Trained(tmp_path / "run", shards)
    no_probe = {"dataset": "upstream", "examples_per_class": (), "seeds": (0,)}
    with pytest.raises(ConfigError, match="several labels per image, which loss: softmax cannot"):
        several.train(probe=no_probe)
    with pytest.raises(DatasetError, match=r"'pretrain.probe' needs one label per image"):
        several.train(loss="sigmoid")
    several.train(loss="sigmoid", probe=no_probe, flip=False)
    first = next(values["loss"] for step, values in several.logged if step == 1)
    assert first == pytest.approx(4 * math.log(2), rel=1e-5), "four coins"


def test_more_processes_than_images_in_a_batch_are_refused(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(ConfigError, match=r"RANK=x and WORLD_SIZE=1 in the environment fit no run"):
        trained.train()


@pytest.mark.parametrize(("processes", "even"), [(1, True), (8, True), (6, False), (65, False)])
def test_processes_that_do_not_divide_the_lanes_are_told_what_that_means(
    processes: int, even: bool
) -> None:
    line = uneven_lanes(64, Group(0, processes))
    assert (line is None) == even
    assert even or f"{processes} processes do not divide the 64 lanes" in str(line)
    assert uneven_lanes(64, Group(1, processes)) is None, "said once"


def test_steps_of_the_recipes() -> None:
    wanted = {"bit_s": 28_151, "bit_m": 311_948, "bit_l": 2_929_688}
    decays = {
        "bit_s": (9384, 18767, 25023),
        "bit_m": (103983, 207966, 277288),
        "bit_l": (732422, 1684570, 2197266, 2709961),
    }
    for name, steps in wanted.items():
        params = config.load(
            PROJECT / "params.yaml", PROJECT / "pipelines" / f"{name}.yaml"
        ).pretrain
        assert params.examples is not None
        schedule = planned_schedule(
            params.examples, epochs=params.epochs, batch_size=params.batch_size,
            base_lr=params.base_lr, warmup_steps=params.warmup_steps,
            decay_epochs=params.decay_epochs,
        )  # fmt: skip
        assert schedule.total_steps == steps
        assert all(abs(a - b) <= 1 for a, b in zip(schedule.decay_steps, decays[name], strict=True))
        assert (schedule.base_lr, schedule.warmup_steps) == (0.03 * 4096 / 256, 5000)


def test_out_of_memory_on_the_way_is_remembered_for_the_next_start(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = ResNetV2.forward

    def hungry(self: ResNetV2, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 4 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x)

    monkeypatch.setattr(ResNetV2, "forward", hungry)
    with pytest.raises(InfrastructureError):
        trained.train(signal_at(6, signal.SIGTERM))
    said = capsys.readouterr().out
    assert said.count("memory ran out; going on with 4 images per forward pass") == 1
    trained.train()
    assert "memory ran out" not in capsys.readouterr().out


def stopped(*lines: str) -> subprocess.CompletedProcess[str]:
    """Run lines within `watched(0.3)`; SIGTERM arrives at once."""
    script = [
        "import os, signal, threading, time, torch",
        "from bigtransfer.train.interrupts import watched",
        "torch.set_num_threads(1)",
        "x = torch.randn(8000, 8000)",
        "with watched(0.3) as interrupts:",
        *(f"    {line}" for line in lines),
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(script)], env=environment(), capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip


def test_stop_that_takes_too_long_ends_all_the_same() -> None:
    result = stopped(
        "os.kill(os.getpid(), signal.SIGTERM)", "assert interrupts.wanted", "time.sleep(30)"
    )
    assert result.returncode == 75
    assert result.stderr.startswith("no end within 0.3 s of SIGTERM; the last checkpoint counts")


def test_stop_is_noticed_while_pytorch_computes() -> None:
    result = stopped(
        "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()",
        "x @ x",  # seconds in which no handler of Python's runs
        "print('computed', flush=True)",
        "time.sleep(30)",
    )
    assert (result.returncode, result.stdout) == (75, "")


def test_momentum_zero_trains(trained: Trained) -> None:
    trained.train(momentum=0.0, epochs=2.0, decay_epochs=())
    assert trained.outputs.checkpoint.is_dir()


def test_overlays_hold_only_what_the_schema_knows() -> None:
    for path in sorted((PROJECT / "pipelines").glob("*.yaml")):
        if not path.name.endswith(".kfp.yaml"):
            config.load(PROJECT / "params.yaml", path)


def test_meta_of_a_resumable_checkpoint_says_what_made_it(trained: Trained) -> None:
    with pytest.raises(InfrastructureError):
        trained.train(signal_at(6, signal.SIGTERM))
    (path,) = trained.work.glob("*/step-00000006/meta.json")
    meta = json.loads(path.read_text())
    assert meta["step"] == 6
    assert meta["recipe"]["architecture"] == small_params().architecture
    assert len(meta["shards_digest"]) == 64
    assert meta["world_size"] == 1


def test_a_larger_share_of_the_images_holds_a_smaller_one() -> None:
    rows = np.arange(1000) * 3
    shares = [nested(rows, count, seed=5) for count in (1, 250, 500, 1000)]
    assert [len(found) for found in shares] == [1, 250, 500, 1000]
    for small, large in itertools.pairwise(shares):
        assert set(small.tolist()) < set(large.tolist())
        assert (np.diff(large) > 0).all(), "in their order"
    assert set(nested(rows, 250, 6).tolist()) != set(shares[1].tolist())
    few = small_params(train_share=1e-9)
    assert few.trained_on(1000) == 1 and small_params(train_share=0.25).trained_on(1000) == 250


def test_of_a_share_the_schedule_is_its_own(trained: Trained) -> None:
    result = trained.train(train_share=0.5, epochs=8.0, decay_epochs=(4.0,), evaluation_steps=99)
    assert result["steps"] == round(8 * 9 / 8)
    meta = read_json(trained.outputs.checkpoint / "meta.json")
    assert meta["recipe"]["train_share"] == 0.5


def test_statistics_of_few_images_are_others_and_the_checkpoint_is_read_as_any(
    trained: Trained, packed: Path, tmp_path: Path
) -> None:
    few = {"norm": "bn", "epochs": 2.0, "decay_epochs": (1.0,), "evaluation_steps": 99}
    trained.train(**few)
    other = Trained(tmp_path / "few", packed)
    other.train(**few, norm_batch=2)
    assert trained.weights() != other.weights()
    left, right = (load_checkpoint(one.outputs.checkpoint)[0] for one in (trained, other))
    assert left.state_dict().keys() == right.state_dict().keys()


def test_what_was_no_choice_before_is_in_no_fingerprint() -> None:
    assert not {"norm_batch", "train_share"} & small_params().recipe.keys()
    chosen = small_params(norm="bn", norm_batch=4, train_share=0.5).recipe
    assert (chosen["norm_batch"], chosen["train_share"]) == (4, 0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_batch": 4}, "norm_batch is for norm bn and bn_ws, not for gn_ws"),
        ({"norm": "bn", "norm_batch": 3}, "norm_batch 3 must divide batch_size"),
        ({"norm": "bn", "norm_batch": 4, "micro_batch_size": 2}, "must divide micro_batch_size"),
        ({"train_share": 0.0}, "train_share"),
        ({"train_share": 1.1}, "train_share"),
    ],
)
def test_shares_and_groups_that_cannot_be_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_params(**changes)
