"""The network, and how its weights are saved, loaded and imported.

Importing this package costs nothing; torch is imported with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bigtransfer.model.checkpoint import load_checkpoint, write_checkpoint
    from bigtransfer.model.published import load_npz, save_npz
    from bigtransfer.model.resnet import ResNetV2, create_model

__all__ = [
    "ResNetV2",
    "create_model",
    "load_checkpoint",
    "load_npz",
    "save_npz",
    "write_checkpoint",
]

_HOME = {
    "ResNetV2": "bigtransfer.model.resnet",
    "create_model": "bigtransfer.model.resnet",
    "load_checkpoint": "bigtransfer.model.checkpoint",
    "load_npz": "bigtransfer.model.published",
    "save_npz": "bigtransfer.model.published",
    "write_checkpoint": "bigtransfer.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
