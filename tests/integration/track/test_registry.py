from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.api.served.folder import write_served
from bigtransfer.config import GateRules
from bigtransfer.errors import InfrastructureError, TrackingError
from bigtransfer.storage.home import home_of
from bigtransfer.track.address import artifact_location, tracking_uri
from bigtransfer.track.promotion import promote
from bigtransfer.track.versions import checkpoint_uri, fetch_checkpoint
from fixtures.models import CLASSES, write_tuned
from fixtures.registered import LEAK, aliases, propose


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mlflow")
    write_served(place / "model", write_tuned(place / "tuned"), card="# A card\n")
    return place / "model"


def test_a_version_is_loaded_and_brings_its_card(
    tracked: Path, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    first = propose(tracked, folder, "d1", 0.5)
    assert (first.version, first.alias, first.new) == ("1", "champion", True)
    loaded = mlflow.pyfunc.load_model("models:/bigtransfer-d@champion")
    assert loaded.metadata.metadata["classes"] == list(CLASSES)
    assert loaded.metadata.get_input_schema().input_names() == ["image"]
    outputs = loaded.metadata.get_output_schema().input_names()
    assert outputs == ["label", "probability", "sure", "top_k"]
    version = client.get_model_version("bigtransfer-d", "1")
    assert version.description.startswith("scores 0.5\n\n#### Gates\n")
    artifacts = [f.path for f in client.list_artifacts(version.run_id, "checkpoint")]
    assert artifacts == ["checkpoint/MANIFEST.json", "checkpoint/weights.safetensors"]


def test_the_first_version_becomes_champion_and_later_ones_are_proposed(
    tracked: Path, client: Any, folder: Path
) -> None:
    first = propose(tracked, folder, "d1", 0.5)
    assert (first.alias, first.reason) == ("champion", "there was no champion")
    better = propose(tracked, folder, "d2", 0.99)
    assert (better.version, better.alias) == ("2", "challenger")
    assert better.reason == "v1 is champion; `bigtransfer promote bigtransfer-d` makes it champion"
    propose(tracked, folder, "d3", 0.4)
    assert aliases(client) == {"champion": "1", "challenger": "3"}


def test_the_first_version_waits_where_it_is_asked_to(
    tracked: Path, client: Any, folder: Path
) -> None:
    waits = propose(tracked, folder, "d1", first="challenger")
    assert (waits.alias, "register.first is challenger" in waits.reason) == ("challenger", True)
    assert aliases(client) == {"challenger": "1"}


def test_a_first_version_that_does_not_pass_its_gates_stays_challenger(
    tracked: Path, client: Any, folder: Path
) -> None:
    leaky = propose(tracked, folder, "d1", leaks=(LEAK,))
    assert leaky.alias == "challenger"
    assert leaky.reason == (
        "there is no champion, and it does not pass its gates: leakage: 1 images are on both sides "
        "of an audit"
    )
    tags = client.get_model_version("bigtransfer-d", "1").tags
    assert tags["gate.leakage"].startswith("fail: 1 images")
    assert tags["gates"].startswith("refused: leakage")
    clean = propose(tracked, folder, "d2")
    assert clean.alias == "champion", "there was none yet, and no person took it away"


def test_the_same_checkpoint_is_one_version_and_keeps_what_a_person_wrote(
    tracked: Path, client: Any, folder: Path
) -> None:
    propose(tracked, folder, "d1", 0.5)
    client.update_model_version("bigtransfer-d", "1", "approved by the lead")
    again = propose(tracked, folder, "d1", 0.5, tags={"git_commit": "later"})
    assert (again.version, again.new, again.alias) == ("1", False, "champion")
    assert len(client.search_model_versions("name = 'bigtransfer-d'")) == 1
    version = client.get_model_version("bigtransfer-d", "1")
    assert (version.description, version.tags["git_commit"]) == ("approved by the lead", "d1")


@pytest.mark.parametrize("older", [False, True])
def test_a_known_version_registered_again_moves_nothing(
    older: bool, tracked: Path, client: Any, folder: Path
) -> None:
    propose(tracked, folder, "d1", 0.5)
    propose(tracked, folder, "d2", 0.6)
    promote(tracked, "bigtransfer-d", "2", GateRules(), by="", because="")
    client.set_registered_model_alias("bigtransfer-d", "champion", "1")  # as a lead does by clicks
    client.delete_registered_model_alias("bigtransfer-d", "previous")
    if older:
        forget_what_older_code_did_not_note(client)
    before = aliases(client)
    for digest, score, alias in (("d2", 0.6, ""), ("d1", 0.5, "champion"), ("d2", 0.6, "")):
        again = propose(tracked, folder, digest, score)
        assert (again.new, again.alias) == (False, alias)
        assert again.reason == "known; its aliases are left alone"
        assert aliases(client) == before == {"champion": "1"}


@pytest.mark.parametrize("older", [False, True])
def test_a_champion_that_a_person_took_away_is_not_made_up_for(
    older: bool, tracked: Path, client: Any, folder: Path
) -> None:
    propose(tracked, folder, "d1", 0.5)
    if older:
        client.set_model_version_tag("bigtransfer-d", "1", "bigtransfer.promotion", "{}")
        forget_what_older_code_did_not_note(client)
    client.delete_registered_model_alias("bigtransfer-d", "champion")
    second = propose(tracked, folder, "d2", 0.95)
    assert (second.alias, "took the alias champion away" in second.reason) == ("challenger", True)
    assert "champion" not in aliases(client)


def forget_what_older_code_did_not_note(client: Any) -> None:
    for tag in client.get_registered_model("bigtransfer-d").tags:
        client.delete_registered_model_tag("bigtransfer-d", tag)
    for version in client.search_model_versions("name = 'bigtransfer-d'"):
        client.delete_model_version_tag("bigtransfer-d", version.version, "bigtransfer.aliases")


def test_a_kill_before_the_alias_is_made_up_for(
    tracked: Path, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigtransfer.track import registry

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_propose", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            propose(tracked, folder, "d1", 0.5)
    assert aliases(client) == {}
    again = propose(tracked, folder, "d1", 0.5)
    assert (again.new, again.alias) == (False, "champion")
    assert aliases(client) == {"champion": "1"}


def test_a_version_left_bare_by_a_kill_is_completed(
    tracked: Path, client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigtransfer.track import registry

    with monkeypatch.context() as patch:
        patch.setattr(registry, "_describe", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            propose(tracked, folder, "d1", 0.5)
    again = propose(tracked, folder, "d1", 0.5)
    assert (again.version, again.alias) == ("1", "champion")
    assert client.get_model_version("bigtransfer-d", "1").tags["git_commit"] == "d1"


def test_refusal_says_where_mlflow_was_looked_for(
    tracked: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with pytest.raises(TrackingError, match="MLflow at 'nonsense://here' refused to register"):
        propose(tracked, folder, "d1", 0.5)


def test_a_registered_model_is_fetched_by_alias_or_version(tracked: Path, folder: Path) -> None:
    propose(tracked, folder, "d1", 0.5)
    for address in ("models:/bigtransfer-d@champion", "models:/bigtransfer-d/1"):
        fetched = fetch_checkpoint(tracked, address)
        assert (fetched / "weights.safetensors").read_text() == "d1"
    with pytest.raises(TrackingError, match=r"did you mean 'bigtransfer-d'\?; registered are"):
        fetch_checkpoint(tracked, "models:/bigtransfer-e@champion")
    with pytest.raises(TrackingError, match="names no registered model"):
        fetch_checkpoint(tracked, "models:/bigtransfer-d")


def test_without_a_database_engine_a_server_must_be_named(
    tracked: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtransfer.track.runs.find_spec", lambda name: None)
    with pytest.raises(TrackingError, match="no MLflow server is named, .* cluster.tracking_uri"):
        propose(tracked, folder, "d1", 0.5)


def test_a_server_that_is_away_is_to_be_tried_again(
    tracked: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InfrastructureError, match=r"127.0.0.1:9' does not answer: .*try again"):
        propose(tracked, folder, "d1", 0.5)


def test_an_artifact_store_that_takes_nothing_is_one_line(
    tracked: Path, client: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    client.create_experiment("elsewhere", (tmp_path / "file" / "store").as_uri())
    with pytest.raises(
        TrackingError, match=r"its artifact store does not take our files \(NotADir"
    ):
        propose(tracked, folder, "d1", 0.5)


def test_a_bug_of_ours_stays_a_bug(
    tracked: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigtransfer.track.registry._propose", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        propose(tracked, folder, "d1", 0.5)


def test_a_model_of_a_project_that_was_moved_is_found_where_it_is_now(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, moved = tmp_path / "before", tmp_path / "moved"
    before.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow writes there whom it was told to ask
    propose(before, folder, "d1", 0.5)
    before.rename(moved)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    found = fetch_checkpoint(moved, "models:/bigtransfer-d@champion")
    assert (found / "weights.safetensors").read_text() == "d1"
    assert checkpoint_uri(moved, "models:/bigtransfer-d/1").startswith(moved.as_uri())
    assert not before.exists()

    shutil.rmtree(moved / ".work")
    shutil.rmtree(moved / "mlruns")
    with pytest.raises(TrackingError, match="if the project was moved, move its folder 'mlruns'"):
        fetch_checkpoint(moved, "models:/bigtransfer-d@champion")


@pytest.mark.parametrize("place", ["tmp123", "standalone/tmp123"])
def test_a_copy_of_the_project_that_dvc_runs_in_has_the_projects_mlflow(
    place: str, tmp_path: Path
) -> None:
    copy = tmp_path / ".dvc" / "tmp" / "exps" / place
    (copy / "sub").mkdir(parents=True)
    assert home_of(copy) == home_of(tmp_path) == tmp_path
    assert home_of(copy / "sub") == tmp_path / "sub"
    assert tracking_uri(copy) == tracking_uri(tmp_path)
    assert artifact_location(copy) == artifact_location(tmp_path)
