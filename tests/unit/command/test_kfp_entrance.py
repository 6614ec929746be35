"""Which words of `kfp` are ours, and what is said without a cluster."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from bigtransfer.command import __main__ as command
from bigtransfer.command import doctor, kfp_hook
from bigtransfer.command import kfp as entrance
from fixtures.kfp_api import BIT_S, submit

pytestmark = pytest.mark.usefixtures("here")


def test_no_endpoint_names_the_ways_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(BIT_S) == 2
    said = capsys.readouterr().err
    assert all(way in said for way in ("KFP_ENDPOINT", "--endpoint", "--local", "`dvc repro`"))
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "is_ours"),
    [
        ("run submit pipelines/bit_l.py", True),
        ("run create pipelines/bit_l.py a=b", True),
        ("--endpoint http://x run submit a.py", True),
        ("run submit --help", True),
        ("run submit", True),
        ("run submit -e x -f y.yaml a=3", False),
        ("run create --experiment-name x --package-file y.yaml", False),
        ("run list", False),
        ("--version", False),
        ("dsl compile --py pipelines/bit_l.py --output x.yaml", False),
    ],
)
def test_all_else_stays_upstreams(line: str, is_ours: bool) -> None:
    assert (entrance.ours(line.split()) is not None) == is_ours


@pytest.mark.parametrize(
    ("line", "is_script"),
    [
        ("python /venv/bin/kfp run submit a.py", True),
        ("python -I -X importtime -Wd /venv/bin/kfp", True),
        (r"python.exe C:\venv\Scripts\KFP.EXE run", True),
        ("python", False),
        ("python train.py kfp", False),
        ("python /venv/bin/kfp-tools", False),
        ("python /src/kfp/train.py", False),
        ("python -m kfp", False),
        ("python -Im tool /venv/bin/kfp", False),
        ("python -c pass kfp", False),
        ("python -Bc pass kfp", False),
    ],
)
def test_the_hook_is_for_the_script_alone(line: str, is_script: bool) -> None:
    assert kfp_hook.is_script(line.split()) == is_script


def test_without_kubeflows_client_the_cure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kfp", None)  # as if it were not there
    with pytest.raises(SystemExit) as end:
        command.main(["kfp", "run", "submit", "pipelines/bit_l.py", "--local"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "kfp: Kubeflow Pipelines' client is not installed; `pip install 'bigtransfer[kfp]'`\n"
    )
    found = doctor.kfp_script()
    assert "bigtransfer[kfp]" in found.text and not found.needed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "submit", "--help"], "usage: kfp run submit"),
        (["-n", "ns", "run", "submit", "-h"], "usage: kfp run submit"),
        (["--help"], "Kubeflow Pipelines CLI."),
        (["dsl", "--help"], "Command group for compiling DSL"),
    ],
)
def test_bigtransfer_kfp_passes_every_word_on(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bigtransfer"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        command.main(["kfp", *words])
    assert end.value.code == 0
    assert said in capsys.readouterr().out


def test_stock_kfp_still_takes_a_vanished_container_for_a_success() -> None:
    """Fails once upstream has mended it: then `docker_runner._run_to_the_end` can go."""
    import docker
    from kfp.local import docker_task_handler

    class Container:
        def logs(self, stream: bool) -> list[bytes]:
            return []

        def wait(self) -> dict[str, int]:
            raise docker.errors.NotFound("it was removed as soon as it had failed")

    container = SimpleNamespace(run=lambda **_: Container())
    known = SimpleNamespace(tags=["busybox:1"], attrs={"RepoDigests": []})
    client = SimpleNamespace(images=SimpleNamespace(list=lambda: [known]), containers=container)
    said = docker_task_handler.run_docker_container(client, "busybox:1", ["false"], {})
    assert said == 0, "kfp no longer loses exit codes: remove our cure"
