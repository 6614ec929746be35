"""From a folder of images and weights to a tested model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from bigtransfer.api.model import Model
from bigtransfer.api.run_folder import folder_name, was_made_of
from bigtransfer.api.transfer import SEEDS, quick_over, require_weights, settings_of, transfer
from bigtransfer.errors import ConfigError

_RUNS = Path("runs")


def finetune(
    images: str | PathLike[str],
    *,
    weights: str | PathLike[str],
    to: str | PathLike[str] | None = None,
    quick: bool = False,
    seeds: int | Sequence[int] = SEEDS,
    quarantine: float = 0.0,
    agreed: bool = False,
    data: Mapping[str, object] | None = None,
    source: str = "finetune()",
    **values: object,
) -> Model:
    """Check the images, pack them, fine-tune with several seeds, evaluate, and write a page.

    The same again goes on where it was stopped, and makes nothing twice.

    Args:
        images: A folder per class, with or without `train`, `val`, `test` above them; a table, an
            archive, or another layout that `check` reads.
        weights: A published file (.npz), or an upstream checkpoint folder.
        to: Folder of the run; None: `runs/<name of the images>`.
        quick: A linear head on the frozen network's features, minutes on a laptop, in place of the
            BiT-HyperRule. A linear probe, not the paper's protocol.
        seeds: How many runs, or the seed of each; the model is the one with the median validation
            score.
        quarantine: Share of unusable files that may be left out, e.g. 0.01.
        agreed: Begin although it takes more than an hour on a CPU.
        data: Over section `data` of params.yaml, e.g. `{"layout": "folders"}`.
        source: Where the values were written, for messages.
        **values: Over section `finetune` of params.yaml, e.g. `total_steps=100`.

    Returns:
        The model, with its report.

    Raises:
        ConfigError: If a value is wrong, or the folder belongs to other images.
        TooLongError: If it takes too long on this CPU and nobody agreed.
        DatasetError: If the images cannot be read.
        GateError: If they should not be used as they are.
        CheckpointError: If the weights are none.
        KeyboardInterrupt: After Ctrl-C; the same again goes on.
    """
    from bigtransfer.serve.precision import note_bfloat16
    from bigtransfer.storage import lock, new_folder

    place, given = Path(images), Path(weights)
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigError(f"seeds is {seeds}; at least one run is needed")
    name = folder_name(place)
    allowed: dict[str, Any] = {"on_bad": "quarantine", "bad_budget": quarantine}
    settings = settings_of(
        name,
        {**(allowed if quarantine else {}), **(data or {})},
        {"seeds": numbers, **(quick_over(values) if quick else values)},
        source,
    )
    if not place.exists():
        raise ConfigError(f"FOLDER {str(place)!r} does not exist; give a folder of images")
    require_weights(given)
    folder = _default_folder(place, name) if to is None else Path(to)
    with lock(folder / "lock", f"the run in {str(folder)!r}"):
        report = transfer(place, given, folder, settings, agreed=agreed).report
        chosen = folder / "checkpoints" / report.chosen.folder
        with new_folder(folder / "model", sealed=False) as partial:
            shutil.copytree(chosen, partial, dirs_exist_ok=True)
            note_bfloat16(partial, folder / "shards")
    return Model(folder / "model")


def _default_folder(images: Path, name: str) -> Path:
    """Return the folder of a run for which none was named.

    Before 2026-11-26 folders were called otherwise (`pets` for `pets.v1`): such a one is used if it
    is of the same images.
    """
    before = re.sub(r"[^A-Za-z0-9_-]+", "-", images.resolve().stem).strip("-_") or "images"
    own, old = _RUNS / name, _RUNS / before
    return old if old != own and not own.exists() and was_made_of(old, images) else own
