"""Big Transfer (BiT): pretrain one large GN + WS ResNet-v2, transfer it cheaply to any task.

Paper: Kolesnikov et al., "Big Transfer (BiT): General Visual Representation Learning",
ECCV 2020, arXiv 1912.11370.
"""

__version__ = "0.1.0"
