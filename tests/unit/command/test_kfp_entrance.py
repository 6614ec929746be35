"""Which words of `kfp` are ours, and what is said without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bigtransfer.command import doctor
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


def test_a_script_of_kubeflows_own_is_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.sys, "executable", str(tmp_path / "python"))
    assert "is not there" in doctor.kfp_script().text
    (tmp_path / "kfp").write_text("from kfp.cli.__main__ import main\n")
    found = doctor.kfp_script()
    assert not found.good
    assert "`bigtransfer doctor --repair`" in found.text


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
