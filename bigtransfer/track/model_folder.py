"""The folder that MLflow serves: a network, its signature, and what its user must know."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigtransfer.storage import new_folder


def write_model(
    folder: Path, model: Any, *, crop: int, num_classes: int, facts: Mapping[str, object]
) -> None:
    """Write a network as an MLflow model, without pickle (torch.export).

    Args:
        folder: To write, sealed.
        model: float32 images (B, H, W, 3) of any size, whole numbers from 0 to 255, to
            probabilities (B, num_classes).
        crop: Side to which it resizes them, pixels.
        num_classes: Outputs.
        facts: What a user of the model must know (class names, preprocessing, …), JSON values.
    """
    import mlflow
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Not uint8: MLflow casts what it is sent, and 0.9 would be 0 before the model could refuse it.
    # Tensors without names: MLflow would hand a named one to the model as a dict.
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, -1, -1, 3))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes))]),
    )
    example = np.zeros((2, crop + 1, crop + 2, 3), np.float32)
    requirements = [f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"]
    with new_folder(folder) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own deprecations
        mlflow.pytorch.save_model(
            model,
            str(partial),
            signature=signature,
            input_example=example,
            pip_requirements=requirements,
            metadata=facts,
        )
