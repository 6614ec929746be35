"""Where the commands find a fine-tuned model: a checkpoint folder, or MLflow's registry."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bigtransfer.artifacts.cells import Cells
from bigtransfer.artifacts.report import TaskReport
from bigtransfer.errors import BigTransferError, CheckpointError

MODEL_HELP = (
    "a fine-tuned checkpoint, e.g. artifacts/finetune/digits/upstream-5-0, or a registered model, "
    "e.g. models:/bigtransfer-digits@champion"
)


def checkpoint_at(place: str, *, within_run: bool = False) -> Path:
    """Return the checkpoint folder that a place names.

    Args:
        place: A folder, or an address in MLflow's registry.
        within_run: Whether the folder of a run stands for the model in it; else it is asked about.

    Raises:
        CheckpointError: If there is none.
        TrackingError: If the registry does not know the model.
    """
    if place.startswith("models:/"):
        from bigtransfer.track.versions import fetch_checkpoint

        return fetch_checkpoint(Path.cwd(), place)
    folder = Path(place)
    if not folder.is_dir():
        raise CheckpointError(f"{place!r} is no folder; MODEL is {MODEL_HELP}")
    if not _is_model(folder) and (better := _model_below(folder)) is not None:
        if within_run:
            return better
        raise CheckpointError(
            f"{place!r} holds a model, but is none itself; did you mean {str(better)!r}?"
        )
    return folder


def _is_model(folder: Path) -> bool:
    return (folder / "meta.json").is_file()


def _model_below(folder: Path) -> Path | None:
    """Return the model that the folder of a run was made for, if it is such a folder."""
    for report in (folder / "report", folder.parent / "report"):
        with suppress(BigTransferError):
            chosen = TaskReport.read(report).chosen.folder
            for place in (folder / "model", folder / "checkpoints" / chosen, folder / chosen):
                if _is_model(place):
                    return place
    with suppress(BigTransferError):
        places = [folder / cell.folder for cell in Cells.read(folder).cells]
        return next((place for place in places if _is_model(place)), None)
    return folder / "model" if _is_model(folder / "model") else None


def run_of(checkpoint: Path) -> Path | None:
    """Return the folder of the run that a checkpoint is the model of, if it lies in one."""
    folder = checkpoint.parent if checkpoint.name else checkpoint.resolve().parent
    return folder if (folder / "report" / TaskReport.FILE).is_file() else None
