"""What is wrong with a command line is one line, which says what was meant."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bigtransfer.arguments import Parser
from bigtransfer.command import __main__ as command
from bigtransfer.extras import BASE, EXTRAS
from fixtures.commands import call, heard


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predct m i", "invalid choice: 'predct'; did you mean 'predict'? (`bigtransfer --help`)"),
        ("photos", "invalid choice: 'photos'; one of check-params, run, data, "),
        (
            "data checks photos",
            "invalid choice: 'checks'; did you mean 'check'? (`bigtransfer data -",
        ),
        ("export m o --format onx", "--format: invalid choice: 'onx'; did you mean 'onnx'?"),
        ("predict m i --ot a.csv", "unrecognized arguments: --ot; did you mean '--out'?"),
        ("predict m i --ot=a.csv", "unrecognized arguments: --ot; did you mean '--out'?"),
        ("finetune photos --weigths w", "unrecognized arguments: --weigths; did you mean '--weig"),
        ("weights fetch N --zzz x", "unrecognized arguments: --zzz (`bigtransfer weights fetch"),
        ("finetune photos", "the following arguments are required: --weights (`bigtransfer fi"),
        ("--versoin", "unrecognized arguments: --versoin; did you mean '--version'?"),
        ("plan --probe-seconds soon", "invalid float value: 'soon'"),
        ("compare a b c", "unrecognized arguments: c"),
    ],
)
def test_a_wrong_word_is_one_line_that_says_what_was_meant(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = heard(capsys, *line.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


def test_components_say_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    from components.interface import parser
    from components.pretrain import COMPONENT

    with pytest.raises(SystemExit) as ended:
        parser(COMPONENT).parse_args(["--parms", "params.yaml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "python -m components.pretrain: unrecognized arguments: --parms; did you mean '--params'? "
        "(`python -m components.pretrain --help`)\n"
    )


def test_values_that_look_like_options_are_values() -> None:
    parser = Parser(prog="x")
    parser.add_argument("--note")
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["--note=--a b"]).note == "--a b"
    assert parser.parse_args(["--", "--a"]).words == ["--a"]


def test_the_command_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = heard(capsys)
    assert (code, err) == (2, "")
    assert all(name in out and text.split()[0] in out for name, text in command.COMMANDS.items())


def test_a_command_imports_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("bigtransfer.command.")]:
        if not name.endswith("__main__"):
            monkeypatch.delitem(sys.modules, name)
    assert call("check-params", "--help") == 0
    loaded = {name for name in sys.modules if name.startswith("bigtransfer.command.")}
    assert loaded <= {"bigtransfer.command.check_params", "bigtransfer.command.__main__"}


@pytest.mark.parametrize("module", [*EXTRAS, *BASE])
def test_a_missing_package_is_one_line(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(_: object) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'", name=f"{module}.part")

    from bigtransfer.command import sync

    monkeypatch.setattr(sync, "run", run)
    code, _, err = heard(capsys, "sync")
    assert code == 2 and err.count("\n") == 1
    assert err.startswith("bigtransfer sync: ") and "pip install" in err
    if extra := EXTRAS.get(module):
        assert f"{module}, which is not installed; `pip install 'bigtransfer[{extra}]'`" in err


def test_a_module_that_nobody_knows_is_our_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> None:
        raise ModuleNotFoundError("No module named 'bigtransfer.gone'", name="bigtransfer.gone")

    from bigtransfer.command import sync

    monkeypatch.setattr(sync, "run", run)
    code, _, err = heard(capsys, "sync")
    assert (code, err) == (
        1, "bigtransfer sync: our bug: no module 'bigtransfer.gone' can be imported\n",
    )  # fmt: skip
