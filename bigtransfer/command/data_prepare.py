"""`bigtransfer data prepare`: a task of VTAB-1k of the set as its authors distribute it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from bigtransfer.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = (
        "Make the 800 train, 200 val and all test images of a task of VTAB-1k, of the set as its "
        "authors distribute it, in archives or unpacked. Written are a table (images.csv), images "
        "or links to them, and prepared.json, which says whether the split is the official one; "
        "`sweep vtab` and `finetune` read the folder."
    )
    parser.add_argument("task", nargs="?", metavar="TASK", help="vtab/pets, vtab/svhn, …")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FOLDER", help="that the set lies in"
    )
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="to write (default: vtab/<task>, here)"
    )
    parser.add_argument(
        "--copy",
        action="store_true",
        help="copy image files; without it they are linked to, and must stay where they are",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="show the 19 tasks, the files each needs, and whether the official split can be made",
    )


def run(arguments: argparse.Namespace) -> None:
    """List the tasks, or make one.

    Raises:
        ConfigError: If the task or --from is missing.
        BigTransferError: One line that says what is wrong with the set.
    """
    from bigtransfer.data.vtab.prepare import prepare
    from bigtransfer.data.vtab.tasks import PREFIX, task_of

    if arguments.list:
        _list()
        return
    if arguments.task is None:
        raise ConfigError("which task? Give one, e.g. vtab/pets; `data prepare --list` shows all")
    task = task_of(arguments.task)
    if arguments.source is None:
        raise ConfigError(
            f"give --from FOLDER with the files of {task.title}: {task.wants}; "
            "`data prepare --list` shows where they come from"
        )
    name = arguments.task.removeprefix(PREFIX)
    to = arguments.to or Path("vtab") / name
    print(f"{PREFIX}{name}: reads {arguments.source}", flush=True)
    made = prepare(name, arguments.source, to, copy=arguments.copy)
    splits = ", ".join(f"{split} {count:,}" for split, count in made.splits.items())
    print(f"{made.task}: {splits}, {task.classes} classes, of {task.title}")
    if made.official:
        which = task.official.partition(", ")[2]
        print(
            "the official split: in the order of TensorFlow Datasets (TFDS), as VTAB-1k cuts it"
            + (f" ({which})" if which else "")
        )
    else:
        print(f"not the official split: {made.why}; `sweep` keeps the task out of the means")
    where = shlex.quote(str(to))
    print(f"written to {to}; next: bigtransfer finetune {where} --weights FILE, or sweep vtab")


def _list() -> None:
    from bigtransfer.config import read_yaml
    from bigtransfer.data.vtab.tasks import PREFIX, TASKS

    catalogue = read_yaml(Path(__file__).parents[1] / "vtab.yaml")["tasks"]
    for name, task in TASKS.items():
        counts = " + ".join(f"{count:,}" for count in catalogue[name]["images"].values())
        print(f"{PREFIX}{name}: {task.title}, {task.classes} classes, {counts} images")
        print(f"  needs      {task.wants}")
        print(f"  from       {catalogue[name]['download']}")
        print(f"  official   {task.official}")
