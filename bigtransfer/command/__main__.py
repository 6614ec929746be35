"""The command `bigtransfer`: parse, call, exit with the right code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import bigtransfer
from bigtransfer.command import (
    check_params,
    compare,
    data,
    doctor,
    evaluate,
    export,
    finetune,
    images,
    kfp,
    plan,
    predict,
    run,
    sweep,
    sync,
    weights,
)
from bigtransfer.errors import BigTransferError

_INTERRUPTED = 130
_NOBODY_READS = 141
COMMANDS: dict[str, tuple[Any, str]] = {
    "check-params": (
        check_params,
        "check all of params.yaml and the paths in it; every fault in one report",
    ),
    "run": (run, "check-params, then dvc repro, then what was made (this is `make run`)"),
    "data": (data, "check any folder of images without a project; look into shards"),
    "finetune": (
        finetune,
        "from a folder of images and weights to a tested model, in one command",
    ),
    "sweep": (
        sweep,
        "many tasks, subset sizes and seeds from one network; resumable, one table",
    ),
    "predict": (predict, "what a fine-tuned model sees in image files"),
    "evaluate": (
        evaluate,
        "how often a model is right on labelled images from elsewhere, e.g. ObjectNet",
    ),
    "export": (export, "a fine-tuned model as an ONNX or torch file, preprocessing inside"),
    "compare": (
        compare,
        "two reports on one test split: which model is better, and how sure is that?",
    ),
    "doctor": (
        doctor,
        "is everything here that the commands need, and is `kfp` this project's?",
    ),
    "images": (images, "build the container images of the components, by Docker or Podman"),
    "kfp": (
        kfp,
        "Kubeflow's `kfp` with `kfp run submit FILE.py`, where that name is not to be had",
    ),
    "plan": (plan, "what an upstream training would take: steps, FLOPs, memory, time, cost"),
    "sync": (sync, "send to MLflow what it did not take before"),
    "weights": (weights, "published weights: fetch, show, convert"),
}
"""Name -> module with `add_arguments(parser)` and `run(arguments)`, and its line in the help."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["kfp"]:  # argparse would take `--help` and `--endpoint` for itself
        kfp.run(argparse.Namespace(words=words[1:]))
    arguments = parser().parse_args(words)
    module, _ = COMMANDS[arguments.command]
    try:
        sys.exit(module.run(arguments) or 0)
    except BigTransferError as error:
        print(f"bigtransfer {arguments.command}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `bigtransfer predict … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_NOBODY_READS)
    except KeyboardInterrupt:
        print("interrupted; run the same again to go on", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def parser() -> argparse.ArgumentParser:
    """Return the command line of `bigtransfer`."""
    result = argparse.ArgumentParser(
        prog="bigtransfer", description="Big Transfer as a workflow.", allow_abbrev=False
    )
    result.add_argument("--version", action="version", version=bigtransfer.__version__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=summary, allow_abbrev=False))
    return result


if __name__ == "__main__":
    main()
