"""The folder that MLflow serves: a checkpoint, the code that answers, and what both promise."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigtransfer.storage import new_folder

CARD = "MODEL_CARD.md"
_TOP = 5


def write_model(
    folder: Path,
    checkpoint: Path,
    *,
    code: Path,
    multi_label: bool,
    facts: Mapping[str, object],
    requirements: list[str],
    card: str,
) -> None:
    """Write a fine-tuned network as an MLflow model from code: nothing in it is pickled.

    Args:
        folder: To write, sealed.
        checkpoint: Of the network.
        code: Python file that MLflow executes to load it (`api/served/model_code.py`).
        multi_label: Whether an image may have several labels.
        facts: What a user of the model must know (class names, preprocessing, …), JSON values.
        requirements: Packages that it needs, pinned.
        card: What people should know of it, Markdown.
    """
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        Schema.from_json(_INPUT),
        Schema.from_json(_SEVERAL if multi_label else _ONE),
        ParamSchema([ParamSpec("top", "long", _TOP)]),
    )
    with new_folder(folder) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an input example: a picture would be sent along
        mlflow.pyfunc.save_model(
            str(partial),
            python_model=str(code),
            artifacts={"checkpoint": str(checkpoint)},
            signature=signature,
            pip_requirements=requirements,
            metadata=dict(facts),
        )
        (partial / CARD).write_text(card, encoding="utf-8")


def _column(name: str, kind: Any, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "required": required, **kind}


def _schema(*columns: dict[str, Any]) -> str:
    return json.dumps(columns)


_TEXT, _NUMBER, _YES = ({"type": kind} for kind in ("string", "double", "boolean"))
_GUESS = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "required": True},
        "probability": {"type": "double", "required": True},
    },
}
_TOP_K = _column("top_k", {"type": "array", "items": _GUESS})
_INPUT = _schema(_column("image", _TEXT))
"""A picture's file, in base64."""
_ONE = _schema(
    _column("label", _TEXT), _column("probability", _NUMBER), _column("sure", _YES), _TOP_K
)
_SEVERAL = _schema(
    _column("labels", {"type": "array", "items": _TEXT}),
    _column("probabilities", {"type": "array", "items": _NUMBER}),
    _TOP_K,
)
"""Where an image may have several labels: those that are named, each with its probability."""
