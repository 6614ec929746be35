"""What README and docs tell their reader to type is what the programs take."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from bigtransfer import config
from fixtures.pages import PROGRAMS, Line, WrongCommand, check, lines_of, pages
from fixtures.project import PROJECT

pytestmark = pytest.mark.xdist_group("pages")
LINES = sorted({line for page in pages() for line in lines_of(page)}, key=str)


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_of_a_page_is_taken_by_its_program(line: Line) -> None:
    check(line)


def test_the_pages_are_read_whole() -> None:
    assert {line.words[0] for line in LINES} == set(PROGRAMS)
    first = {line.words[0] for line in LINES if line.page == "README.md"}
    assert {"pip", "bigtransfer", "make", "kfp"} <= first
    typed = [line.words for line in LINES if line.whole]
    assert ["make", "run"] in typed
    assert any({"components.pretrain", "--history"} <= set(words) for words in typed), "joined"


def test_every_guide_is_read() -> None:
    guides = {path.name for path in (PROJECT / "docs" / "guide").glob("*.md")}
    assert {Path(line.page).name for line in LINES if "docs/guide" in line.page} == guides
    assert {path.name for path in pages()} > guides


def test_readme_is_short() -> None:
    assert len((PROJECT / "README.md").read_text().splitlines()) <= 150


PLANTED = {
    "make rum": "No rule to make target 'rum'",
    "bigtransfer predct MODEL IMAGES": "invalid choice: 'predct'",
    "bigtransfer predict MODEL IMAGES --ot a.csv": "unrecognized arguments: --ot",
    "bigtransfer predict": "the following arguments are required",
    "kfp run submit pipelines/bit_l.py --wiat": "unrecognized arguments: --wiat",
    "kfp run lst": "Unrecognized command 'lst'",
    "kfp run submit pipelines/bit_xl.py": "there is no 'pipelines/bit_xl.py'",
    "dvc repr": "dvc does not take 'repr'",
    "dvc exp show --cvs": "dvc does not take 'exp show --cvs'",
    "mlflow iu": "there is no command 'iu'",
    "mlflow ui --prot 5000": "No such option",
    "torchrun --nproc-pre-node 2 -m components.pretrain": "unrecognized arguments",
    "torchrun --nproc-per-node 2 -m components.pretran": "there is no module",
    "torchrun --nproc-per-node 2 -m components.pretrain … --shard x": "unrecognized arguments",
    "python -m components.shard --params params.yaml": "the following arguments are required",
    "python -m components.shard … --prt 1/2": "unrecognized arguments: --prt",
    "python -m pipelines.bit_l --kubernets x": "unrecognized arguments: --kubernets",
    "python benchmarks/train_stp.py": "there is no file",
    "python benchmarks/kill_test.py --kils 5": "unrecognized arguments: --kils",
    "python benchmarks/inference.py --rounds many": "invalid int value: 'many'",
    "pip fetch .": "pip has no command 'fetch'",
    "pip install --constrant requirements.lock .": "no such option",
    "pip install '.[onx]'": "there is no extra 'onx'",
    "bigtransfer sweep benchmarks/cifar10_curv.yaml --weights W": "there is no 'benchmarks/cif",
}


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_wrong_command_is_found(text: str) -> None:
    with pytest.raises(WrongCommand) as caught:
        check(Line("page.md", text, whole=True))
    assert PLANTED[text] in str(caught.value)


def test_what_is_typed_and_what_is_mentioned_are_both_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Say `make  run`, `dvc.yaml` or `dvc`.\n\n```\nX=1 .venv/bin/dvc repro \\\n  --dry  # all\n"
        "cat file\n```\n\n| `train_step.py --size 64` |\n"
    )
    monkeypatch.setattr("fixtures.pages.PROJECT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "train_step.py").touch()
    found = [(line.text, line.whole) for line in lines_of(page)]
    assert found == [
        ("X=1 .venv/bin/dvc repro --dry # all", True), ("make run", False),
        ("python benchmarks/train_step.py --size 64", False),
    ]  # fmt: skip
    assert [line.words for line in lines_of(page)][0] == ["dvc", "repro", "--dry"]


def test_the_readme_needs_no_activated_environment() -> None:
    """After make its commands name the project's own environment; before, `pip install .` does."""
    text = (PROJECT / "README.md").read_text()
    whole = [line.text for line in LINES if line.page == "README.md" and line.whole]
    own = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/|make |pip )")
    others = [line for line in whole if not own.match(line)]
    assert all(line.startswith("bigtransfer ") for line in others)
    installed, made = text.index("\npip install ."), text.index("\nmake run")
    assert all(installed < text.index(f"\n{line}") < made for line in others)


PYTHON = [
    (page.name, block)
    for page in pages()
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
]


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_python_of_the_pages_is_the_library_s(page: str, block: str) -> None:
    """Each call is one that the function takes; what it does is tested with the notebook."""
    import bigtransfer as bt

    places: dict[str, object] = {"bt": bt, "model": bt.Model}
    tree = ast.parse(block)
    imported = {
        name.name: getattr(importlib.import_module(node.module or ""), name.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert calls
    for call in calls:
        if isinstance(call.func, ast.Name):
            wanted = inspect.signature(imported[call.func.id])
            wanted.bind(*call.args, **{word.arg or "": word.value for word in call.keywords})
            continue
        assert isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
        place = places[call.func.value.id]
        wanted = inspect.signature(getattr(place, call.func.attr))
        own = [place] if place is bt.Model else []
        wanted.bind(*own, *call.args, **{word.arg or "": word.value for word in call.keywords})


def test_names_of_the_library_in_the_pages_exist() -> None:
    import bigtransfer as bt

    places = {"bt": bt.__all__, "model": dir(bt.Model)}
    for page in pages():
        found = re.findall(r"(?<![\w./-])(bt|model)\.([a-z_]+)(?=[`(\s])", page.read_text("utf-8"))
        assert not [name for place, name in found if name not in places[place]], page.name


def test_params_that_the_pages_name_exist() -> None:
    """`section.key`, as they stand between backticks."""
    models: dict[str, type[BaseModel]] = {
        "data": config.DatasetRules, "pretrain": config.PretrainParams,
        "finetune": config.FinetuneParams, "cluster": config.ClusterParams,
        "register": config.RegisterParams, "materialize": config.MaterializeParams,
    }  # fmt: skip
    name = re.compile(rf"(?:^|\s)({'|'.join(models)})\.([a-z_]+)(?=[:=\s.]|$)")
    seen = 0
    for page in pages():
        for text in re.findall(r"`([^`\n]+)`", page.read_text("utf-8")):
            for section, key in name.findall(text):
                seen += 1
                assert key in models[section].model_fields, f"{page.name}: {section}.{key}"
    assert seen > 20
