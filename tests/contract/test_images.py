"""components/Dockerfile and what pyproject.toml says of its targets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from bigtransfer.kubeflow.images import TARGETS
from fixtures.project import PROJECT

DOCKERFILE = (PROJECT / "components" / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
HELD = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["tool"]["bigtransfer"][
    "images"
]
STAGES = {
    part.partition("\n")[0].split(" AS ")[1]: part.partition(" AS ")[0]
    for part in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
}
"""Stage -> what it stands upon, in the order of the file."""


def text_of(stage: str) -> str:
    (found,) = re.findall(rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    return str(found)


def installs(stage: str) -> list[str]:
    return [
        name
        for target in re.findall(r'"image_requirements.py", "install", "([\w-]+)"', text_of(stage))
        for name in HELD[target]
    ]


def above(stage: str) -> list[str]:
    found = [stage]
    while STAGES[found[-1]] in STAGES:
        found.append(STAGES[found[-1]])
    return found


def test_targets_are_stages() -> None:
    assert set(TARGETS) <= set(STAGES)


# A server's image, made once and not by default: before PyTorch it would be made with every other.
@pytest.mark.parametrize("target", [name for name in TARGETS if name != "mlflow"])
def test_the_classic_builder_makes_no_pytorch_for_who_needs_none(target: str) -> None:
    names = list(STAGES)
    made = {name for stage in names[: names.index(target) + 1] for name in installs(stage)}
    own = {name for stage in above(target) for name in installs(stage)}
    assert own, target
    assert ("torch" in made) == ("torch" in own), f"{target} stands behind a stage with PyTorch"


@pytest.mark.parametrize("stage", [name for name, base in STAGES.items() if base not in STAGES])
def test_nobody_has_a_name_and_git_is_not_missed(stage: str) -> None:
    (line,) = re.findall(r"^ENV (.*)$", text_of(stage), re.M)
    said = dict(word.split("=", 1) for word in line.split())
    assert said["GIT_PYTHON_REFRESH"] == "quiet" and said["USER"]
    assert said["MLFLOW_LOGGING_LEVEL"] == "WARNING"
    if "fetch" in STAGES and STAGES["fetch"] == stage:
        assert said["DVC_SITE_CACHE_DIR"].startswith("/tmp/"), "only /tmp can be written"


def test_what_images_hold_is_pinned() -> None:
    for target, names in HELD.items():
        own = PROJECT / "components" / f"{target}.lock"
        locked = pinned(own if own.is_file() else PROJECT / "requirements.lock")
        if target != "train-tpu":
            assert {name.replace(".", "-") for name in names} <= locked.keys(), target


def pinned(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==([^ ;\n]+)", lock.read_text("utf-8"), re.M))


def test_the_image_that_serves_has_the_rest_as_the_image_that_trains() -> None:
    own, rest = (pinned(PROJECT / name) for name in ("components/serve.lock", "requirements.lock"))
    both = {name.replace(".", "-") for name in HELD["serve"] if name != "mlserver"}
    assert {name: own[name] for name in both} == {name: rest[name] for name in both}
    assert "mlserver" in own and "mlserver" not in rest


def test_a_fetched_dvc_repository_may_lie_in_s3() -> None:
    assert "dvc-s3" in HELD["fetch"], "a DVC repository keeps its files in S3"
