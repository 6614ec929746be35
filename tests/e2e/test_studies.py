"""A study in DVC's queue: killed in each of its processes, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from fixtures.project import environment, git
from fixtures.workflow import call, mlflow_client

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-studies")]

ONE: dict[str, object] = {
    "about": "One cell, long enough to be killed.",
    "params": {"pretrain": {"epochs": 1.5, "decay_epochs": [0.5, 1.0], "warmup_steps": 10,
                            "train_share": 0.3, "checkpoint_steps": 5}},
    "axes": {"norm": ["bn"]},
    "downstream": {"tasks": ["digits"], "seeds": [0, 1], "examples_per_class": [5],
                   "preset": "quick"},
    "plot": {"x": "norm"},
}  # fmt: skip
WAIT = 900
"""Seconds; a machine that does other things beside is many times slower."""
LONG = "BIGTRANSFER_TEST_TIMES" in os.environ
"""`make test-long` kills worker and caller, too, and makes the same from nothing."""


@pytest.fixture
def project(own_copy: Path) -> Iterator[Path]:
    """A finished project with its environment and an empty queue; nothing of it goes on after."""
    (own_copy / "studies").mkdir(exist_ok=True)
    yield own_copy
    for process in processes(own_copy):
        with suppress(psutil.Error):
            process.kill()


def write(project: Path, **changes: object) -> str:
    (project / "studies" / "one.yaml").write_text(json.dumps({**ONE, **changes}))
    return "studies/one.yaml"


def study(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return call(project, "bigtransfer.command", "study", *words)


@contextmanager
def begun(project: Path, file: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start `study run`; whatever becomes of the block, it has ended after it."""
    line = [sys.executable, "-m", "bigtransfer.command", "study", "run", file]
    with (
        (project / "run.log").open("ab") as log,
        subprocess.Popen(
            line, cwd=project, env=environment(PYTHONPATH=""), stdout=log, stderr=log
        ) as caller,
    ):
        try:
            yield caller
        finally:
            caller.kill()


def processes(project: Path, word: str | None = None) -> list[psutil.Process]:
    """Return what runs for the study: `queue-worker`, `exec-run`, `components.pretrain`; or all."""
    found = []
    for process in psutil.process_iter():
        try:
            if word in (None, *process.cmdline()) and process.cwd().startswith(str(project)):
                found.append(process)
        except psutil.Error:
            continue
    return found


def said(project: Path) -> str:
    return (project / "run.log").read_text()


