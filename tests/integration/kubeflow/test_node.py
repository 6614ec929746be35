"""Process 1 of a launched pod, as real processes that stand for nodes: their codes, their grace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.project import environment
from fixtures.servers import reserved_port

WORKER = """
import json, os, signal, sys, time
from pathlib import Path
out, what = Path(sys.argv[1]), json.loads(sys.argv[2])
node = os.environ["GROUP_RANK"]
def saved(*_):
    time.sleep(what.get("saves_for", 0))
    print(f"worker of node {node} has saved", flush=True)
    os._exit(75)
signal.signal(signal.SIGTERM, saved)
print(f"worker of node {node} of {os.environ['WORLD_SIZE']} began", flush=True)
time.sleep(what.get("seconds", {}).get(node, 0))
(out / "checkpoint").mkdir(parents=True, exist_ok=True)
(out / "checkpoint" / f"of-{node}").write_text(node)
how = what.get("codes", {}).get(node, 0)
os.kill(os.getpid(), -how) if how < 0 else os._exit(how)
"""


class Nodes:
    """Nodes that have an address of loopback each; node i writes into its own folder."""

    def __init__(self, folder: Path, port: int, count: int = 2) -> None:
        self.folder, self.port, self.count = folder, port, count
        self.script = folder / "worker.py"
        self.script.write_text(WORKER)
        self.results = folder / "results"
        self.running: list[subprocess.Popen[str]] = []

    def start(self, number: int, **what: object) -> subprocess.Popen[str]:
        out = self.folder / f"out-{number}-{len(self.running)}"
        line = [
            sys.executable, "-m", "bigtransfer.kubeflow.node", "--nodes", str(self.count),
            "--processes", "1", "--host", "127.0.9.{}", "--listen", "127.0.9.{}",
            "--port", str(self.port), "--results", str(self.results), "--out", str(out),
            "--grace", "20", "--", str(self.script), str(out), json.dumps(what),
        ]  # fmt: skip
        made = subprocess.Popen(
            line, env={**environment(), "JOB_COMPLETION_INDEX": str(number)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.running.append(made)
        return made

    def end(self) -> None:
        for one in self.running:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
                one.wait()
            assert one.stdout is not None
            one.stdout.close()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with reserved_port() as port:
        made = Nodes(tmp_path, port)
        yield made
        made.end()


def over(*processes: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """Return the code and the words of processes that end."""
    return [(p.wait(60), p.communicate()[0]) for p in processes]


def begun(process: subprocess.Popen[str]) -> None:
    """Wait until a worker of a node has begun."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "began" in line:
            return
    raise AssertionError("".join(said))


def test_both_end_when_node_0_has_sent_what_was_written(nodes: Nodes) -> None:
    late = nodes.start(1)
    time.sleep(1)
    (zero, said), (one, _) = over(nodes.start(0), late)
    assert (zero, one) == (0, 0), said
    listed = json.loads((nodes.results / "MANIFEST.json").read_text())["files"]
    assert list(listed) == ["checkpoint/of-0"], "node 0 alone sends"
    assert "sent to" in said
    # A pod that is made anew after that has nothing to do, and waits for nobody.
    ((again, words),) = over(nodes.start(1))
    assert again == 0 and "done already" in words


@pytest.mark.parametrize("code", [2, 3])
def test_a_refusal_is_handed_on(code: int, nodes: Nodes) -> None:
    codes = {"0": code, "1": 75}
    (zero, _), (one, said) = over(nodes.start(0, codes=codes), nodes.start(1, codes=codes))
    assert (zero, one) == (code, 75)
    assert not nodes.results.exists() or not any(nodes.results.iterdir())
    assert "another node is gone" in said


def test_an_abort_is_a_lost_peer_where_one_is_gone(nodes: Nodes) -> None:
    what = {"seconds": {"0": 4, "1": 60}, "codes": {"0": -signal.SIGABRT}}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    begun(one)
    os.killpg(one.pid, signal.SIGKILL)
    ((code, said),) = over(zero)
    assert code == 75, said


def test_an_abort_of_its_own_is_a_failure(nodes: Nodes) -> None:
    what = {"seconds": {"1": 60}, "codes": {"0": -signal.SIGABRT}}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    ((code, said),) = over(zero)
    assert code == 128 + signal.SIGABRT, said
    assert one.poll() is None


def test_workers_have_all_the_time_that_the_pod_has(nodes: Nodes) -> None:
    what = {"seconds": {"0": 60, "1": 60}, "saves_for": 4}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    begun(zero)
    began = time.monotonic()
    zero.terminate()
    ((code, said),) = over(zero)
    assert code == 75
    assert "worker of node 0 has saved" in said
    assert 3.5 < time.monotonic() - began < 15
    one.terminate()
    assert over(one)[0][0] == 75


def test_node_0_lost_before_it_has_sent_takes_the_others_along(nodes: Nodes) -> None:
    what = {"seconds": {"0": 60}}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    begun(one)
    os.killpg(zero.pid, signal.SIGKILL)
    ((code, _),) = over(one)
    assert code == 75


def test_a_node_that_waits_ends_when_asked(nodes: Nodes) -> None:
    zero = nodes.start(0)
    time.sleep(2)
    zero.terminate()
    assert over(zero)[0][0] == 75


def test_a_node_must_know_its_number(nodes: Nodes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bigtransfer.kubeflow.node", "--nodes", "2", "--processes", "1",
         "--host", "x-{}", "--results", str(nodes.results), "--out", "o", "--", "x.py"],
        env={**environment(), "JOB_COMPLETION_INDEX": "2"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "JOB_COMPLETION_INDEX or PET_NODE_RANK must say which of 2 nodes this is, not '2'\n"
    )
