"""`make run` shows a line a stage; a stand-in for DVC says what DVC says."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from bigtransfer.command import stages
from bigtransfer.command.workflow import _explain
from bigtransfer.storage import as_json, write_text
from bigtransfer.storage.home import STAGE_SECONDS
from fixtures.project import PROJECT

LONG = "> PATH=.venv/bin:" + "x" * 300 + " python -m components.validate"
RULE = "digits, 1 per class, HyperRule 'repository': " + "regime small, " * 30
GOOD = f"""
Running stage 'materialize':
{LONG}
data/digits: 1,797 digits
Updating lock file 'dvc.lock'

Stage 'validate@digits' didn't change, skipping
Stage 'shard@digits' is cached - skipping run, checking out outputs

Running stage 'finetune@digits':
{LONG}
{RULE}
digits: 4 networks
Updating lock file 'dvc.lock'

To track the changes with git, run:

	git add dvc.lock

To enable auto staging, run:

	dvc config core.autostage true
Use `dvc push` to send your updates to remote storage.
"""
BUG = f"""
Running stage 'materialize':
{LONG}
data/digits: 1,797 digits
Running stage 'shard@digits':
{LONG}
Traceback (most recent call last):
ZeroDivisionError: division by zero
ERROR: failed to reproduce 'shard@digits': failed to run: {LONG}, exited with 1
"""
BROKEN = "ERROR: 'dvc.yaml' is invalid.\n"


def dvc(says: str, code: int = 0) -> list[str]:
    return [sys.executable, "-c", f"print({says.strip(chr(10))!r}, flush=True); exit({code})"]


def repro(project: Path, says: str, code: int = 0, *, whole: bool = True) -> stages.Told:
    return stages.repro(project, dvc(says, code), dict(os.environ), whole=whole)


def test_a_stage_is_a_line_with_its_time_and_what_it_said_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = repro(tmp_path, GOOD)
    out, err = capsys.readouterr()
    first, second, third, fourth, fifth = out.splitlines()
    assert first.split(maxsplit=3) == ["materialize", "0", "s", "data/digits: 1,797 digits"]
    assert second.split(maxsplit=3) == ["shard@digits", "0", "s", "taken from DVC's cache"]
    assert third.split(maxsplit=3) == ["finetune@digits", "0", "s", "digits: 4 networks"]
    assert fourth == "  1 stage up to date"
    assert fifth == f"  all that was said: {told.log}"
    assert (err, told.code) == ("", 0)
    said = (tmp_path / told.log).read_text()
    assert LONG in said and RULE in said and "dvc push" in said


def test_a_stage_that_takes_long_says_now_and_then_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = "fine-tune digits: 703 of 960 steps, 0.5/s, 9 min left, scratch-1-2"
    said = GOOD.replace(RULE, f"{RULE}\n{left}\n{left}")
    repro(tmp_path, said)
    assert left not in capsys.readouterr().out, "not at once"
    monkeypatch.setattr(stages, "_SECONDS_BETWEEN_SIGNS", 0.0)
    repro(tmp_path, said)
    assert capsys.readouterr().out.count(f"    {left}\n") == 2


def test_how_long_it_takes_is_known_from_the_last_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  materialize:\n    cmd: python\n  finetune@digits:\n    cmd: x\n"
    )
    repro(tmp_path, GOOD)
    assert "2 stages (dvc.lock), all of them for the first time here" in capsys.readouterr().out
    kept = json.loads((tmp_path / STAGE_SECONDS).read_text())
    assert sorted(kept) == ["finetune@digits", "materialize"]  # not what came from the cache
    write_text(tmp_path / STAGE_SECONDS, as_json({"materialize": 100.0, "finetune@digits": 260.0}))
    repro(tmp_path, GOOD)
    assert (
        "2 stages, about 6 min by the times of their last runs here (.work/stage-seconds.json) "
        "if nothing is up to date"
    ) in capsys.readouterr().out
    repro(tmp_path, GOOD, whole=False)
    assert "by the times" not in capsys.readouterr().out
    (tmp_path / STAGE_SECONDS).write_text("no JSON")
    assert repro(tmp_path, GOOD).code == 0


def test_a_bug_of_a_stage_shows_its_last_lines_and_nothing_of_dvc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = repro(tmp_path, BUG, 255)
    assert _explain(tmp_path / "none.json", told.code, told) == 1
    out, err = capsys.readouterr()
    assert "materialize" in out and "shard@digits" not in out, "it has not ended well"
    assert err.startswith("Traceback (most recent call last):\nZeroDivisionError: ")
    assert "PATH=" not in err and "failed to reproduce" not in err
    assert str(told.log) in err
    assert err.endswith("stage 'shard@digits' failed\n")


def test_a_failure_is_said_once_after_what_the_stage_said_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = BUG.replace("Traceback (most recent call last):", "checked 12 images")
    said = said.replace("ZeroDivisionError: division by zero", "shard@digits: b/1.png is cut")
    failure = tmp_path / "last-failure.json"
    facts = {"stage": "shard@digits", "exit_code": 3, "message": "b/1.png is cut"}
    write_text(failure, as_json(facts))
    told = repro(tmp_path, said, 255)
    assert _explain(failure, told.code, told) == 3
    err = capsys.readouterr().err
    assert err.startswith("checked 12 images\n")
    assert err.endswith(
        "shard@digits: b/1.png is cut\nstage 'shard@digits' stopped with exit code 3\n"
    )
    assert err.count("b/1.png is cut") == 1


def test_what_dvc_itself_complains_of_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = repro(tmp_path, BROKEN, 251)
    assert _explain(tmp_path / "none.json", told.code, told) == 251
    assert capsys.readouterr().err.startswith("'dvc.yaml' is invalid.\n")


def test_old_logs_go(tmp_path: Path) -> None:
    for day in range(10, 30):
        write_text(tmp_path / stages.LOGS / f"run-202611{day}-000000-1.log", "")
    told = repro(tmp_path, GOOD)
    logs = sorted(path.name for path in (tmp_path / stages.LOGS).iterdir())
    assert len(logs) == 10 and told.log.name in logs and "run-20261129-000000-1.log" in logs


BAR = """
import sys, time
from bigtransfer.progress import progress
print("Running stage 'pretrain':", flush=True)
with progress("pretrain", 10, unit="step") as advance:
    time.sleep(2.2)
    for i in range(10):
        advance(i + 1, "")
        time.sleep(0.1)
"""
RUN = """
import os, sys
from pathlib import Path
from bigtransfer.command import stages
stages.repro(Path.cwd(), [sys.executable, "-c", sys.argv[1]], dict(os.environ), whole=True)
"""


def test_on_a_terminal_the_bar_of_a_stage_is_seen(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, BAR], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait(60) == 0, seen
    text = seen.decode()
    assert "pretrain …" in text, "what runs"
    assert "/10 [" in text, "its bar"
    assert "\r\x1b[K  pretrain " in text, "and the line when it has ended"


SAVES = """
import signal, sys, time
print("Running stage 'pretrain':", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    print("pretrain: saved", flush=True)
    sys.exit(130)
"""


def test_after_ctrl_c_the_stage_saves_what_it_has(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, SAVES], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any("Running" in p.read_text() for p in (tmp_path / stages.LOGS).glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # it sleeps
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert "stopping: the stage saves what it has" in err
    assert "KeyboardInterrupt" in err
    (log,) = (tmp_path / stages.LOGS).glob("*")
    assert "pretrain: saved" in log.read_text()
