"""Promotion and rollback on a real registry: gates, one writer, kills, records."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.artifacts.cells import Origin
from bigtransfer.config import GateRules
from bigtransfer.errors import GateError, InfrastructureError, TrackingError
from bigtransfer.track import promotion
from bigtransfer.track.auditing import audited
from bigtransfer.track.promotion import promote, rollback
from bigtransfer.track.versions import split_address
from bigtransfer.track.watching import Watcher
from bigtransfer.track.withdrawal import withdraw
from fixtures.project import PROJECT
from fixtures.registered import NAME, aliases, answers, evidence, propose


@pytest.fixture
def two(tracked: Path, model_folder: Path) -> Path:
    """A champion, and a better challenger."""
    propose(tracked, model_folder, "d1", 0.7)
    propose(tracked, model_folder, "d2", 0.8)
    return tracked


def go(project: Path, wanted: str = "challenger", **changes: Any) -> promotion.Promotion:
    given: dict[str, Any] = {"rules": GateRules(), "by": "ada (claimed)", "because": "", **changes}
    rules = given.pop("rules")
    return promote(project, NAME, wanted, rules, **given)


def test_a_better_challenger_becomes_champion_and_rollback_undoes_it(
    two: Path, client: Any
) -> None:
    found = go(two)
    assert (found.version, found.replaced) == ("2", "1")
    assert aliases(client) == {"champion": "2", "previous": "1"}
    tags = client.get_model_version(NAME, "2").tags
    assert tags["gates"] == "passed"
    assert tags["gate.compare"].startswith("pass: not worse by 1 points: +")
    assert go(two, "2").gates == [], "it is the champion already"
    back = rollback(two, NAME, by="ada (claimed)", because="too slow")
    assert (back.version, back.replaced) == ("1", "2")
    assert aliases(client) == {"champion": "1", "previous": "2"}
    assert audited(two, []) == {NAME: (3, [])}


def test_a_refused_version_leaves_every_alias_and_says_why_on_itself(
    two: Path, model_folder: Path, client: Any
) -> None:
    propose(two, model_folder, "d3", 0.68)
    before = aliases(client)
    with pytest.raises(GateError, match=r"version 3 is not promoted: compare: not worse by 1"):
        go(two)
    assert aliases(client) == before == {"champion": "1", "challenger": "3"}
    assert client.get_model_version(NAME, "3").tags["gates"].startswith("refused: compare")
    waived = go(two, because="the lead wants it", waives_comparison=True)
    assert [g.verdict for g in waived.gates if g.name == "compare"] == ["waived"]
    record = json.loads(client.get_registered_model(NAME).tags["bigtransfer.record.000002"])
    assert record["gates"]["compare"].startswith("waived: ")
    assert (record["by"], record["because"]) == ("ada (claimed)", "the lead wants it")


@pytest.mark.parametrize("kept", ["checkpoint", "report", "audit", "model"])
def test_a_flipped_byte_in_what_was_registered_is_found(kept: str, two: Path, client: Any) -> None:
    version = client.get_model_version(NAME, "2")
    if kept == "model":
        logged = client.get_logged_model(version.source.removeprefix("models:/"))
        root = Path(logged.artifact_location.removeprefix("file://"))
    else:
        root = Path(client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")) / kept
    file = max((p for p in root.rglob("*") if p.is_file() and p.name != "MANIFEST.json"),
               key=lambda p: p.stat().st_size)  # fmt: skip
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(GateError, match=f"digests: its {kept} is not as it was registered"):
        go(two, because="at any price", waives_comparison=True)
    shutil.rmtree(root)
    with pytest.raises(
        GateError, match=rf"its {kept} is not as it was registered: .*not there any"
    ):
        go(two)
    assert aliases(client) == {"champion": "1", "challenger": "2"}


@pytest.mark.parametrize("kept", ["checkpoint", "report", "audit", "model"])
def test_a_digest_that_is_gone_is_no_proof(kept: str, two: Path, client: Any) -> None:
    client.delete_model_version_tag(NAME, "2", f"bigtransfer.{kept}_digest")
    with pytest.raises(GateError, match=f"digests: no digest is noted of its {kept}"):
        go(two, because="at any price", waives_comparison=True)
    assert aliases(client) == {"champion": "1", "challenger": "2"}


def test_published_weights_must_be_pinned(tracked: Path, model_folder: Path, client: Any) -> None:
    origin = Origin(file="BiT-M-R50x1.npz", sha256="a" * 64)
    first = propose(tracked, model_folder, "d1", origin=origin)
    assert "nobody pinned the weights" in first.reason
    found = go(tracked, rules=GateRules(pinned=("a" * 64,)))
    assert found.version == "1"
    assert "as pinned" in client.get_model_version(NAME, "1").tags["gate.upstream"]


def test_a_champion_of_older_code_cannot_be_compared(two: Path, client: Any) -> None:
    for tag in ("bigtransfer.report_digest", "bigtransfer.audit_digest", "bigtransfer.upstream"):
        client.delete_model_version_tag(NAME, "1", tag)
    with pytest.raises(
        GateError, match="v1 keeps no answers on validation images; `bigtransfer measure`"
    ):
        go(two)
    assert go(two, because="it must go", waives_comparison=True).version == "2"


@pytest.mark.parametrize(
    ("name", "wanted", "said"),
    [
        ("bigtransfer-e", "challenger", r"no registered model 'bigtransfer-e'; did you mean "
         r"'bigtransfer-d'\?; registered are bigtransfer-d"),
        (NAME, "candidate", r"no version or alias 'candidate'; its aliases are champion \(v2\)"),
        (NAME, "17", "no version or alias '17'"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_line(
    name: str, wanted: str, said: str, two: Path, client: Any
) -> None:
    go(two)
    client.delete_registered_model_alias(NAME, "previous")
    with pytest.raises(TrackingError, match=said):
        promote(two, name, wanted, GateRules(), by="", because="")
    with pytest.raises(TrackingError, match="nothing was champion before"):
        rollback(two, NAME, by="", because="")


def test_a_champion_that_was_moved_while_a_version_was_judged_is_judged_against(
    two: Path, model_folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose(two, model_folder, "d3", 0.9)
    judge, asked = promotion.judge, []

    def meanwhile(rules: Any, contender: Any, champion: Any, **more: Any) -> Any:
        asked.append(champion.version)
        if len(asked) == 1:
            client.set_registered_model_alias(NAME, "champion", "2")
        return judge(rules, contender, champion, **more)

    monkeypatch.setattr(promotion, "judge", meanwhile)
    assert go(two, "3").replaced == "2"
    assert asked == ["1", "2"]
    assert aliases(client) == {"champion": "3", "previous": "2"}


@pytest.mark.parametrize("after", range(1, 7))
def test_a_kill_on_the_way_is_finished_by_the_next(
    after: int, two: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    done = []
    changes = ("set_registered_model_alias", "delete_registered_model_alias",
               "set_registered_model_tag", "delete_registered_model_tag")  # fmt: skip
    with monkeypatch.context() as patch:
        for name in changes:
            real = getattr(mlflow.MlflowClient, name)

            def counted(own: Any, *given: Any, real: Any = real) -> Any:
                if len(done) == after:
                    raise KeyboardInterrupt
                done.append(given)
                return real(own, *given)

            patch.setattr(mlflow.MlflowClient, name, counted)
        with pytest.raises(KeyboardInterrupt):
            go(two)
    assert "champion" in aliases(client), "never an instant without one"
    assert go(two, "2").version == "2"
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert audited(two, [NAME]) == {NAME: (2, [])}
    assert "bigtransfer.moving" not in client.get_registered_model(NAME).tags


def test_records_that_were_changed_are_missing_or_cut_off_are_named(two: Path, client: Any) -> None:
    go(two)
    rollback(two, NAME, by="ada (claimed)", because="")
    tags = client.get_registered_model(NAME).tags
    second = tags["bigtransfer.record.000002"]

    def faults() -> list[str]:
        return audited(two, [NAME])[NAME][1]

    client.set_registered_model_tag(NAME, "bigtransfer.record.000002", second.replace("ada", "eve"))
    assert "record 3 does not follow the one before: one was changed" in faults()
    client.delete_registered_model_tag(NAME, "bigtransfer.record.000002")
    assert "record 2 is missing" in faults()
    client.set_registered_model_tag(NAME, "bigtransfer.record.000002", second)
    assert faults() == []
    third = tags["bigtransfer.record.000003"]
    client.delete_registered_model_tag(NAME, "bigtransfer.record.000003")
    assert "record 3 is missing" in faults()
    digest = json.loads(third)["before"]
    client.set_registered_model_tag(NAME, "bigtransfer.records", f"2:{digest}")
    assert any("goes on to record 3" in fault for fault in faults())
    client.set_registered_model_tag(NAME, "bigtransfer.record.000003", third)
    client.set_registered_model_tag(NAME, "bigtransfer.records", tags["bigtransfer.records"])
    assert faults() == []
    client.delete_run(client.get_model_version(NAME, "2").run_id)
    assert faults() == [], "records outlive runs"
    client.set_registered_model_alias(NAME, "champion", "2")
    assert faults() == ["no record explains champion v2"]


PROMOTER = f"""
import sys
from pathlib import Path
from bigtransfer.config import GateRules
from bigtransfer.errors import BigTransferError
from bigtransfer.track.promotion import promote
print("ready", flush=True)
for line in sys.stdin:
    try:
        promote(Path.cwd(), {NAME!r}, line.strip(), GateRules(), by="a", because="")
        print(0, flush=True)
    except BigTransferError as error:
        print(error.exit_code, error, flush=True)
