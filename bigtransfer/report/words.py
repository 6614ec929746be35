"""What figures say, in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.calibration import Calibration
from bigtransfer.artifacts.report import Reliability, ScoredCell
from bigtransfer.metrics.intervals import wilson
from bigtransfer.progress import counted, duration

_RULE = {"total_steps", "warmup_steps", "decay_steps", "mixup_alpha", "precrop", "crop",
         "batch_size", "base_lr"}  # fmt: skip
_UNITS = ("B", "kB", "MB", "GB", "TB")


def percent(share: float) -> str:
    """Return a share as the pages write it, e.g. `89.8 %`."""
    return f"{100 * share:.1f} %"


def span(interval: tuple[float, float]) -> str:
    """Return two shares as one text, e.g. `87.6 to 91.6 %`."""
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %"


def listing(items: Sequence[object]) -> str:
    """Return e.g. `150, 300 and 450`."""
    texts = [f"{item:,}" if isinstance(item, int) else str(item) for item in items]
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def training_in_words(verdict: Json) -> str:
    """Return how a network was fine-tuned.

    Args:
        verdict: Of the HyperRule, as a report keeps it; another recipe is listed by its keys.
    """
    if verdict.get("regime") == "quick":
        views = "each with its mirror image, " if verdict["flip"] else ""
        return (
            f"a linear head on the features of the frozen network (quick, not the paper's "
            f"protocol): {verdict['images']:,} different images at {verdict['crop']} px, {views}"
            f"features in {verdict['precision']}, strength {verdict['strength']:g} of the "
            "regularisation, chosen by folds of the training images"
        )
    if not verdict.keys() >= _RULE:
        known = [f"{k.replace('_', ' ')} {v}" for k, v in verdict.items() if v is not None]
        return ", ".join(known)
    steps, batch = verdict["total_steps"], verdict["batch_size"]
    crop, precrop = verdict["crop"], verdict["precrop"]
    decays, warmup, alpha = verdict["decay_steps"], verdict["warmup_steps"], verdict["mixup_alpha"]
    parts = [
        f"{steps:,} steps of {batch:,} images at {crop} px"
        + (f" cut from {precrop} px" if precrop != crop else ", not cut"),
        f"learning rate {verdict['base_lr']:g}"
        + (f" after a warm-up of {counted(_whole(warmup), 'step')}" if warmup else ""),
    ]
    if isinstance(decays, list) and decays:
        last = " steps" if decays[-1] != 1 else " step"
        parts.append(f"divided by 10 after {listing(decays)}{last}")
    parts.append("no MixUp" if alpha is None else f"MixUp with alpha {alpha:g}")
    if decay := verdict.get("weight_decay"):
        parts.append(f"weight decay {decay:g}")
    return ", ".join(parts)


def methods_in_words(verdicts: Iterable[Json]) -> str:
    """Return by what networks were made, e.g. `the BiT-HyperRule`."""
    names = dict.fromkeys(
        "a linear probe (quick)" if own.get("regime") == "quick" else "the BiT-HyperRule"
        for own in verdicts
    )
    return listing([*names])


def _whole(value: object) -> int:
    assert isinstance(value, int), "a number of steps"
    return value


def effort_in_words(cells: Sequence[ScoredCell]) -> str:
    """Return time, device and memory of fine-tuning, as far as they are known; else nothing.

    Args:
        cells: Networks that differ by their seed alone, at least one.
    """
    seconds = sorted(cell.seconds for cell in cells if cell.seconds is not None)
    devices = dict.fromkeys(cell.device for cell in cells if cell.device)
    memory = [cell.peak_memory_bytes for cell in cells if cell.peak_memory_bytes]
    parts = []
    if seconds:
        between = f"{duration(seconds[0])} to {duration(seconds[-1])}"
        own = duration(seconds[0]) if duration(seconds[0]) == duration(seconds[-1]) else between
        parts.append(own + (" each" if len(cells) > 1 else ""))
    if devices:
        parts.append("on " + listing([*devices]))
    text = " ".join(parts)
    if memory:
        most = f"at most {size(max(memory))} of memory"
        text = f"{text}, {most}" if text else most
    return text


def size(number: int) -> str:
    """Return bytes for people, e.g. `3.2 GB`."""
    value, unit = float(number), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{number} B"


def abstention_in_words(
    reliability: Reliability, calibration: Calibration, top1: float, images: int
) -> str:
    """Return what was asked of the answers that count as sure, and what came of it.

    Args:
        reliability: On the test split.
        calibration: From the validation split.
        top1: Of all answers on the test split.
        images: Of the test split.
    """
    asked = reliability.asked
    wanted = "" if asked is None else f"Asked for {100 * asked:g} % right, "
    everything = f"Taking all its answers, it is right in {percent(top1)}."
    if not calibration.calibrated:
        return (
            f"Not calibrated: {calibration.why_not}. So no answer is called sure: it answers 0.0 % "
            f"of the test images. {everything}"
        )
    if calibration.abstain_below is None:
        enough = "often enough" if asked is None else "so often"
        return _sentence(
            f"{wanted}it answers 0.0 % of the test images: on the validation split no threshold "
            f"makes its answers right {enough}, and each counts as unsure. {everything}"
        )
    below = percent(calibration.abstain_below)
    if reliability.answered_accuracy is None:
        return _sentence(
            f"{wanted}it answers 0.0 % of the test images: none has a probability of {below}, "
            f"which the validation split asks for. {everything}"
        )
    answered = max(1, round(reliability.answered * images))
    interval = span(wilson(reliability.answered_accuracy, answered))
    got = f"{percent(reliability.answered_accuracy)} (95 % interval {interval})"
    share = f"answers {percent(reliability.answered)} of the test images"
    return (
        f"{wanted}got {got}, {share}" if wanted else f"It {share} and is right in {got}"
    ) + f"; below a probability of {below} it says that it is unsure. {everything}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
