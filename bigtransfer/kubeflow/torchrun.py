"""`torchrun`, but it ends with the code that its workers ended with.

Torch's own ends with 1 whatever that was, so nobody above could tell wrong input from a lost peer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

REFUSED = (2, 3, 4)
"""Exit codes after which the same again would be refused again."""
LOST = 75
"""Exit code of a component that lost a peer, or the world outside."""


def code_of(codes: Iterable[int]) -> int:
    """Return the code that tells most of why workers ended; 128 + n for signal n.

    Args:
        codes: Of the workers that failed; a signal is negative.
    """
    said = list(codes)
    for code in (*REFUSED, LOST):
        if code in said:
            return code
    first = next((code for code in said if code > 0), said[0] if said else 1)
    return first if first > 0 else 128 - first


def main() -> None:
    """Run torchrun on the arguments, and end."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    code = 0
    try:
        run(parse_args(sys.argv[1:]))  # type: ignore[no-untyped-call]
    except SignalException:
        code = LOST
    except ChildFailedError as error:
        code = code_of(failure.exitcode for failure in error.failures.values())
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        # Of its own store on node 0, not of a worker.
        print(f"torchrun: {error}", file=sys.stderr)
        code = LOST
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # its threads would hold the process


if __name__ == "__main__":
    main()