"""
PAIRS = 2 * int(os.environ.get("BIGTRANSFER_TEST_TIMES", "1"))
"""`make test-long` tries twenty."""


def test_processes_that_promote_at_once_are_decided_one_after_the_other(
    two: Path, model_folder: Path, client: Any
) -> None:
    propose(two, model_folder, "d3", 0.9)
    seen, stop = [], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(aliases(client).get("champion"))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    processes = [
        subprocess.Popen([sys.executable, "-c", PROMOTER], cwd=two, text=True, env=environment(),
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    outcomes = []
    for number in range(PAIRS):
        for process, version in zip(processes, ("23", "32")[number % 2], strict=True):
            process.stdin.write(f"{version}\n")
            process.stdin.flush()
        said = [process.stdout.readline() for process in processes]
        outcomes.append(sorted(line[0] for line in said))
        assert outcomes[-1] in (["0", "0"], ["0", "3"]), said
        assert aliases(client)["champion"] == "3"
        back = GateRules(class_floor=False)
        promote(two, NAME, "1", back, by="a", because="again", waives_comparison=True)
    for process in processes:
        process.stdin.close()
        process.wait()
        process.stdout.close()
    stop.set()
    watcher.join()
    assert None not in seen
    count, wrong = audited(two, [NAME])[NAME]
    assert wrong == []
    promoted = sum(outcome.count("0") for outcome in outcomes)
    assert count == 1 + promoted + PAIRS


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "MLFLOW_TRACKING_URI": ""}


def test_the_first_of_a_validation_split_of_its_own(tracked: Path, model_folder: Path) -> None:
    propose(tracked, model_folder, "d1", 0.7)
    other = evidence(validation_digest="w" * 64)
    propose(tracked, model_folder, "d2", 0.9, says=other, given=answers(0.9))
    with pytest.raises(GateError, match="its validation images are not those of v1"):
        go(tracked)


def test_a_project_without_a_registry_is_left_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match="has none; call this in the project's own folder"):
        promote(tmp_path, NAME, "1", GateRules(), by="", because="")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_another_holds_is_to_be_tried_again(two: Path, client: Any) -> None:
    before = aliases(client)
    holder = sqlite3.connect(two / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    line = [sys.executable, "-m", "bigtransfer.command", "promote", NAME]
    held = subprocess.run(
        line, cwd=two, env=environment(), capture_output=True, text=True, check=False
    )
    holder.rollback()
    holder.close()
    assert held.returncode == 75, held.stderr
    assert "its database is held by another process" in held.stderr
    assert "Traceback" not in held.stderr
    assert aliases(client) == before


def test_a_server_that_is_away_or_refuses_us_is_one_line(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InfrastructureError, match="does not answer: .*; try again later"):
        go(two)
    for code, cure in (("UNAUTHENTICATED", "set MLFLOW_TRACKING_USERNAME"),
                       ("ENDPOINT_NOT_FOUND", "of version 3 or later")):  # fmt: skip

        def refuse(project: Path, code: str = code) -> Any:
            from mlflow.protos import databricks_pb2

            raise MlflowException("no", error_code=databricks_pb2.ErrorCode.Value(code))

        monkeypatch.setattr(promotion, "open_registry", refuse)
        with pytest.raises(TrackingError, match=cure):
            go(two)


def test_a_version_that_was_deleted_is_one_line(two: Path, client: Any) -> None:
    go(two)
    client.delete_model_version(NAME, "1")
    with pytest.raises(TrackingError, match="nothing was champion before"):
        rollback(two, NAME, by="", because="")
    assert aliases(client) == {"champion": "2"}
    assert audited(two, [NAME]) == {NAME: (2, [])}


def test_a_server_that_takes_connections_and_says_nothing_is_one_line(
    two: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = aliases(client)
    with socket.create_server(("127.0.0.1", 0)) as silent, monkeypatch.context() as own:
        own.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        own.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        own.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        began = time.monotonic()
        for attempt in (
            lambda: go(two),
            lambda: rollback(two, NAME, by="", because=""),
            lambda: withdraw(two, NAME, "1", by="", because="x"),
            lambda: audited(two, []),
        ):
            with pytest.raises(InfrastructureError, match="does not answer") as refused:
                attempt()
            assert "\n" not in str(refused.value)
        assert time.monotonic() - began < 30
    assert aliases(client) == before


@pytest.mark.parametrize(
    "name", ["Größe 1, é's", '"; drop table models; --', "日本 100%", "both ' and \""]
)
def test_a_model_of_an_odd_name_is_promoted_and_one_that_is_not_there_is_one_line(
    name: str, tracked: Path, model_folder: Path, client: Any
) -> None:
    with pytest.raises(TrackingError) as refused:
        promote(tracked, name, "1", GateRules(), by="", because="")
    assert f"there is no registered model {name!r}" in str(refused.value)
    assert "\n" not in str(refused.value)
    for digest, share in (("d1", 0.8), ("d2", 0.83)):
        propose(tracked, model_folder, digest, share, name=name)
    client.set_registered_model_alias(name, "candidate", "2")
    said: list[str] = []
    Watcher(tracked, GateRules(), "revert", said.append).look()
    assert said == [f"{name} version 2 is champion, version 1 is previous"]
    rollback(tracked, name, by="ada (claimed)", because="")
    assert audited(tracked, []) == {name: (3, [])}
    assert split_address(f"models:/{name}@champion") == (name, "champion")
