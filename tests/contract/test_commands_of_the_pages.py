"""What README and docs tell their reader to type is what the programs take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fixtures.pages import PROGRAMS, Line, WrongCommand, check, lines_of, pages
from fixtures.project import PROJECT

pytestmark = pytest.mark.xdist_group("pages")
LINES = sorted({line for page in pages() for line in lines_of(page)}, key=str)


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_of_a_page_is_taken_by_its_program(line: Line) -> None:
    check(line)


def test_the_pages_are_read_whole() -> None:
    assert {line.words[0] for line in LINES} == set(PROGRAMS) - {"mlflow"}  # they have `make ui`
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
    "pip instal .": "pip has no command 'instal'",
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
