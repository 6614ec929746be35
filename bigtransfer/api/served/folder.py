"""A fine-tuned checkpoint as the model folder that MLflow registers and serves."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from bigtransfer.model.checkpoint import read_tuned_meta
from bigtransfer.serve.deployed import facts_of
from bigtransfer.track.model_folder import write_model
from bigtransfer.version import __version__

_CODE = Path(__file__).with_name("model_code.py")


def write_served(folder: Path, checkpoint: Path, *, card: str) -> None:
    """Write the model folder of a checkpoint.

    Args:
        folder: To write, sealed.
        checkpoint: Of a fine-tuned network.
        card: What people should know of it, Markdown.

    Raises:
        CheckpointError: If the checkpoint is damaged.
    """
    meta = read_tuned_meta(checkpoint)
    own = version("torch").partition("+")[0]
    write_model(
        folder,
        checkpoint,
        code=_CODE,
        multi_label=meta.multi_label,
        facts=facts_of(meta, "a picture's file in base64, decoded to uint8"),
        requirements=[f"bigtransfer=={__version__}", f"torch=={own}"],
        card=card,
    )
