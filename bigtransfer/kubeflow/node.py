"""Process 1 of a launched pod: one node's share of a training, and its true end.

`torchrun` ends with 1 whatever its workers' code was, and every node that loses a peer counts as a
failure of its own. So it runs within this program, which

- begins when all nodes are there, each of this very attempt;
- hands on what the workers say: 2, 3 and 4 (the same again would be refused again), 75 where
  another node was lost, anything else as it is;
- gives workers all the time that the pod has after SIGTERM;
- on node 0 sends what was written to the bucket, its MANIFEST.json last, and on the others waits
  for that: a node that ended before could not come back if node 0 were lost while it sends.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError
from bigtransfer.storage import MANIFEST_NAME, MANIFEST_SCHEMA, FileFacts, as_json, sha256_file
from bigtransfer.storage.places import Target, target_at
from bigtransfer.storage.s3 import S3Path

_PORT = 29500
_RANKS = ("JOB_COMPLETION_INDEX", "PET_NODE_RANK")
"""Where an Indexed Job and Kubeflow Trainer say which node this is."""
_JOIN_SECONDS = 1800.0
"""After this, a node whose peers do not come gives its accelerators back, and tries again."""
_ASK_SECONDS = 3.0
_LOOK_SECONDS = 2.0
_SAY_SECONDS = 60.0
_MISSED = 5
"""Looks in a row at which node 0 does not answer, until it counts as lost."""
_REFUSED = (2, 3, 4)
_LOST = InfrastructureError.exit_code
_KILLED = 137


@dataclass
class Presence:
    """What this node says to those who ask: `node <n> <state>`, one line.

    Node 0 asks each node by its own word; only then may that node begin, so that a node that came
    anew never joins what is left of the attempt before.
    """

    port: int
    number: int
    address: str = ""
    """Where it listens; empty: on every address."""
    state: str = "waiting"
    counted: threading.Event = field(default_factory=threading.Event)
    """Set when node 0 has asked."""

    def open(self) -> None:
        """Listen, in a thread of its own.

        Raises:
            InfrastructureError: If the port is taken.
        """
        try:
            server = socket.create_server((self.address, self.port), backlog=1024)
        except OSError as error:
            raise InfrastructureError(f"port {self.port} cannot be opened ({error})") from error
        threading.Thread(target=self._serve, args=(server,), daemon=True).start()

    def _serve(self, server: socket.socket) -> None:
        while True:
            with suppress(OSError):
                asking, _ = server.accept()
                with asking:
                    asking.settimeout(_ASK_SECONDS)
                    if asking.recv(16).startswith(b"count"):
                        self.counted.set()
                    asking.sendall(f"node {self.number} {self.state}\n".encode())


def ask(host: str, port: int, word: str = "look") -> str:
    """Return the state of a node; empty if it does not answer."""
    try:
        with socket.create_connection((host, port), timeout=_ASK_SECONDS) as asked:
            asked.sendall(f"{word}\n".encode())
            said = asked.recv(64).decode("ascii", "replace").split()
    except OSError:
        return ""
    return said[2] if len(said) == 3 and said[0] == "node" else ""


@dataclass(frozen=True)
class Nodes:
    """All nodes, by their names."""

    hosts: tuple[str, ...]
    port: int

    def state(self, number: int, word: str = "look") -> str:
        """Return the state of one of them; empty if it does not answer."""
        return ask(self.hosts[number], self.port, word)

    def absent(self, own: int, word: str = "look") -> list[int]:
        """Return the numbers of those that do not answer."""
        others = [number for number in range(len(self.hosts)) if number != own]
        found: dict[int, str] = {}

        def look(number: int) -> None:
            found[number] = self.state(number, word)

        threads = [threading.Thread(target=look, args=(n,), daemon=True) for n in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [number for number in others if not found.get(number)]


def gather(nodes: Nodes, own: Presence, say: Callable[[str], None]) -> None:
    """Wait until all nodes are there.

    Raises:
        InfrastructureError: If they do not come in time.
    """
    deadline = time.monotonic() + _JOIN_SECONDS
    for waited in _looks():
        if own.number == 0:
            missing = nodes.absent(0, "count")
        else:
            ready = own.counted.is_set() and nodes.state(0) == "going"
            missing = [] if ready else [0]
        if not missing:
            own.state = "going"
            return
        names = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        whom = f"node{'s' * (len(missing) > 1)} {names}"
        if time.monotonic() > deadline:
            raise InfrastructureError(
                f"{whom} of {len(nodes.hosts)} did not come within {_JOIN_SECONDS / 60:.0f} "
                "minutes; all begin again"
            )
        if waited:
            say(f"waits for {whom} of {len(nodes.hosts)}")


def _looks() -> Iterator[bool]:
    """Yield at each look whether it is time to say something."""
    said = time.monotonic()
    while True:
        now = time.monotonic()
        if due := now - said > _SAY_SECONDS:
            said = now
        yield due
        time.sleep(_LOOK_SECONDS)


def run_workers(line: list[str], nodes: Nodes, number: int, processes: int, grace: int) -> int:
    """Run this node's processes by `torchrun` and return the code that tells why they ended.

    Args:
        line: After `python`: `-m components.pretrain …`.
        nodes: All of them.
        number: Of this node.
        processes: On each node.
        grace: Seconds that the pod has after SIGTERM.
    """
    # Workers get all of it but a second, in which this program ends.
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(max(1, grace - 1))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    arguments = [
        "--nnodes", str(len(nodes.hosts)), "--nproc-per-node", str(processes),
        "--node-rank", str(number), "--rdzv-backend", "static", "--max-restarts", "0",
        "--master-addr", nodes.hosts[0], "--master-port", str(nodes.port - 1), *line,
    ]  # fmt: skip
    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except SignalException:
        return _LOST
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return code_of(codes, lambda: nodes.absent(number))
    except (ConnectionError, TimeoutError, RuntimeError) as error:
        # torchrun's own store, not a worker: node 0 is gone.
        print(f"node {number}: torchrun: {error}", file=sys.stderr, flush=True)
        return _LOST if nodes.absent(number) else 1
    return 0


def code_of(codes: Mapping[int, int], absent: Callable[[], list[int]]) -> int:
    """Return the exit code of a node whose workers failed.

    Args:
        codes: Rank -> its exit code; a signal is negative.
        absent: Which other nodes are gone.
    """
    said = set(codes.values())
    for code in (*_REFUSED, _LOST):
        if code in said:
            return code
    if absent():  # NCCL's watchdog aborts a process whose peer is gone
        return _LOST
    first = next(iter(codes.values()), 1)
    return first if first > 0 else 128 - first


def send(out: Path, results: Target) -> None:
    """Send what was written, the manifest last.

    Raises:
        BigTransferError: If the bucket does not take it.
    """
    files: dict[str, FileFacts] = {}
    for path in sorted(one for one in out.rglob("*") if one.is_file()):
        name = path.relative_to(out).as_posix()
        files[name] = FileFacts(bytes=path.stat().st_size, sha256=sha256_file(path))
        results.put(name, path)
    manifest = as_json({"schema": MANIFEST_SCHEMA, "files": files})
    results.put_bytes(MANIFEST_NAME, manifest.encode())


def is_sent(results: Target) -> bool:
    """Say whether all that was written is in the bucket."""
    return results.get(MANIFEST_NAME) is not None


def wait_until_sent(nodes: Nodes, results: Target) -> int:
    """Wait until node 0 has sent what was written; return the code to end with."""
    missed = 0
    for _ in _looks():
        if is_sent(results):
            return 0
        missed = 0 if nodes.state(0) else missed + 1
        if missed >= _MISSED:
            return _LOST
    raise AssertionError("never")


def main() -> None:
    """Do what the command line says, and end with a code that Kubernetes can judge by."""
    arguments = _parser().parse_args()
    line = arguments.line[1:] if arguments.line[:1] == ["--"] else arguments.line
    number = _number(arguments.nodes)
    said = f"node {number}"

    def say(text: str) -> None:
        print(f"{said}: {text}", file=sys.stderr, flush=True)

    _end_at_a_signal()
    try:
        code = _take_part(arguments, line, number, say)
    except BigTransferError as error:
        say(f"{error} [exit {error.exit_code}]")
        code = error.exit_code
    if code == _LOST:
        say("another node is gone, or it was asked to end; it goes on from the last checkpoint")
    elif code == _KILLED:
        say("a process was killed (SIGKILL): out of memory, most likely")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads that serve, and torch's, would hold the process


def _end_at_a_signal() -> None:
    """End when asked to, where no worker runs: for process 1 the kernel has no default for that."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_LOST))


