"""The command `bigtransfer`: parse, call, exit with the right code."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import bigtransfer
from bigtransfer.arguments import Parser
from bigtransfer.errors import BigTransferError, ConfigError
from bigtransfer.extras import missing

_BUG = 1
_INTERRUPTED = 130
_NOBODY_READS = 141
COMMANDS = {
    "check-params": "check all of params.yaml and the paths in it; every fault in one report",
    "run": "check-params, then dvc repro, then what was made (this is `make run`)",
    "data": "check any folder of images without a project; look into shards",
    "finetune": "from a folder of images and weights to a tested model, in one command",
    "sweep": "many tasks, subset sizes and seeds from one network; resumable, one table",
    "study": "one training along a few axes, e.g. norm and batch size: a figure with its spread",
    "predict": "what a fine-tuned model sees in image files",
    "evaluate": "how often a model is right on labelled images from elsewhere, e.g. ObjectNet",
    "inspect": "training images of a model that may have been planted: a page to look at",
    "export": "a fine-tuned model as an ONNX or torch file, preprocessing inside",
    "compare": "two reports on one test split: which model is better, and how sure is that?",
    "explain": "which data, code and weights made a registered model; is all of it still so?",
    "measure": "the champion, run beside a version that would replace it",
    "promote": "a registered version becomes champion, if it passes the gates",
    "rollback": "the version that was champion before is champion again",
    "withdraw": "a registered version must not be used any more: aliases leave it",
    "watch": "promote what a person marks as candidate in the MLflow UI",
    "audit-registry": "are the records of who became champion whole?",
    "doctor": "is everything here that the commands need, and is `kfp` this project's?",
    "cluster": "upstream trainings that run in a cluster: list them, stop one",
    "images": "build the container images of the components, by Docker or Podman",
    "kfp": "Kubeflow's `kfp` with `kfp run submit FILE.py`, where that name is not to be had",
    "plan": "what an upstream training would take: steps, FLOPs, memory, time, cost",
    "serve": "a model behind HTTP; a registered one follows its alias",
    "sync": "send to MLflow what it did not take before",
    "ui": "MLflow in the browser: runs, curves, models (this is `make ui`)",
    "weights": "published weights: fetch, show, convert",
}
"""Name -> its line in the help. Its module has `add_arguments(parser)` and `run(arguments)`, and is
imported where it is wanted: the help of all needs none of them."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        parser(only="").print_help()
        sys.exit(ConfigError.exit_code)
    name = words[0]
    try:
        if name == "kfp":  # argparse would take `--help` and `--endpoint` for itself
            _module(name).run(argparse.Namespace(words=words[1:]))
        arguments = parser(only=name).parse_args(words)
        sys.exit(_module(name).run(arguments) or 0)
    except BigTransferError as error:
        _leave(name, str(error), error.exit_code)
    except ModuleNotFoundError as error:
        if said := missing(error):
            _leave(name, str(said), said.exit_code)
        _leave(name, f"our bug: no module {error.name!r} can be imported", _BUG)
    except BrokenPipeError:  # `bigtransfer predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_NOBODY_READS)
    except KeyboardInterrupt:
        print("interrupted; run the same again to go on", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def program() -> NoReturn:
    """Run the command and end the process with its code.

    Threads are waited for and what was registered for the end is run, as always; but modules are
    not taken apart: on a busy machine a thread of PyArrow's aborts in that now and then (seen: 4 of
    30 times), after all was done and said.
    """
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    threading._shutdown()  # type: ignore[attr-defined]  # what Python itself does first
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def parser(*, only: str | None = None) -> Parser:
    """Return the command line of `bigtransfer`.

    Args:
        only: Name of the command whose arguments are declared too; None: of all of them.
    """
    result = Parser(
        prog="bigtransfer",
        description="Big Transfer as a workflow. `bigtransfer COMMAND --help` says more.",
    )
    result.add_argument("--version", action="version", version=bigtransfer.__version__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        added = commands.add_parser(name, help=summary)
        if only in (None, name):
            _module(name).add_arguments(added)
    return result


def _module(name: str) -> Any:
    return import_module(f"bigtransfer.command.{name.replace('-', '_')}")


def _leave(name: str, message: str, code: int) -> None:
    print(f"bigtransfer {name}: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    program()
