"""Values as DVC's overrides spell them: what comes out is what went in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bigtransfer.study.dvc_queue import as_override


@pytest.mark.parametrize(
    "value",
    [None, True, False, 3, -1, 0.1, 1e-05, 2.0, "quick", "a, b", "it's", "x=y", "", "null", "1",
     "back\\slash", "end\\", "\\'", "a\\\\'b", [0.2, 0.4], [], ["a,b", "c"], [0, 1]],
)  # fmt: skip
def test_a_value_keeps_its_type(tmp_path: Path, value: Any) -> None:
    from dvc.utils.hydra import apply_overrides
    from ruamel.yaml import YAML

    path = tmp_path / "params.yaml"
    path.write_text("pretrain:\n  other: 1\n")
    apply_overrides(path, [f"++pretrain.key={as_override(value)}"])
    found = YAML(typ="safe").load(path)["pretrain"]
    assert found == {"other": 1, "key": value} and type(found["key"]) is type(value)
