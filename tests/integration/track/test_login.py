"""A server with login on PostgreSQL: who may move what, by REST, by command and in the browser."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.config import GateRules
from bigtransfer.errors import GateError
from bigtransfer.track.auditing import audited
from bigtransfer.track.promotion import promote
from bigtransfer.track.records import records_of
from fixtures.login import BUCKET, PASSWORDS, Deployed
from fixtures.project import environment
from fixtures.registered import NAME, aliases, evidence, propose

pytestmark = pytest.mark.xdist_group("login")
SECONDS = 60.0
CHROMIUM = "/usr/bin/chromium"
SHOTS = os.environ.get("BIGTRANSFER_SCREENSHOTS")


def log_in(monkeypatch: pytest.MonkeyPatch, server: Deployed, user: str) -> Any:
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


@pytest.fixture(scope="module", autouse=True)
def loop(login_server: Deployed, project: Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "bigtransfer.command", "watch"], cwd=project,
        env=environment(
            MLFLOW_TRACKING_URI=login_server.address, MLFLOW_TRACKING_USERNAME="bigtransfer",
            MLFLOW_TRACKING_PASSWORD=PASSWORDS["bigtransfer"],
        ),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def three(login_server: Deployed, project: Path) -> Path:
    """Three versions that `ada` registered, the loop's champion among them."""
    from bigtransfer.storage import new_folder

    folder = project / "model"
    with new_folder(folder) as partial:
        (partial / "MLmodel").write_text("flavors: {}\n")
    with pytest.MonkeyPatch.context() as patch:
        client = log_in(patch, login_server, "ada")
        first = propose(project, folder, "d1", 0.7)
        assert (first.alias, "bigtransfer watch alone" in first.reason) == ("challenger", True)
        until(client, "champion", "1")
        propose(project, folder, "d2", 0.8)
        wide = "🦩" * 6000
        says = evidence(classes=tuple(f"{wide[:40]}{n}" for n in range(1000)))
        propose(project, folder, "d3", 0.5, says=says, description=wide)
    return project


def until(client: Any, alias: str, version: str | None) -> None:
    """Wait until a version has an alias; None: none has it."""
    end = time.monotonic() + SECONDS
    while (found := aliases(client)).get(alias) != version:
        assert time.monotonic() < end, found
        time.sleep(0.2)


def test_nobody_but_the_loop_moves_champion(
    login_server: Deployed, three: Path, monkeypatch: pytest.MonkeyPatch
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
    login_server: Deployed, three: Path, monkeypatch: pytest.MonkeyPatch
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
    login_server: Deployed, three: Path, monkeypatch: pytest.MonkeyPatch
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


def set_alias(page: Any, server: Deployed, version: str, alias: str) -> Any:
    """Give a version an alias by clicks, as a lead does; return the dialog.

    Data that come late draw MLflow's page anew without the dialog (3.17); then all is begun again,
    on a page that has been given more time.
    """
    from playwright.sync_api import Error

    dialog = page.locator("[role=dialog]:visible").last
    for attempt in range(6):
        # Another version within one page would keep the dialog of the version before, hidden.
        page.goto("about:blank")
        page.goto(f"{server.address}/#/models/{NAME}/versions/{version}")
        try:
            page.get_by_text(f"Version {version}", exact=True).first.wait_for(
                timeout=SECONDS * 1000
            )
            page.wait_for_timeout(500 + 2_000 * attempt)
            page.get_by_title("Edit aliases").first.click(timeout=10_000)  # it has one already
            dialog.locator("input").first.fill(alias, timeout=10_000)
            page.keyboard.press("Enter")
            dialog.get_by_text(f"@ {alias}").wait_for(timeout=10_000)
            dialog.get_by_role("button", name="Save aliases").click(timeout=10_000)
            return dialog
        except Error as error:
            last = error
    raise last


def test_by_clicks_a_candidate_becomes_champion_and_champion_is_refused(
    login_server: Deployed, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path(CHROMIUM).exists():
        assert not os.environ.get("BIGTRANSFER_SKIPS_NOTHING"), (
            "no Chromium here; in CI nothing is skipped"
        )
        pytest.skip(f"{CHROMIUM} is not here")
    from playwright.sync_api import sync_playwright

    client = log_in(monkeypatch, login_server, "ada")
    number = propose(three, three / "model", "d4", 0.9).version
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        login = {"username": "ada", "password": PASSWORDS["ada"]}
        size = {"width": 1400, "height": 900}
        page = browser.new_context(http_credentials=login, viewport=size).new_page()
        set_alias(page, login_server, number, "candidate").wait_for(state="hidden")
        until(client, "champion", number)
        until(client, "candidate", None)
        page.reload()
        page.get_by_text("@ champion").first.wait_for(timeout=SECONDS * 1000)
        page.get_by_text("gate.compare").first.wait_for(timeout=SECONDS * 1000)
        shot(page, "promoted")
        dialog = set_alias(page, login_server, aliases(client)["previous"], "champion")
        dialog.get_by_text("candidate").first.wait_for(timeout=SECONDS * 1000)
        shot(page, "refused")
        browser.close()
    assert aliases(client)["champion"] == number
    last = [*records_of(client.get_registered_model(NAME).tags)][-1]
    assert (last.by, last.to) == ("ada (login)", number)


def test_strangers_get_nothing_and_a_restart_loses_nothing(
    login_server: Deployed, artifact_store: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    runs = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    ada = f"ada:{PASSWORDS['ada']}"
    assert login_server.status("/health") == 200, "probes log in as nobody"
    assert login_server.status(runs) == 401
    assert login_server.status(runs, user="ada:wrong") == 401
    assert login_server.status(runs, user=ada) == 200
    assert login_server.status(runs, user=ada, host="mlflow.bigtransfer:5000") == 200
    assert login_server.status(runs, user=ada, host="evil.example") == 403

    client = log_in(monkeypatch, login_server, "admin")
    run = client.create_run("0")
    (tmp_path / "weights").write_bytes(b"weights" * 1000)
    client.log_artifact(run.info.run_id, str(tmp_path / "weights"), "model")
    client.create_registered_model("deployed")
    client.create_model_version("deployed", f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias("deployed", "challenger", "1")
    import boto3

    s3 = boto3.client(
        "s3", endpoint_url=artifact_store["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="user", aws_secret_access_key="word",
    )  # fmt: skip
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert any(key.endswith("/model/weights") for key in keys), keys

    login_server.kill()
    login_server.start()
    assert login_server.status(runs, user=ada) == 200, "users stay, too"
    assert client.get_model_version_by_alias("deployed", "challenger").version == "1"
    came = client.download_artifacts(run.info.run_id, "model/weights", str(tmp_path))
    assert Path(came).read_bytes() == b"weights" * 1000
    assert not list(login_server.folder.glob("*.db")), "nothing stays in the pod"


def shot(page: Any, name: str) -> None:
    """Keep what the page shows."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png")
