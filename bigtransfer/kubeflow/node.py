"""Process 1 of a launched pod: one node's share of a training, and its true end.

`torchrun` runs within this program (`torchrun`), which

- begins when all nodes are there and wait for this very attempt;
- where another node is lost, waits for its successor and begins again, in the same pod: its
  accelerators, its image and its checkpoints on the disk stay. A Job that made all pods anew would
  wait ten minutes after each loss, for it counts every failed pod in its pauses;
- hands on 2, 3 and 4 (the same again would be refused again) and what failed by itself; ends with
  75 when it is asked to end;
- gives workers all the time that the pod has after SIGTERM;
- on node 0 sends what was written to the bucket, its MANIFEST.json last, and on the others waits
  for that: a node that ended before could not come back if node 0 were lost while it sends.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bigtransfer.errors import BigTransferError, InfrastructureError
from bigtransfer.kubeflow.process_one import KILLED, SIGNALS, Child, leave, number_of
from bigtransfer.kubeflow.torchrun import LOST
from bigtransfer.storage import MANIFEST_NAME, MANIFEST_SCHEMA, FileFacts, as_json, sha256_file
from bigtransfer.storage.places import Target, target_at
from bigtransfer.storage.s3 import S3Path

_PORT = 29500
_JOIN_SECONDS = 1800.0
"""After this, a node whose peers do not come gives its accelerators back, and tries again."""
_ASK_SECONDS = 3.0
_LOOK_SECONDS = 2.0
_SAY_SECONDS = 60.0
_MISSED = 5
"""Looks in a row at which node 0 does not answer, until it counts as lost."""
_SOON_SECONDS = 300.0
_MOST_SOON = 10
"""Attempts in a row that end so soon, until it is no loss any more but a failure."""
WAITING, GOING, SENDING = "waiting", "going", "sending"


@dataclass
class Presence:
    """What this node says to those who ask: `node <n> <state>`, one line.

    Node 0 asks each node by its own word while it waits; only then may that node begin. So nobody
    joins what is left of an attempt before, whose processes may hang in an exchange for minutes.
    """

    port: int
    number: int
    address: str = ""
    """Where it listens; empty: on every address."""
    state: str = WAITING
    counted: threading.Event = field(default_factory=threading.Event)
    """Set when node 0 has asked in this attempt."""

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

    def wait_again(self) -> None:
        """Be ready for another attempt."""
        self.counted.clear()
        self.state = WAITING

    def _serve(self, server: socket.socket) -> None:
        while True:
            with suppress(OSError):
                asking, _ = server.accept()
                with asking:
                    asking.settimeout(_ASK_SECONDS)
                    if asking.recv(16).startswith(b"count") and self.state == WAITING:
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

    def others_not(self, state: str, own: int, word: str = "look") -> list[int]:
        """Return the numbers of those that are in another state, or do not answer."""
        others = [number for number in range(len(self.hosts)) if number != own]
        found: dict[int, str] = {}

        def look(number: int) -> None:
            found[number] = self.state(number, word)

        threads = [threading.Thread(target=look, args=(n,), daemon=True) for n in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [number for number in others if found.get(number) != state]


def gather(
    nodes: Nodes, own: Presence, is_done: Callable[[], bool], say: Callable[[str], None]
) -> bool:
    """Wait until all nodes wait for this attempt.

    Returns:
        Whether there is anything to do: False, if all of it has been sent meanwhile.

    Raises:
        InfrastructureError: If they do not come in time.
    """
    deadline = time.monotonic() + _JOIN_SECONDS
    for waited in _looks():
        try:
            if is_done():
                return False
        except InfrastructureError as error:
            if time.monotonic() > deadline:
                raise _CountedError(f"{error}; for {_JOIN_SECONDS / 60:.0f} minutes") from error
            if waited:
                say(str(error))
            continue
        if own.number == 0:
            missing = nodes.others_not(WAITING, 0, "count")
        else:
            ready = own.counted.is_set() and nodes.state(0) == GOING
            missing = [] if ready else [0]
        if not missing:
            own.state = GOING
            return True
        names = ", ".join(map(str, missing[:10])) + (" …" if len(missing) > 10 else "")
        whom = f"node{'s' * (len(missing) > 1)} {names}"
        if time.monotonic() > deadline:
            raise InfrastructureError(
                f"{whom} of {len(nodes.hosts)} did not come within {_JOIN_SECONDS / 60:.0f} "
                "minutes; its place is given back, and asked for again"
            )
        if waited:
            say(f"waits for {whom} of {len(nodes.hosts)}")
    raise AssertionError("never")


class _CountedError(BigTransferError):
    """A failure that Kubernetes counts: without an end it would be tried for ever."""

    exit_code = 1


def _looks() -> Iterator[bool]:
    """Yield at each look whether it is time to say something."""
    said = time.monotonic()
    while True:
        now = time.monotonic()
        if due := now - said > _SAY_SECONDS:
            said = now
        yield due
        time.sleep(_LOOK_SECONDS)


class Workers:
    """This node's processes of one attempt, by `torchrun`, in a process of its own."""

    def __init__(self, nodes: Nodes, number: int, processes: int, grace: int) -> None:
        self._line = [
            sys.executable, "-m", "bigtransfer.kubeflow.torchrun",
            "--nnodes", str(len(nodes.hosts)), "--nproc-per-node", str(processes),
            "--node-rank", str(number), "--rdzv-backend", "static", "--max-restarts", "0",
            "--master-addr", nodes.hosts[0], "--master-port", str(nodes.port - 1),
        ]  # fmt: skip
        # Workers get all of it but a moment, in which those above them end.
        self._environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(1, grace - 2))}
        self._child = Child()

    @property
    def asked_to_end(self) -> bool:
        """Whether the pod is."""
        return self._child.asked_to_end

    def run(self, line: list[str]) -> int:
        """Return the code that tells why they ended."""
        return self._child.run([*self._line, *line], self._environment)


