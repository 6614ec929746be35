"""What `kill_test.py` starts: `components.pretrain`, which also notes its last state."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bigtransfer.train import pretrain
from components.interface import main
from components.pretrain import COMPONENT, run

_write = pretrain.write_results


def write(outputs: pretrain.Outputs, training: Any, **options: bool) -> dict[str, Any] | None:
    """Note weights, momentum and journal, then write the results as always."""
    state = training.run.whole_state()
    if training.run.is_main_process:
        digests = {}
        for group, tensors in state.items():
            sha256 = hashlib.sha256()
            for name in sorted(tensors):
                sha256.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
            digests[group] = sha256.hexdigest()
        noted = {**digests, "journal": training.run.curve.rows}
        Path("last-state.json").write_text(json.dumps(noted))
    return _write(outputs, training, **options)


if __name__ == "__main__":
    pretrain.write_results = write
    main(COMPONENT, run)
