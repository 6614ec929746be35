"""One writer at a time on a real MLflow server, which has no lock of its own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.config import GateRules
from bigtransfer.errors import LockError
from bigtransfer.track import lease
from bigtransfer.track.auditing import audited
from bigtransfer.track.lease import only_writer
from bigtransfer.track.promotion import promote, rollback
from fixtures.registered import NAME, aliases, propose
from fixtures.servers import MlflowServer

pytestmark = pytest.mark.xdist_group("mlflow server")


@pytest.fixture
def client(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lease")
    return mlflow.MlflowClient(mlflow_server.address)


def test_of_eight_writers_one_is_at_it_at_a_time(tmp_path: Path, client: Any) -> None:
    inside, most = [], []

    def write(number: int) -> None:
        with only_writer(tmp_path, client, "leased"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert most == [1] * 8
    assert "leased.writer" not in {model.name for model in client.search_registered_models()}


def test_a_writer_whose_answer_was_lost_finds_its_own_lease(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = client.create_registered_model

    def create_and_ask_again(*args: Any, **more: Any) -> Any:
        create(*args, **more)
        return create(*args, **more)  # as an HTTP client does where a connection broke

    monkeypatch.setattr(client, "create_registered_model", create_and_ask_again)
    monkeypatch.setattr(lease, "_PATIENCE", 1.0)
    with only_writer(tmp_path, client, "asked"):
        assert client.get_registered_model("asked.writer").tags
    assert "asked.writer" not in {model.name for model in client.search_registered_models()}


def test_a_lease_that_ended_while_it_was_looked_up_is_asked_for_again(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    create, refused = client.create_registered_model, []

    def refuse_once(*args: Any, **more: Any) -> Any:
        if not refused:
            refused.append(MlflowException("not found", RESOURCE_DOES_NOT_EXIST))
            raise refused[0]
        return create(*args, **more)

    monkeypatch.setattr(client, "create_registered_model", refuse_once)
    with only_writer(tmp_path, client, "ended"):
        assert refused and client.get_registered_model("ended.writer").tags


def test_a_dead_writer_is_passed_over_and_a_living_one_is_not(
    tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_PATIENCE", 1.0)
    tags = {"bigtransfer.owner": "gone:1", "bigtransfer.ends": str(time.time() + 60)}
    client.create_registered_model("held.writer", tags=tags)
    with pytest.raises(LockError, match="gone:1 holds the aliases of 'held'"):
        with only_writer(tmp_path, client, "held"):
            raise AssertionError("two at once")
    client.set_registered_model_tag("held.writer", "bigtransfer.ends", str(time.time() - 1))
    with only_writer(tmp_path, client, "held"):
        holder = client.get_registered_model("held.writer").tags["bigtransfer.owner"]
        assert not holder.startswith("gone")
    left = {model.name for model in client.search_registered_models()}
    assert not {name for name in left if name.startswith("held")}


def test_a_model_is_promoted_and_rolled_back_on_a_server(
    tmp_path: Path, client: Any, model_folder: Path
) -> None:
    propose(tmp_path, model_folder, "d1", 0.7)
    propose(tmp_path, model_folder, "d2", 0.8)
    found = promote(tmp_path, NAME, "challenger", GateRules(), by="ada (claimed)", because="")
    assert (found.version, found.replaced) == ("2", "1")
    rollback(tmp_path, NAME, by="ada (claimed)", because="")
    assert aliases(client) == {"champion": "1", "previous": "2"}
    assert audited(tmp_path, [NAME]) == {NAME: (3, [])}
