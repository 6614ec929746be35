"""A server with login on PostgreSQL: who may move what, by REST, by command and in the browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.config import GateRules
from bigtransfer.errors import GateError
from bigtransfer.track.promotion import audited, promote
from bigtransfer.track.records import records_of
from fixtures.login import PASSWORDS
from fixtures.project import environment
from fixtures.registered import NAME, aliases, evidence, propose
from fixtures.servers import MlflowServer

pytestmark = pytest.mark.xdist_group("login")
SECONDS = 60.0
SHOTS = os.environ.get("BIGTRANSFER_SCREENSHOTS")


def log_in(monkeypatch: pytest.MonkeyPatch, server: MlflowServer, user: str) -> Any:
    """Be somebody from here on; return a client."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[user])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return mlflow.MlflowClient(server.address)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def three(login_server: MlflowServer, project: Path) -> Path:
    """Three versions that `ada` registered, the loop's champion among them."""
    from bigtransfer.storage import new_folder

    folder = project / "model"
    with new_folder(folder) as partial:
        (partial / "MLmodel").write_text("flavors: {}\n")
    with pytest.MonkeyPatch.context() as patch:
        log_in(patch, login_server, "ada")
        first = propose(project, folder, "d1", 0.7)
        assert (first.alias, "bigtransfer watch alone" in first.reason) == ("challenger", True)
        watch_once(login_server, project, times=2)
        propose(project, folder, "d2", 0.8)
        wide = "🦩" * 3000
        says = evidence(classes=tuple(f"{wide[:40]}{n}" for n in range(1000)))
        propose(project, folder, "d3", 0.5, says=says, description=wide)
    return project


def watch_once(server: MlflowServer, project: Path, times: int = 1) -> str:
    said = ""
    for _ in range(times):
        ran = subprocess.run(
            [sys.executable, "-m", "bigtransfer.command", "watch", "--once"], cwd=project,
            env=environment(**loop_variables(server)), capture_output=True, text=True, check=True,
        )  # fmt: skip
        said += ran.stdout
    return said


def loop_variables(server: MlflowServer) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": server.address, "MLFLOW_TRACKING_USERNAME": "bigtransfer",
        "MLFLOW_TRACKING_PASSWORD": PASSWORDS["bigtransfer"],
    }  # fmt: skip


@pytest.fixture
def loop(login_server: MlflowServer, three: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtransfer.command", "watch"], cwd=three,
        env=environment(**loop_variables(login_server)), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield
    process.kill()
    process.wait()


def test_nobody_but_the_loop_moves_champion(
    login_server: MlflowServer, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    for user in ("ada", "admin"):
        client = log_in(monkeypatch, login_server, user)
        before = aliases(client)
        assert before["champion"] == "1"
        forbidden = [
            lambda c: c.set_registered_model_alias(NAME, "champion", "2"),
            lambda c: c.set_registered_model_alias(NAME, "previous", "2"),
            lambda c: c.delete_registered_model_alias(NAME, "champion"),
            lambda c: c.set_registered_model_tag(NAME, "bigtransfer.records", "9:0"),
            lambda c: c.delete_registered_model_tag(NAME, "bigtransfer.record.000001"),
            lambda c: c.delete_model_version(NAME, "1"),
            lambda c: c.delete_registered_model(NAME),
            lambda c: c.rename_registered_model(NAME, "another"),
            lambda c: c.set_model_version_tag(NAME, "2", "bigtransfer.withdrawn", "x"),
        ]
        for attempt in forbidden:
            with pytest.raises(MlflowException) as refused:
                attempt(client)
            assert refused.value.error_code == "PERMISSION_DENIED"
        with pytest.raises(MlflowException, match="alias candidate"):
            client.set_registered_model_alias(NAME, "champion", "2")
        assert aliases(client) == before


def test_without_a_login_or_rights_nothing_is_asked_for(
    login_server: MlflowServer, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    client = log_in(monkeypatch, login_server, "bob")
    with pytest.raises(MlflowException) as refused:
        client.set_registered_model_alias(NAME, "candidate", "2")
    assert refused.value.error_code == "PERMISSION_DENIED"
    assert "candidate" not in aliases(client)
    tags = client.get_registered_model(NAME).tags
    assert "bob" not in str(tags)


def test_promote_asks_the_loop_and_says_what_it_decided(
    login_server: MlflowServer, three: Path, loop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = log_in(monkeypatch, login_server, "ada")
    said: list[str] = []
    found = promote(three, NAME, "2", GateRules(), by="x", because="", say=said.append)
    assert (found.version, aliases(client)["champion"]) == ("2", "2")
    last = [*records_of(client.get_registered_model(NAME).tags)][-1]
    assert (last.by, last.replaced) == ("ada (login)", "1")
    with pytest.raises(GateError, match="compare"):
        promote(three, NAME, "3", GateRules(), by="x", because="", say=said.append)
    assert aliases(client)["champion"] == "2"
    assert audited(three, [NAME])[NAME][1] == []


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png")


def test_by_clicks_a_candidate_becomes_champion_and_champion_is_refused(
    login_server: MlflowServer, three: Path, loop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from playwright.sync_api import sync_playwright

    client = log_in(monkeypatch, login_server, "ada")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(
            http_credentials={"username": "ada", "password": PASSWORDS["ada"]},
            viewport={"width": 1400, "height": 900},
        )
        page = context.new_page()
        page.goto(f"{login_server.address}/#/models/{NAME}")
        page.get_by_text("Version 1").first.wait_for(timeout=SECONDS * 1000)
        shot(page, "model")
        print(page.content()[:200])
        browser.close()
    assert client
    assert re and time