def judged(code: int, nodes: Nodes, number: int) -> int:
    """Return the code to end with, of that of workers.

    NCCL's watchdog aborts a process whose peer is gone: a signal means a lost peer where any other
    node is not at work any more, and a failure of one's own where all are.
    """
    if code > SIGNALS and code != KILLED and nodes.others_not(GOING, number):
        return LOST
    return code


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


def is_sent_by_node_0(nodes: Nodes, results: Target) -> bool:
    """Wait until node 0 has sent what was written; return False if it is lost before."""
    missed = 0
    for _ in _looks():
        if is_sent(results):
            return True
        missed = 0 if nodes.state(0) in (GOING, SENDING) else missed + 1
        if missed >= _MISSED:
            return False
    raise AssertionError("never")


def main() -> None:
    """Do what the command line says, and end with a code that Kubernetes can judge by."""
    arguments = _parser().parse_args()
    line = arguments.line[1:] if arguments.line[:1] == ["--"] else arguments.line
    number = number_of(arguments.nodes)

    def say(text: str) -> None:
        print(f"node {number}: {text}", file=sys.stderr, flush=True)

    try:
        code = _take_part(arguments, line, number, say)
    except BigTransferError as error:
        say(f"{error} [exit {error.exit_code}]")
        code = error.exit_code
    leave(code, say)


def _take_part(
    arguments: argparse.Namespace, line: list[str], number: int, say: Callable[[str], None]
) -> int:
    address = arguments.results
    place = S3Path.parse(address) if "://" in address else Path(address)
    results = target_at(place)
    hosts = tuple(arguments.host.format(one) for one in range(arguments.nodes))
    nodes = Nodes(hosts, arguments.port + 1)
    workers = Workers(nodes, number, arguments.processes, arguments.grace)
    presence = Presence(nodes.port, number, arguments.listen.format(number))
    presence.open()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    soon = 0
    while gather(nodes, presence, lambda: is_sent(results), say):
        began = time.monotonic()
        say(f"all {arguments.nodes} nodes are there; {arguments.processes} processes begin on each")
        code = judged(workers.run(line), nodes, number)
        took = time.monotonic() - began
        if workers.asked_to_end:
            say("was asked to end; another pod goes on from the last checkpoint")
            return LOST
        if code == 0 and number == 0:
            presence.state = SENDING
            send(out, results)
            say(f"done in {took:.0f} s, sent to {address}")
            return 0
        if code == 0 and is_sent_by_node_0(nodes, results):
            return 0
        if code not in (0, LOST):
            return code
        soon = soon + 1 if took < _SOON_SECONDS else 0
        if soon > _MOST_SOON:
            say(f"{soon} attempts in a row ended within {_SOON_SECONDS / 60:.0f} minutes [exit 1]")
            return 1
        presence.wait_again()
        say("another node is lost, or the world outside failed; all begin again when all are there")
    say(f"all of it is done already: {address}")
    return 0


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
