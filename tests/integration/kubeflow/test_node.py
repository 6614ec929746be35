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
from typing import Any

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

    def start(self, number: int, **what: Any) -> subprocess.Popen[str]:
        out = self.folder / f"out-{number}-{len(self.running)}"
        most = what.pop("most_soon", 10)
        code = f"from bigtransfer.kubeflow import node; node._MOST_SOON = {most}; node.main()"
        line = [
            sys.executable, "-c", code, "--nodes", str(self.count),
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


def until(process: subprocess.Popen[str], words: str) -> None:
    """Wait until a node says something."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if words in line:
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


@pytest.mark.parametrize("code", [3, pytest.param(2, marks=pytest.mark.long)])
def test_a_refusal_is_handed_on_and_the_others_wait_to_be_ended(code: int, nodes: Nodes) -> None:
    codes = {"0": code, "1": 75}
    zero, one = nodes.start(0, codes=codes), nodes.start(1, codes=codes)
    assert over(zero)[0][0] == code
    until(one, "all begin again when all are there")
    one.terminate()  # as the Job's controller does with FailJob
    assert over(one)[0][0] == 75
    assert not nodes.results.exists() or not any(nodes.results.iterdir())


def test_an_abort_is_a_lost_peer_where_one_is_gone_and_it_begins_again_in_place(
    nodes: Nodes,
) -> None:
    lost = {"seconds": {"0": 4, "1": 60}, "codes": {"0": -signal.SIGABRT}}
    zero, one = nodes.start(0, **lost), nodes.start(1, **lost)
    until(one, "began")
    os.killpg(one.pid, signal.SIGKILL)
    until(zero, "all begin again when all are there")
    assert zero.poll() is None, "its pod, its image, its checkpoints stay"
    again = nodes.start(1, seconds={"1": 60})
    until(again, "worker of node 1 of 2 began")
    again.terminate(), zero.terminate()
    assert [code for code, _ in over(again, zero)] == [75, 75]


@pytest.mark.long
def test_an_abort_of_its_own_is_a_failure(nodes: Nodes) -> None:
    what = {"seconds": {"1": 60}, "codes": {"0": -signal.SIGABRT}}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    ((code, said),) = over(zero)
    assert code == 128 + signal.SIGABRT, said
    assert one.poll() is None


@pytest.mark.long
def test_a_failure_of_its_own_is_one_whatever_becomes_of_the_others(nodes: Nodes) -> None:
    what = {"seconds": {"0": 3}, "codes": {"0": 1, "1": 75}}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    ((code, said),) = over(zero)
    assert code == 1, said
    assert one.poll() is None, "it waits for node 0 to come back"


@pytest.mark.long
def test_workers_have_all_the_time_that_the_pod_has(nodes: Nodes) -> None:
    what = {"seconds": {"0": 60, "1": 60}, "saves_for": 4}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    until(zero, "began")
    began = time.monotonic()
    zero.terminate()
    ((code, said),) = over(zero)
    assert code == 75
    assert "worker of node 0 has saved" in said
    assert 3.5 < time.monotonic() - began < 15
    one.terminate()
    assert over(one)[0][0] == 75


@pytest.mark.long
def test_node_0_lost_before_it_has_sent_is_waited_for(nodes: Nodes) -> None:
    what = {"seconds": {"0": 60}}
    zero, one = nodes.start(0, **what), nodes.start(1, **what)
    until(one, "began")
    os.killpg(zero.pid, signal.SIGKILL)
    until(one, "all begin again when all are there")
    again = nodes.start(0)
    assert [code for code, _ in over(again, one)] == [0, 0]
    assert (nodes.results / "MANIFEST.json").is_file()


@pytest.mark.long
def test_attempts_that_end_at_once_are_a_failure_in_the_end(nodes: Nodes) -> None:
    nodes.count = 1
    ((code, said),) = over(nodes.start(0, most_soon=2, codes={"0": 75}))
    assert code == 1 and "3 attempts in a row ended within 5 minutes [exit 1]" in said


def test_a_node_does_not_join_what_is_left_of_an_attempt_before() -> None:
    from bigtransfer.kubeflow import node

    with reserved_port() as port:
        old = node.Presence(port, 0, "127.0.9.8", state=node.GOING)
        old.open()
        assert node.ask("127.0.9.8", port, "count") == node.GOING
        assert not old.counted.is_set(), "who is at work is not counted for another attempt"
        old.wait_again()
        assert node.ask("127.0.9.8", port, "count") == node.WAITING
        assert old.counted.is_set()
        hosts = node.Nodes(("127.0.9.8", "127.0.9.7"), port)
        assert hosts.others_not(node.WAITING, 0) == [1]
        assert node.judged(134, hosts, 0) == 75 and node.judged(137, hosts, 0) == 137
        assert node.judged(1, hosts, 0) == 1


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
        "JOB_COMPLETION_INDEX or PET_NODE_RANK must say which of 2 pods this is, not '2'\n"
    )
