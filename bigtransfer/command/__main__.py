"""The command `bigtransfer`: parse, call, exit with the right code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bigtransfer
from bigtransfer.command import (
    compare,
    data,
    doctor,
    evaluate,
    export,
    finetune,
    images,
    plan,
    predict,
    sweep,
    sync,
    weights,
)
from bigtransfer.errors import BigTransferError

_INTERRUPTED = 130
_NOBODY_READS = 141
_COMMANDS: dict[str, Any] = {
    "weights": weights, "data": data, "plan": plan, "predict": predict, "export": export,
    "compare": compare, "finetune": finetune, "sweep": sweep, "evaluate": evaluate,
    "images": images, "doctor": doctor,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    arguments = parser().parse_args(argv)
    try:
        sys.exit(_call(arguments))
    except BigTransferError as error:
        print(f"bigtransfer {arguments.command}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `bigtransfer predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_NOBODY_READS)
    except KeyboardInterrupt:
        print("interrupted; run the same again to go on", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _call(arguments: argparse.Namespace) -> int:
    if arguments.command == "check-params":
        from bigtransfer.command.check_params import check_params

        check_params(arguments.params)
        print(f"{arguments.params}: all sections and paths are fine")
        return 0
    if arguments.command == "sync":
        sync.run(Path.cwd())
        return 0
    if arguments.command in _COMMANDS:
        _COMMANDS[arguments.command].run(arguments)
        return 0
    from bigtransfer.command.workflow import run

    return run(Path.cwd(), arguments.targets)


def parser() -> argparse.ArgumentParser:
    """Return the command line of `bigtransfer`."""
    result = argparse.ArgumentParser(
        prog="bigtransfer", description="Big Transfer as a workflow.", allow_abbrev=False
    )
    result.add_argument("--version", action="version", version=bigtransfer.__version__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check-params",
        help="check all of params.yaml and the paths in it; every fault in one report",
        allow_abbrev=False,
    )
    check.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="file to check (default: %(default)s)",
    )
    run = commands.add_parser(
        "run",
        help="check-params, then dvc repro, then what was made (this is `make run`)",
        allow_abbrev=False,
    )
    run.add_argument(
        "targets",
        nargs="*",
        metavar="STAGE",
        help="only these stages and what they need, e.g. shard@photos (default: all)",
    )
    data.add_arguments(
        commands.add_parser(
            "data",
            help="check any folder of images without a project; look into shards",
            allow_abbrev=False,
        )
    )
    finetune.add_arguments(
        commands.add_parser(
            "finetune",
            help="from a folder of images and weights to a tested model, in one command",
            allow_abbrev=False,
        )
    )
    sweep.add_arguments(
        commands.add_parser(
            "sweep",
            help="many tasks, subset sizes and seeds from one network; resumable, one table",
            allow_abbrev=False,
        )
    )
    predict.add_arguments(
        commands.add_parser(
            "predict",
            help="what a fine-tuned model sees in image files",
            allow_abbrev=False,
        )
    )
    evaluate.add_arguments(
        commands.add_parser(
            "evaluate",
            help="how often a model is right on labelled images from elsewhere, e.g. ObjectNet",
            allow_abbrev=False,
        )
    )
    export.add_arguments(
        commands.add_parser(
            "export",
            help="a fine-tuned model as an ONNX or torch file, preprocessing inside",
            allow_abbrev=False,
        )
    )
    compare.add_arguments(
        commands.add_parser(
            "compare",
            help="two reports on one test split: which model is better, and how sure is that?",
            allow_abbrev=False,
        )
    )
    doctor.add_arguments(
        commands.add_parser(
            "doctor",
            help="is everything here that the commands need, and is `kfp` this project's?",
            allow_abbrev=False,
        )
    )
    images.add_arguments(
        commands.add_parser(
            "images",
            help="build the container images of the components, by Docker or Podman",
            allow_abbrev=False,
        )
    )
    plan.add_arguments(
        commands.add_parser(
            "plan",
            help="what an upstream training would take: steps, FLOPs, memory, time, cost",
            allow_abbrev=False,
        )
    )
    commands.add_parser(
        "sync", help="send to MLflow what it did not take before", allow_abbrev=False
    )
    weights.add_arguments(
        commands.add_parser(
            "weights",
            help="published weights: fetch, show, convert",
            allow_abbrev=False,
        )
    )
    return result


if __name__ == "__main__":
    main()
