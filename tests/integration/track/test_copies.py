"""The second copy of the records of promotions: objects in a bucket, each written once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import InfrastructureError, StorageError, TrackingError
from bigtransfer.storage import s3 as storage
from bigtransfer.track import copies, moves
from bigtransfer.track.auditing import audited
from bigtransfer.track.promotion import promote, rollback
from bigtransfer.track.records import Record
from bigtransfer.track.withdrawal import withdraw
from fixtures.registered import NAME, GateRules, aliases, propose

pytestmark = pytest.mark.xdist_group("s3")
AT = "s3://photos/audit"


@pytest.fixture
def two(tmp_path: Path, model_folder: Path, client: Any, s3: Any) -> Path:
    for digest, share in (("d1", 0.8), ("d2", 0.83)):
        propose(tmp_path, model_folder, digest, share, records_at=AT)
    return tmp_path


def go(project: Path, records_at: str | None = AT) -> Any:
    by = {"by": "ada (claimed)", "because": ""}
    return promote(project, NAME, "challenger", GateRules(), records_at=records_at, **by)


def names(s3: Any) -> list[str]:
    found = s3.list_objects_v2(Bucket="photos").get("Contents", [])
    return [one["Key"] for one in found]


def wrong(project: Path) -> list[str]:
    return audited(project, [NAME], AT)[NAME][1]


def test_each_record_is_an_object_of_its_own(two: Path, s3: Any) -> None:
    go(two)
    rollback(two, NAME, by="ada (claimed)", because="", records_at=AT)
    withdraw(two, NAME, "2", by="ada (claimed)", because="a picture must go", records_at=AT)
    wanted = [f"audit/{NAME}/{number:06d}.json" for number in (1, 2, 3, 4)]
    assert names(s3) == [*wanted, f"audit/{NAME}/write-once"]
    texts = [s3.get_object(Bucket="photos", Key=key)["Body"].read() for key in wanted]
    kinds = [Record.model_validate_json(text).kind for text in texts]
    assert kinds == ["first", "promote", "rollback", "withdraw"]
    assert audited(two, [NAME], AT) == {NAME: (4, [])}


def forge(project: Path, client: Any) -> None:
    """Write the last record anew, in MLflow and beside the database, with digests that fit."""
    tags = client.get_registered_model(NAME).tags
    said = Record.model_validate_json(tags["bigtransfer.record.000002"])
    forged = said.model_copy(update={"by": "eve (claimed)"})
    client.set_registered_model_tag(NAME, "bigtransfer.record.000002", forged.text())
    client.set_registered_model_tag(NAME, "bigtransfer.records", f"2:{forged.digest()}")
    (copy,) = (project / ".work" / "registry").glob("*.jsonl")
    copy.write_text(copy.read_text().replace(said.text(), forged.text()))


def test_who_forges_mlflow_and_the_copy_beside_it_is_found(two: Path, client: Any) -> None:
    go(two)
    forge(two, client)
    assert audited(two, [NAME])[NAME][1] == []
    assert wrong(two) == [f"record 2 is not the one of the copy {AT}/{NAME}"]


def test_records_that_were_cut_off_everywhere_else_are_found(two: Path, client: Any) -> None:
    go(two)
    tags = client.get_registered_model(NAME).tags
    before = json.loads(tags["bigtransfer.record.000002"])["before"]
    client.delete_registered_model_tag(NAME, "bigtransfer.record.000002")
    client.set_registered_model_tag(NAME, "bigtransfer.records", f"1:{before}")
    (copy,) = (two / ".work" / "registry").glob("*.jsonl")
    copy.write_text(copy.read_text().splitlines(keepends=True)[0])
    assert f"the copy {AT}/{NAME} goes on to record 2, the model to 1" in wrong(two)


def test_an_object_beside_does_not_stand_for_a_record(two: Path, client: Any, s3: Any) -> None:
    go(two)
    forge(two, client)
    forged = client.get_registered_model(NAME).tags["bigtransfer.record.000002"].encode()
    for name in ("000002x.json", "0000020.json"):
        s3.put_object(Bucket="photos", Key=f"audit/{NAME}/{name}", Body=forged)
    found = wrong(two)
    assert f"record 2 is not the one of the copy {AT}/{NAME}" in found
    assert f"000002x.json of the copy {AT}/{NAME} is no record of that number" in found
    (copy,) = (two / ".work" / "registry").glob("*.jsonl")
    copy.write_text(copy.read_text() + "no record\n")
    assert f"line 3 of the copy {copy.name} is no record of that number" in wrong(two)


def test_a_model_that_was_stripped_of_all_tags_is_audited_by_its_copy(
    two: Path, client: Any
) -> None:
    go(two)
    for tag in client.get_registered_model(NAME).tags:
        client.delete_registered_model_tag(NAME, tag)
    client.delete_registered_model_alias(NAME, "champion")
    assert "record 1 is missing" in audited(two, [], AT)[NAME][1]


def test_a_storage_that_writes_over_what_is_there_is_refused_before_anything_moves(
    two: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = aliases(client)
    monkeypatch.setattr(copies, "create", lambda *_: True)
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        go(two)
    assert aliases(client) == before


def test_an_object_that_was_taken_away_is_named(two: Path, s3: Any) -> None:
    go(two)
    rollback(two, NAME, by="ada (claimed)", because="", records_at=AT)
    s3.delete_object(Bucket="photos", Key=f"audit/{NAME}/000002.json")
    assert wrong(two) == [f"record 2 is missing in the copy {AT}/{NAME}"]
    for key in names(s3):
        s3.delete_object(Bucket="photos", Key=key)
    assert wrong(two) == [f"the copy {AT}/{NAME} holds no record: it is new, or was emptied"]


def test_a_bucket_that_is_named_later_begins_there(two: Path, s3: Any) -> None:
    for key in names(s3):
        s3.delete_object(Bucket="photos", Key=key)
    go(two)
    assert wrong(two) == []


def test_an_object_that_is_there_is_never_written_over(two: Path, client: Any, s3: Any) -> None:
    key = f"audit/{NAME}/000002.json"
    s3.put_object(Bucket="photos", Key=key, Body=b"somebody else's")
    before = aliases(client)
    with pytest.raises(TrackingError, match="there is another record 2 at s3://photos/audit"):
        go(two)
    assert aliases(client) == before
    assert s3.get_object(Bucket="photos", Key=key)["Body"].read() == b"somebody else's"


@pytest.mark.parametrize("at", ["s3://nothing/audit", "s3://photos/audit"])
def test_a_bucket_that_cannot_be_had_moves_nothing(
    at: str, two: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = aliases(client)
    if at == AT:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setattr(copies, "client", lambda: storage.client(seconds=1, tries=1))
    with pytest.raises((StorageError, InfrastructureError)) as refused:
        go(two, at)
    assert "\n" not in str(refused.value)
    assert aliases(client) == before
    assert "bigtransfer.moving" not in client.get_registered_model(NAME).tags


@pytest.mark.parametrize("step", ["before the copy", "after the copy"])
@pytest.mark.parametrize("decided", [False, True], ids=["left alone", "a person moved it"])
def test_a_kill_around_the_copy_is_made_up_for(
    step: str, decided: bool, two: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: Any) -> None:
        raise KilledError

    create = copies.create

    def die_at_the_record(s3: Any, data: bytes, place: Any) -> bool:
        if data:
            raise KilledError
        return create(s3, data, place)

    with monkeypatch.context() as dying:
        if step == "before the copy":
            dying.setattr(copies, "create", die_at_the_record)
        else:
            dying.setattr(moves, "append", die)
        with pytest.raises(KilledError):
            go(two)
    if decided:
        propose(two, two / "model", "d3", 0.9, records_at=AT)
        client.set_registered_model_alias(NAME, "champion", "3")
    rollback(two, NAME, by="ada (claimed)", because="", records_at=AT)
    assert wrong(two) == []
    assert aliases(client)["champion"] == "1"
