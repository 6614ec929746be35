"""Big Transfer (BiT): pretrain one large GN + WS ResNet-v2, transfer it cheaply to any task.

Paper: Kolesnikov et al., "Big Transfer (BiT): General Visual Representation Learning",
ECCV 2020, arXiv 1912.11370.

    import bigtransfer as bt

    model = bt.finetune("photos", weights="BiT-M-R50x1.npz", quick=True)
    model.predict("new-photos")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bigtransfer.version import __version__

if TYPE_CHECKING:
    from bigtransfer.api.checking import Check, check
    from bigtransfer.api.evaluation import Evaluation
    from bigtransfer.api.finetuning import finetune
    from bigtransfer.api.model import Model, Prediction, Report, load
    from bigtransfer.errors import BigTransferError
    from bigtransfer.model.resnet import create_model
    from bigtransfer.train.hyperrule import HyperRule, hyperrule

__all__ = [
    "BigTransferError", "Check", "Evaluation", "HyperRule", "Model", "Prediction", "Report",
    "__version__", "check", "create_model", "finetune", "hyperrule", "load",
]  # fmt: skip
# Where each name lives: what needs PyTorch is imported when it is used.
_PLACES = {
    "api.checking": ("Check", "check"),
    "api.evaluation": ("Evaluation",),
    "api.finetuning": ("finetune",),
    "api.model": ("Model", "Prediction", "Report", "load"),
    "errors": ("BigTransferError",),
    "model.resnet": ("create_model",),
    "train.hyperrule": ("HyperRule", "hyperrule"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