def until(what: Callable[[], object], project: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < deadline, said(project)
        time.sleep(0.1)


def steps_of(project: Path) -> list[int]:
    """Return the steps that there are checkpoints of."""
    found = project.glob(".work/pretrain/*/step-*/MANIFEST.json")
    return [int(path.parent.name.removeprefix("step-")) for path in found]


def kill_in_turn(project: Path) -> None:
    """Kill the executor, and at length the worker before it, each once a step more is kept."""
    seen: set[int] = set()

    def executors() -> list[psutil.Process]:
        return [one for one in processes(project, "exec-run") if one.pid not in seen]

    for number, word in enumerate(("queue-worker", "exec-run") if LONG else ("exec-run",), 1):
        until(executors, project)
        reached = max(steps_of(project), default=0)
        assert reached >= 5 * (number - 1), "what was reached is kept"
        until(lambda: max(steps_of(project), default=0) > reached, project)  # noqa: B023  # now
        seen |= {one.pid for one in processes(project, "exec-run")}
        for victim in processes(project, word):
            victim.kill()
        until(lambda: said(project).count("begun again, from where") == number, project)  # noqa: B023
    if LONG:
        until(executors, project)


def test_kill_of_worker_executor_and_caller_and_it_ends_with_the_same_figures(
    project: Path,
) -> None:
    file, tree = write(project), (project / "params.yaml").read_text()
    with begun(project, file) as caller:
        kill_in_turn(project)
        if not LONG:
            assert caller.wait(WAIT) == 0, said(project)
    ended = study(project, "run", file)
    assert ended.returncode == 0, ended.stdout + ended.stderr + said(project)
    assert "Traceback" not in ended.stderr + said(project)
    assert not list(project.glob(".work/pretrain/*/step-*")), "what is finished is cleared"
    assert (project / "params.yaml").read_text() == tree, "nobody's files are touched"
    assert git(project, "stash", "list") == ""
    killed = (project / "artifacts/studies/one/cells.csv").read_text()

    client = mlflow_client(project)
    experiment = client.get_experiment_by_name("bigtransfer").experiment_id
    call(project, "bigtransfer.command", "sync")
    (parent,) = client.search_runs([experiment], "tags.`bigtransfer.study` = 'one'")
    (cell,) = client.search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert cell.data.params["norm"] == "bn" and cell.info.status == "FINISHED"
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{cell.info.run_id}'")
    names = sorted(run.info.run_name for run in below)
    assert names == ["evaluate@digits", "finetune@digits", "pretrain"], "each once"

    shown = call(project, "dvc", "exp", "list", "--name-only")
    assert cell.data.tags["bigtransfer.cell"] in shown.stdout

    removed = study(project, "remove", file)
    assert removed.returncode == 0 and "removed 1 cell" in removed.stdout, removed.stderr
    assert not client.search_runs([experiment], "tags.`bigtransfer.study` = 'one'")
    assert "0 of 1" in study(project, "show", file).stdout
    if not LONG:
        return
    for folder in (".dvc/cache/runs", ".work/pretrain", ".work/finetune"):
        subprocess.run(["rm", "-rf", str(project / folder)], check=True)
    again = study(project, "run", file)
    assert again.returncode == 0, again.stderr
    assert (project / "artifacts/studies/one/cells.csv").read_text() == killed


def test_a_cell_that_failed_waits_for_retry(project: Path) -> None:
    diverges = {"params": {"pretrain": {"epochs": 0.3, "decay_epochs": [0.1], "warmup_steps": 0}},
                "axes": {"base_lr": [1e9]}, "plot": {"x": "base_lr"}}  # fmt: skip
    file = write(project, **diverges)
    ended = study(project, "run", file)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "1 of 1 cell failed" in ended.stderr and "the loss became" in ended.stdout
    assert "failed: pretrain: " in (project / "artifacts/studies/one/table.md").read_text()
    again = study(project, "run", file)
    assert again.returncode == 2 and "say --retry" in again.stderr
    assert study(project, "run", file, "--retry").returncode == 2


def test_what_is_refused_in_one_line(project: Path) -> None:
    file = write(project)
    with (project / "bigtransfer" / "errors.py").open("a") as code:
        code.write("# changed\n")
    dirty = study(project, "run", file)
    assert dirty.returncode == 2 and "not committed: bigtransfer/errors.py" in dirty.stderr
    git(project, "checkout", "bigtransfer/errors.py")

    import fcntl

    (project / ".work/studies").mkdir(parents=True, exist_ok=True)
    with (project / ".work/studies/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = study(project, "run", file)
    assert second.returncode == 4, second.stderr

    for changes, words in (
        ({"axes": {"nrom": ["bn"]}, "plot": {"x": "nrom"}}, "did you mean 'norm'?"),
        ({"params": {"data": {"seed": 1}}}, "its data are those of params.yaml"),
        ({"downstream": {"tasks": ["digit"]}}, "did you mean 'digits'?"),
        ({"name": "a b"}, "cannot begin a name"),
    ):
        wrong = study(project, "plan", write(project, **changes))  # type: ignore[arg-type]  # JSON
        assert wrong.returncode == 2 and words in wrong.stderr, wrong.stderr
        assert "Traceback" not in wrong.stderr
    assert study(project, "plan", "studies/none.yaml").returncode == 2
    elsewhere = study(project / "studies", "plan", "one.yaml")
    assert elsewhere.returncode == 2 and "there is no params.yaml" in elsewhere.stderr