def _take_part(
    arguments: argparse.Namespace, line: list[str], number: int, say: Callable[[str], None]
) -> int:
    address = arguments.results
    place = S3Path.parse(address) if "://" in address else Path(address)
    results = target_at(place)
    if is_sent(results):
        say(f"all of it is done already: {address}")
        return 0
    hosts = tuple(arguments.host.format(one) for one in range(arguments.nodes))
    nodes = Nodes(hosts, arguments.port + 1)
    presence = Presence(nodes.port, number, arguments.listen.format(number))
    presence.open()
    gather(nodes, presence, say)
    began = time.monotonic()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    say(f"all {arguments.nodes} nodes are there; {arguments.processes} processes begin on each")
    code = run_workers(line, nodes, number, arguments.processes, arguments.grace)
    _end_at_a_signal()  # torchrun has its own
    if code:
        presence.state = "failed"
        return code
    if number:
        return wait_until_sent(nodes, results)
    send(out, results)
    say(f"done in {time.monotonic() - began:.0f} s, sent to {address}")
    return 0


def _number(nodes: int) -> int:
    text = next(filter(None, map(os.environ.get, _RANKS)), "")
    if not text.isdecimal() or int(text) >= nodes:
        names = " or ".join(_RANKS)
        print(f"{names} must say which of {nodes} nodes this is, not {text!r}", file=sys.stderr)
        sys.exit(ConfigError.exit_code)
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bigtransfer.kubeflow.node", description=(
        "Run one node's share of a component."), allow_abbrev=False)  # fmt: skip
    add = parser.add_argument
    add("--nodes", type=int, required=True, metavar="N", help="in all")
    add("--processes", type=int, required=True, metavar="N", help="on each")
    add("--host", required=True, metavar="NAME", help="of a node, {} for its number")
    add("--port", type=int, default=_PORT, metavar="N", help="of the rendezvous, and the next one")
    add("--listen", default="", metavar="ADDRESS", help="for other nodes (default: everywhere)")
    add("--results", required=True, metavar="ADDRESS", help="where node 0 sends what was written")
    add("--out", required=True, metavar="DIR", help="where the component writes")
    add("--grace", type=int, default=30, metavar="SECONDS", help="between SIGTERM and the end")
    add("line", nargs=argparse.REMAINDER, help="-- -m components.pretrain …")
    return parser


if __name__ == "__main__":
    main()
