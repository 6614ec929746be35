"""Process 1 of a launched pod that does one part of a component's work, and its true end.

The pods of such a Job know nothing of each other: Kubernetes counts them, and each takes the part
of its number. What a part reads is brought from the bucket first; what it writes it leaves there
itself. The task that waits joins the parts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from bigtransfer.errors import LAST_FAILURE, BigTransferError, InfrastructureError
from bigtransfer.kubeflow.process_one import Child, leave, number_of
from bigtransfer.kubeflow.torchrun import LOST
from bigtransfer.retry import run_again
from bigtransfer.storage import read_json
from bigtransfer.storage.copying import copy_here


def main() -> None:
    """Do what the command line says, and end with a code that Kubernetes can judge by."""
    arguments = _parser().parse_args()
    line = arguments.line[1:] if arguments.line[:1] == ["--"] else arguments.line
    number = number_of(arguments.parts)
    child = Child()
    stage = os.environ.get("BIGTRANSFER_STAGE", "parts")

    def say(text: str) -> None:
        print(f"{stage}, part {number + 1}: {text}", file=sys.stderr, flush=True)

    try:
        began = time.monotonic()
        run_again(lambda: _bring(arguments.bring), say)
        line += ["--part", f"{number + 1}/{arguments.parts}"]
        code = run_again(lambda: _run(child, line), say)
        if child.asked_to_end and code != 0:
            say("was asked to end; another pod does this part")
            code = LOST
        elif code == 0:
            say(f"done in {time.monotonic() - began:.0f} s")
    except InfrastructureError as error:
        # Kubernetes does not count 75: without an end it would be tried for ever.
        say(f"{error}, at each attempt [exit 1]")
        code = 1
    except BigTransferError as error:
        say(f"{error} [exit {error.exit_code}]")
        code = error.exit_code
    leave(code, say)


def _bring(listed: list[str]) -> None:
    """Bring what a part reads: a folder, or a file into a folder of its own, by its own name."""
    for one in listed:
        path, sha256, address = one.split("=", 2)
        if not Path(path).exists():
            copy_here(address, Path(path), sha256)


def _run(child: Child, line: list[str]) -> int:
    """Return the code of the component.

    Raises:
        InfrastructureError: If it says that the same may work the next time.
    """
    code = child.run([sys.executable, *line])
    if code == LOST and not child.asked_to_end:
        raise InfrastructureError(_last_words())
    return code


def _last_words() -> str:
    """Return what the component left of its end."""
    try:
        return str(read_json(Path(LAST_FAILURE))["message"]).rpartition(" [exit ")[0]
    except (BigTransferError, KeyError):
        return "the world outside failed"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bigtransfer.kubeflow.one_part",
        description="Run one part of a component's work.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--parts", type=int, required=True, metavar="N", help="in all")
    add("--bring", action="append", default=[], metavar="PATH=SHA256=ADDRESS", help="what it reads")
    add("line", nargs=argparse.REMAINDER, help="-- -m components.shard …")
    return parser


if __name__ == "__main__":
    main()
