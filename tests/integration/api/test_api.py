"""`import bigtransfer as bt`, as a notebook uses it."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigtransfer as bt
from bigtransfer.errors import (
    BigTransferError,
    CheckpointError,
    ConfigError,
    DatasetError,
    GateError,
    TooLongError,
)
from bigtransfer.model import create_model, save_npz
from fixtures.images import COLOURS, write_colours
from fixtures.project import PROJECT, environment

NOTEBOOK = PROJECT / "examples" / "photos.ipynb"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos`, `weights.npz` and the run `run` over them."""
    here = tmp_path_factory.mktemp("api")
    write_colours(here / "photos")
    save_npz(create_model("R14x0.25", 5, "small", seed=1), here / "weights.npz")
    bt.finetune(here / "photos", weights=here / "weights.npz", to=here / "run", quick=True,
                seeds=1, threads=1, crop=32)  # fmt: skip
    return here


@pytest.fixture
def model(made: Path) -> bt.Model:
    return bt.load(made / "run")


@pytest.fixture
def colours(made: Path) -> Path:
    return made / "photos"


def test_three_lines_make_a_model_that_answers(model: bt.Model, colours: Path) -> None:
    red = colours / "red" / "0.png"
    (answer,) = model.predict(red)
    assert (answer.name, answer.label, answer.fault) == (str(red), "red", None)
    assert answer.probability == answer.probabilities["red"] > 0.5
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert list(answer.probabilities)[0] == "red" and answer.labels == ("red",)
    assert len(model.predict([colours / "red", colours / "green"])) == 40
    assert model.classes == tuple(COLOURS)
    assert repr(model) == f"Model({str(model.folder)!r}: R14x0.25 at 32 px, 3 classes)"


def test_arrays_are_answered_as_files_are(model: bt.Model, colours: Path) -> None:
    files = [colours / name / "1.png" for name in COLOURS]
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    of_files, of_arrays = model.predict(files), model.predict(arrays)
    for one, other in zip(of_files, of_arrays, strict=True):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-5)
    assert [one.name for one in of_arrays] == ["0", "1", "2"]
    assert model.predict(np.stack(arrays)) == of_arrays
    assert model.predict(arrays[0]) == of_arrays[:1]


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
     np.zeros((0, 4, 3), np.uint8), [np.zeros((4, 4, 3), np.uint8), "a.png"]],
    ids=["float", "grey", "four channels", "empty", "mixed"],
)  # fmt: skip
def test_what_is_no_image_is_said(model: bt.Model, wrong: Any) -> None:
    with pytest.raises(DatasetError, match="image"):
        model.predict(wrong)


def test_a_file_that_cannot_be_read_says_so(model: bt.Model, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    (answer,) = model.predict(broken)
    assert answer.label is None and answer.probabilities == {} and answer.fault
    with pytest.raises(DatasetError, match="does not exist"):
        model.predict(tmp_path / "gone")


def test_evaluate_export_report_and_load(
    model: bt.Model, made: Path, colours: Path, tmp_path: Path
) -> None:
    found = model.evaluate(colours)
    assert found.top1 == 1.0 and len(found.usable) == 60
    assert found.seen and found.top1_of_new == 1.0
    assert repr(found) == "Evaluation(top-1 100.0 % of 60 images)"
    assert model.export(tmp_path / "colours.pt2").holds
    with pytest.raises(ConfigError, match=r"must be named \*.onnx or \*.pt2"):
        model.export(tmp_path / "colours.bin")
    report = model.report
    assert report is not None
    assert report.test_score == 1.0 and report.facts.task == "photos"
    assert report._repr_html_().startswith("<iframe srcdoc=") and report.page.is_file()
    again = bt.load(made / "run" / "model")
    assert again.folder == model.folder
    assert again.predict(colours / "blue")[0].label == "blue"
    alone = tmp_path / "alone"
    shutil.copytree(model.folder, alone)
    assert bt.load(alone).report is None
    with pytest.raises(CheckpointError, match="is no folder"):
        bt.load(tmp_path / "gone")


def test_check_says_what_the_gate_says(tmp_path: Path) -> None:
    colours = write_colours(tmp_path / "photos")
    found = bt.check(colours)
    assert found.success and found.images == 60
    assert dict(found.classes) == dict.fromkeys(COLOURS, 20)
    (colours / "red" / "0.png").write_bytes(b"no image")
    found = bt.check(colours)
    assert not found.success and list(found.unusable) == ["red/0.png"]
    assert found.broken_rules and "red" in found._repr_html_()
    assert bt.check(colours, quarantine=0.1).success


def test_what_is_wrong_is_one_of_our_errors(made: Path, tmp_path: Path) -> None:
    run, weights, colours = tmp_path / "run", made / "weights.npz", tmp_path / "photos"
    write_colours(colours)
    with pytest.raises(ConfigError, match=r"finetune\(\): unknown key 'total_step'; did you mean"):
        bt.finetune(colours, weights=weights, to=run, total_step=5)
    with pytest.raises(ConfigError, match="cannot be set together with quick"):
        bt.finetune(colours, weights=weights, to=run, quick=True, total_steps=5)
    with pytest.raises(CheckpointError, match="do not exist"):
        bt.finetune(colours, weights=tmp_path / "gone.npz", to=run)
    (colours / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(GateError, match=r"red/0\.png"):
        bt.finetune(colours, weights=weights, to=run, quick=True)
    assert issubclass(TooLongError, BigTransferError) and issubclass(GateError, bt.BigTransferError)


def test_the_rule_and_the_network_stand_alone() -> None:
    rule = bt.hyperrule(num_examples=1000, height=32, width=32, architecture="R50x1")
    assert (rule.total_steps, rule.crop, rule.batch_size) == (500, 128, 512)
    assert bt.create_model("R14x0.25", 5, "small").head.out_features == 5


def test_all_names_have_docstrings_with_what_they_raise_and_importing_is_light() -> None:
    for name in bt.__all__:
        own = getattr(bt, name)
        if name != "__version__":
            assert inspect.getdoc(own), name
    for own in (bt.finetune, bt.check, bt.load, bt.hyperrule, bt.Model.predict, bt.Model.evaluate):
        assert "Raises:" in (inspect.getdoc(own) or ""), own
        assert "Args:" in (inspect.getdoc(own) or ""), own
    assert set(bt.__all__) <= set(dir(bt))
    script = "import sys, bigtransfer; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True,
                         text=True, check=True)  # fmt: skip
    assert not {"torch", "numpy", "pandas", "pyarrow", "mlflow"} & set(run.stdout.split())


@pytest.mark.long
def test_the_notebook_runs(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    cells = [
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text())["cells"]
        if cell["cell_type"] == "code"
    ]
    first, *rest = cells
    names = [node.targets[0].id for node in ast.parse(first).body]  # type: ignore[attr-defined]
    assert names == ["folder", "weights"]
    namespace: dict[str, Any] = {
        "folder": str(made / "photos"),
        "weights": str(made / "weights.npz"),
    }
    shown = []
    for source in rest:
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), NOTEBOOK.name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), namespace)
            shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
    assert "60 images of 3 classes" in shown[0]
    assert any(text.startswith("Evaluation(top-1 100.0 %") for text in shown)
    assert shown[-1] == repr(tuple(COLOURS))
    assert " red " in capsys.readouterr().out or "blue" in "".join(shown)
    assert (tmp_path / "runs" / "photos" / "model.pt2").is_file()
