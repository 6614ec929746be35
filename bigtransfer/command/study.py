"""`bigtransfer study`: one training along a few axes, many times; a figure with its spread."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bigtransfer.study.cells import StudyCell
    from bigtransfer.study.outlook import Outlook
    from bigtransfer.study.states import Result
    from bigtransfer.study.study_file import Study

_PARAMS = Path("params.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "FILE is YAML: what is varied, what is drawn against what, and the paper's own figures; "
        "studies/ holds three. Each cell is an experiment of DVC: an upstream training and its "
        "transfer to every task. The same again goes on where it was stopped."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    own = {
        "plan": "the cells, and what they will take; nothing is begun",
        "run": "run the cells that are missing, then show",
        "show": "tables and page of what is finished",
        "remove": "take its cells out of the queue, and its experiments and runs away",
    }
    for name, line in own.items():
        action = actions.add_parser(name, allow_abbrev=False, help=line)
        action.add_argument("file", type=Path, metavar="FILE", help="the study")
        action.add_argument(
            "--overlay", type=Path, metavar="FILE", help="YAML laid over it: another size of it"
        )
        if name == "run":
            action.add_argument(
                "--retry", action="store_true", help="try cells again that failed before"
            )
            action.add_argument(
                "--jobs",
                type=int,
                metavar="N",
                help="cells at a time (default: one for each GPU, or for each `pretrain.threads` "
                "processors)",
            )


def run(arguments: argparse.Namespace) -> None:
    """Plan, run, show or remove.

    Raises:
        ConfigError: If the file cannot be a study, or cells failed.
        LockError: If another study runs in this project.
        BigTransferError: As DVC's stages do.
    """
    from bigtransfer.errors import ConfigError
    from bigtransfer.extras import require
    from bigtransfer.study.cells import cells_of
    from bigtransfer.study.study_file import read_study

    require("dvc", "a study")
    if not _PARAMS.is_file():
        raise ConfigError(
            "a study wants a project: there is no params.yaml in "
            f"{str(Path.cwd())!r}; run it where dvc.yaml is"
        )
    study = read_study(arguments.file, arguments.overlay)
    cells = cells_of(study, _PARAMS)
    if arguments.action == "plan":
        _plan(study, cells)
    elif arguments.action == "run":
        _run(study, cells, arguments)
    elif arguments.action == "show":
        _show(study, cells)
    else:
        _remove(study)


def _plan(study: Study, cells: Sequence[StudyCell]) -> None:
    from bigtransfer.progress import counted, duration
    from bigtransfer.storage import free_bytes
    from bigtransfer.study.outlook import outlook
    from bigtransfer.study.runner import states_of

    project = Path.cwd()
    states = {one.cell.name: one.state for one in states_of(project, cells)}
    found = [(cell, outlook(project, cell)) for cell in cells]
    width = max(len(cell.title) for cell in cells)
    print(f"{study.name}: {study.about}\n")
    print(f"  {'cell':<{width}}  {'steps':>9}  {'images':>12}  {'upstream':>8}  state")
    for cell, own in found:
        steps = "?" if own.steps is None else f"{own.steps:,}"
        images = "?" if own.images is None else f"{own.images:,}"
        takes = "?" if own.seconds is None else duration(own.seconds)
        state = states[cell.name]
        print(f"  {cell.title:<{width}}  {steps:>9}  {images:>12}  {takes:>8}  {state}")
    left = [own for cell, own in found if states[cell.name] != "finished"]
    tasks = ", ".join(cells[0].tasks)
    print(f"\n{counted(len(cells), 'cell')}, {len(left)} to run; then transfer to {tasks}")
    if all(own.seconds is not None for own in left):
        seconds = sum(own.seconds or 0 for own in left)
        print(f"about {duration(seconds)} of upstream training, by the last `pretrain` here; "
              "transfer and DVC come on top")  # fmt: skip
    else:
        print("how long is not known before the first `make run` here")
    if all(own.kept is not None for own in left):
        wanted, free = _bytes([own for _, own in found], 1), free_bytes(project)
        print(f"about {wanted / 1e9:.2f} GB of disk; {free / 1e9:.1f} GB are free")


def _run(study: Study, cells: Sequence[StudyCell], arguments: argparse.Namespace) -> None:
    from bigtransfer.command.workflow import repro
    from bigtransfer.errors import ConfigError, InfrastructureError
    from bigtransfer.progress import counted
    from bigtransfer.study.clone import require_clean
    from bigtransfer.study.outlook import outlook
    from bigtransfer.study.runner import TRY_AGAIN, Runner, Told, held, require_room

    project = Path.cwd()
    require_clean(project)
    with held(project, study.name):
        # Made once, for all cells; DVC does nothing where they are up to date.
        if code := repro(project, _data_stages(cells)):
            sys.exit(code)
        devices = _devices(arguments.jobs, cells[0].params.pretrain.threads)
        require_room(project, _bytes([outlook(project, cell) for cell in cells], len(devices)))
        print(f"\n{study.name}: {counted(len(cells), 'cell')}", flush=True)
        told = Told(lambda line: print(line, flush=True), lambda cell, found: _note(cell, found))
        failed = Runner(project, cells, devices, told).run(retry=arguments.retry)
        _end(study, "FAILED" if failed else "FINISHED")
        _show(study, cells)
    if failed and all(code in TRY_AGAIN for code in failed.values()):
        raise InfrastructureError(
            f"{len(failed)} of {counted(len(cells), 'cell')} failed, the others are kept and what "
            "was trained, too; mend it, and run the same again"
        )
    if failed:
        raise ConfigError(
            f"{len(failed)} of {counted(len(cells), 'cell')} failed, the others are kept; mend it, "
            "and run the same again with --retry"
        )


def _bytes(found: Sequence[Outlook], jobs: int) -> int:
    """Return what cells take of the disk: what all of them leave, and the folders of some."""
    copied = sorted((own.copied or 0 for own in found), reverse=True)
    return sum(own.kept or 0 for own in found) + sum(copied[:jobs])


def _data_stages(cells: Sequence[StudyCell]) -> list[str]:
    names = [cells[0].params.pretrain.dataset, cells[0].params.pretrain.probe.dataset]
    names += [cell.params.pretrain.dataset for cell in cells]
    stages = [f"shard@{name}" for name in names]
    for task in cells[0].tasks:
        stages += [f"shard@{cells[0].params.tasks[task].dataset}", f"audit@{task}"]
    return [*dict.fromkeys(stages)]


def _devices(jobs: int | None, threads: int) -> list[str | None]:
    """Return the `CUDA_VISIBLE_DEVICES` of each worker; None: it sees all there is.

    Args:
        jobs: Workers; None: one for each GPU, or as many as have processors of their own.
        threads: That a cell's processes use.
    """
    import os

    import torch

    from bigtransfer.errors import ConfigError

    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs {jobs}: one cell at a time is the least")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [*map(str, range(torch.cuda.device_count()))]
    if not gpus:
        return [None] * (jobs or max(1, len(os.sched_getaffinity(0)) // threads))
    return [gpus[number % len(gpus)] for number in range(jobs or len(gpus))]


def _show(study: Study, cells: Sequence[StudyCell]) -> None:
    from bigtransfer.report.study import as_markdown
    from bigtransfer.study.runner import states_of
    from bigtransfer.study.table import FOLDER, table_of, write

    project = Path.cwd()
    states = states_of(project, cells)
    table = table_of(study, states)
    print("\n" + as_markdown(table))
    print("Made")
    for path in write(table, states, project / FOLDER / study.name):
        print(f"  {path.relative_to(project)}")


def _remove(study: Study) -> None:
    import shutil

    from bigtransfer.errors import BigTransferError
    from bigtransfer.progress import counted
    from bigtransfer.study.runner import held, remove
    from bigtransfer.study.table import FOLDER
    from bigtransfer.track.failures import explained
    from bigtransfer.track.runs import open_client, open_experiment
    from bigtransfer.track.study_runs import forget_study

    project = Path.cwd()
    with held(project, study.name):
        removed = remove(project, study.name)
        shutil.rmtree(project / FOLDER / study.name, ignore_errors=True)
        try:
            with explained(project, "keeps its runs"):
                client = open_client(project)
                experiment = open_experiment(project, client)
                runs = forget_study(client, experiment, study.name)
        except BigTransferError as error:
            print(f"its runs in MLflow are left: {error}", file=sys.stderr)
            runs = 0
    print(f"{study.name}: removed {counted(removed, 'cell')} and {counted(runs, 'run')} of MLflow; "
          "`dvc gc --workspace --all-experiments` frees what they hold of DVC's cache")  # fmt: skip


def _note(cell: StudyCell, found: Result) -> None:
    """Say in MLflow what a cell found; where that does not work, the study goes on."""
    from bigtransfer.errors import BigTransferError
    from bigtransfer.track.failures import explained
    from bigtransfer.track.runs import open_client, open_experiment
    from bigtransfer.track.study_runs import note_cell

    params = {**cell.labels, "upstream_seed": cell.seed}
    try:
        with explained(Path.cwd(), "was not told"):
            client = open_client(Path.cwd())
            experiment = open_experiment(Path.cwd(), client)
            note_cell(client, experiment, cell.name, cell.title, params, found.figures())
    except BigTransferError as error:  # DVC has the result
        print(f"  MLflow does not have {cell.title}: {error}", file=sys.stderr)


def _end(study: Study, status: str) -> None:
    from bigtransfer.errors import BigTransferError
    from bigtransfer.track.failures import explained
    from bigtransfer.track.runs import open_client, open_experiment
    from bigtransfer.track.study_runs import end_study

    try:
        with explained(Path.cwd(), "was not told"):
            client = open_client(Path.cwd())
            end_study(client, open_experiment(Path.cwd(), client), study.name, status)
    except BigTransferError as error:
        print(f"the study stands in MLflow as running: {error}", file=sys.stderr)
