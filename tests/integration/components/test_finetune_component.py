from __future__ import annotations

from pathlib import Path
from typing import Any

from bigtransfer.model import create_model, save_npz
from bigtransfer.storage import read_json
from bigtransfer.track.journal import SilentJournal
from components import finetune
from components.interface import Stage
from fixtures.project import PROJECT
from fixtures.training import SMALL_TASK


def test_a_published_file_is_taken_as_it_is(packed: Path, tmp_path: Path) -> None:
    from bigtransfer import config
    from bigtransfer.config import TaskParams

    save_npz(create_model("R14x0.25", 5, "small", seed=1), tmp_path / "BiT.npz")
    base: dict[str, Any] = config.load(PROJECT / "params.yaml").tasks["digits"].model_dump()
    stage = Stage("finetune@photos", tmp_path, tmp_path / "work", SilentJournal())
    finetune.run(
        stage, TaskParams.model_validate({**base, **SMALL_TASK}), pretrained=tmp_path / "BiT.npz",
        shards=packed, audit=packed, checkpoints=tmp_path / "out",
    )  # fmt: skip
    meta = read_json(tmp_path / "out" / "upstream-2-0" / "meta.json")
    assert (meta["architecture"], meta["root"], len(meta["classes"])) == ("R14x0.25", "small", 3)
