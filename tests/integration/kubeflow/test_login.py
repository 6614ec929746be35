"""Login as clusters ask for it: redirects to a page, cookies, tokens from the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fixtures.kfp_api import SMALL, Api, submit

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.xdist_group("kfp")]


@pytest.mark.parametrize("login", ["302", "401", "403"])
def test_who_is_not_let_in_is_told_how(
    login: str, api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api.cookie, api.login = "session=abc", login
    assert submit(own, "--endpoint", api.url) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "KFP_COOKIES" in said and "KFP_TOKEN" in said
    assert api.runs == []


def test_a_browsers_cookies_open(api: Api, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api.cookie, api.login = "authservice_session=abc", "302"
    monkeypatch.setenv("KFP_COOKIES", "authservice_session=abc")
    assert submit(own, "--endpoint", api.url) == 0
    assert submit(own, "--endpoint", api.url, "--wait") == 0


def test_a_pods_own_token_opens(
    api: Api, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.token = "projected"
    (tmp_path / "token").write_text("projected")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert submit(own, "--endpoint", api.url) == 0


def test_a_token_of_the_environment_is_seen_nowhere(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.token = "se-cret-1234"
    monkeypatch.setenv("KFP_TOKEN", api.token)
    assert submit(*SMALL, "--endpoint", api.url) == 0
    said = capsys.readouterr()
    assert api.token not in said.out + said.err + json.dumps(api.runs)
    assert api.token not in Path(f"/proc/{os.getpid()}/cmdline").read_text()


def test_a_password_in_the_address_is_refused_and_not_shown(
    api: Api, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = api.url.replace("http://", "http://me:word@")
    assert submit(own, "--endpoint", endpoint) == 2
    said = capsys.readouterr()
    assert "holds a name or a password" in said.err
    assert "word@" not in said.out + said.err
    assert api.runs == []


def test_a_token_is_taken_without_its_line_break_and_never_shown(
    api: Api, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.token = "se-cret"
    monkeypatch.setenv("KFP_TOKEN", "se-cret\n")
    assert submit(own, "--endpoint", api.url) == 0
    monkeypatch.setenv("KFP_TOKEN", "se-cret\nmore")
    assert submit(own, "--endpoint", api.url) == 2
    said = capsys.readouterr()
    assert "cannot be sent; correct KFP_TOKEN" in said.err
    assert "se-cret" not in said.out + said.err
