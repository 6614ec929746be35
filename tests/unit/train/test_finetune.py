from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtransfer.errors import DatasetError
from bigtransfer.model import create_model, write_checkpoint
from bigtransfer.storage import read_json
from bigtransfer.train.finetune import finetune
from unit.data.test_shards import packed  # noqa: F401  # a fixture


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    meta = {"architecture": "R14x0.25", "root": "small", "norm": "gn_ws", "classes": ["a", "b"],
            "crop": 10}  # fmt: skip
    write_checkpoint(tmp_path / "upstream", create_model("R14x0.25", 2, "small"), meta)
    return tmp_path / "upstream"


def run(pretrained: Path, shards: Path, output: Path, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "task": "photos", "inits": ("upstream",), "examples_per_class": (2,), "seeds": (0,),
        "preset": "paper", "random_crop": True, "flip": True, "threads": 1,
        "overrides": {"total_steps": 2, "batch_size": 4, "base_lr": 0.1, "precrop": 12, "crop": 10,
                      "mixup_alpha": None},
        "log": lambda *_: None, **changes,
    }  # fmt: skip
    result: dict[str, Any] = finetune(
        pretrained, shards, output, output.parent / "work", **settings
    )
    return result


def rule_of(output: Path) -> Any:
    return read_json(output / "upstream-2-0" / "meta.json")["hyperrule"]


def test_crop_can_be_switched_off_for_a_task(
    pretrained: Path, packed: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    run(pretrained, packed, tmp_path / "with")
    run(pretrained, packed, tmp_path / "without", random_crop=False)
    assert rule_of(tmp_path / "with")["precrop"] == 12
    assert rule_of(tmp_path / "without")["precrop"] == rule_of(tmp_path / "without")["crop"] == 10


def test_too_few_images_name_the_class(
    pretrained: Path, packed: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    with pytest.raises(DatasetError, match=r"class 'class_0' has 6 train images, but 'examples_"):
        run(pretrained, packed, tmp_path / "out", examples_per_class=(7,))
