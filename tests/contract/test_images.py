"""components/Dockerfile and what pyproject.toml says of its targets."""

from __future__ import annotations

import re
import tomllib

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


@pytest.mark.parametrize("target", TARGETS)
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
    lock = (PROJECT / "requirements.lock").read_text("utf-8")
    locked = set(re.findall(r"^([\w.-]+)==", lock, re.M))
    held = {name for target, names in HELD.items() if target != "train-tpu" for name in names}
    assert {name.replace(".", "-") for name in held} <= locked
    assert "dvc-s3" in HELD["fetch"], "a DVC repository keeps its files in S3"
