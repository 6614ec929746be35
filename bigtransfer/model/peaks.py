"""What an accelerator computes at best, by the numbers of its maker."""

from __future__ import annotations

# Dense bfloat16 (Volta, Turing: float16) peaks that NVIDIA's data sheets give, FLOP/s.
_GPUS = {
    "H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "A40": 150e12,
    "A10": 125e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "V100": 125e12, "T4": 65e12,
    "B200": 2250e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
# Of one chip, Google's documentation of Cloud TPU; by the names that GKE selects nodes by.
_TPUS = {
    "tpu-v4": 275e12, "tpu-v5-lite": 197e12, "tpu-v5p": 459e12, "tpu-v6e": 918e12, "tpu7x": 2307e12,
}  # fmt: skip


def peak_flops(name: str) -> float | None:
    """Return the dense bfloat16 peak of a GPU, FLOP/s, by its name or a part of it."""
    return next((peak for key, peak in _GPUS.items() if key in name), None)


def accelerator_named(texts: list[str]) -> tuple[str, float] | None:
    """Return the accelerator that labels of nodes speak of, and its peak in FLOP/s.

    Args:
        texts: E.g. `nvidia-h100-80gb`, `tpu-v5-lite-podslice`.
    """
    for text in texts:
        words = text.upper().replace("-", " ")
        for name, peak in _GPUS.items():
            if name in words.split() or (" " in name and name in words):
                return name, peak
        for name, peak in _TPUS.items():
            if name in text.lower():
                return name, peak
    return None
