"""Charts for the report page: matplotlib's SVG, small, in the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from bigtransfer.artifacts.report import ReliabilityBin, SummaryRow
from bigtransfer.metrics.intervals import wilson
from bigtransfer.report.table import METRICS, by_shots

# Stand-ins that the page's style sheet replaces, so that a chart follows light and dark.
_INK, _DIM, _LINE, _BLUE, _ORANGE = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "--ink", _DIM: "--dim", _LINE: "--line", _BLUE: "--blue", _ORANGE: "--orange"}
_COLOURS = {"upstream": _BLUE, "scratch": _ORANGE}
_LABELS = {"upstream": "transfer from upstream", "scratch": "from scratch"}
_INSIDE = "\ninside\nthe spread"
_LONGEST_NAME = 24
"""Of a class in a chart, letters."""
_NAME_BEGINS = 6
"""Letters of a longer one before the gap."""


def few_shot(rows: Sequence[SummaryRow]) -> str:
    """Return the score over examples per class, a line per init: median, min and max as a bar.

    `full` stands right of the largest number, as far as that from the one before it. Figures whose
    seeds do not tell the inits apart are grey, and said to be.
    """
    figure, axes = _figure(5.0, 3.4)
    shots = sorted({row.examples_per_class for row in rows}, key=by_shots)
    numbers = [k for k in shots if k != "full"] or [1]
    untold = {k for k in shots if _overlap([row for row in rows if row.examples_per_class == k])}
    places = {k: numbers[-1] * 4 if k == "full" else k for k in shots}
    for init in dict.fromkeys(row.init for row in rows):
        mine = sorted(
            (row for row in rows if row.init == init),
            key=lambda r: by_shots(r.examples_per_class),
        )
        x = [places[row.examples_per_class] for row in mine]
        y = np.array([row.median for row in mine])
        bars = [y - [row.min for row in mine], [row.max for row in mine] - y]
        axes.errorbar(
            x,
            y,
            yerr=bars,
            color=_COLOURS[init],
            label=_LABELS[init],
            marker="o",
            capsize=4,
            linewidth=2,
            linestyle="-" if init == "upstream" else "--",
        )
        for row, across, up in zip(mine, x, y, strict=True):
            inside = row.examples_per_class in untold
            axes.annotate(
                f"{100 * up:.0f}" + (_INSIDE if inside and init == "scratch" else ""),
                (across, up),
                (11, 7 if init == "upstream" else -9),
                textcoords="offset points",
                color=_DIM if inside else _COLOURS[init],
                va="center" if init == "upstream" else "top",
                fontsize=9,
            )
    axes.set_xscale("log")
    axes.set_xlim(places[shots[0]] / 1.3, places[shots[-1]] * 1.5)
    axes.set_xticks([places[k] for k in shots], [str(k) for k in shots])
    axes.minorticks_off()
    axes.set_ylim(0, 1.04)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_xlabel("examples per class", color=_DIM)
    title = f"test {METRICS[rows[0].metric]}"
    axes.set_title(title, loc="left", color=_INK, fontsize=10)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=9, loc="lower right")
    return _svg(figure)


def _overlap(rows: Sequence[SummaryRow]) -> bool:
    """Say whether the seeds of two inits overlap, so that they do not tell which is better."""
    if len(rows) < 2:
        return False
    return max(row.min for row in rows) <= min(row.max for row in rows)


def learning_curve(history: list[dict[str, str]]) -> tuple[str, str]:
    """Return two charts of pretraining over steps: the loss, and the validation top-1."""
    steps = [int(row["step"]) for row in history]
    figure, axes = _figure(5.2, 2.8)
    axes.plot(steps, [float(row["loss"]) for row in history], color=_BLUE, linewidth=1.5)
    axes.set_ylim(bottom=0)
    axes.set_title("training loss of single batches", loc="left", color=_INK, fontsize=10)
    axes.set_xlabel("step", color=_DIM)
    loss = _svg(figure)
    figure, axes = _figure(5.2, 2.8)
    scored = [row for row in history if row["val_top1"]]
    axes.plot(
        [int(row["step"]) for row in scored],
        [float(row["val_top1"]) for row in scored],
        color=_BLUE,
        marker="o",
        linewidth=1.5,
        markersize=4,
    )
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_title("upstream validation top-1", loc="left", color=_INK, fontsize=10)
    axes.set_xlabel("step", color=_DIM)
    return loss, _svg(figure)


def fine_tuning(
    curves: Mapping[str, Sequence[Mapping[str, float]]], chosen: str, metric: str
) -> list[str]:
    """Return charts of fine-tuning over steps: the training loss, and the score on validation.

    Args:
        curves: Network -> `step` and what was noted for it.
        chosen: The network that stands out.
        metric: `top1` or `map`.
    """
    titles = {"loss": "training loss", f"val_{metric}": f"validation {METRICS[metric]}"}
    drawn = []
    for name, title in titles.items():
        figure, axes = _figure(4.4, 2.6)
        several = False
        for folder in sorted(curves, key=lambda folder: folder == chosen):
            points = [(row["step"], row[name]) for row in curves[folder] if name in row]
            several = several or len(points) > 1
            own = folder == chosen
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                color=_BLUE if own else _DIM,
                alpha=1 if own else 0.45,
                linewidth=1.6 if own else 1,
                marker="o" if name != "loss" else None,
                markersize=3,
            )
        if name != "loss":
            axes.set_ylim(0, 1.04)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        else:
            axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left", color=_INK, fontsize=10)
        axes.set_xlabel("step", color=_DIM)
        if several:
            drawn.append(_svg(figure))
    return drawn


def confusion(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Return the confusion matrix as a heat map, each row scaled to its class's images.

    Args:
        matrix: (C, C), row = true class; of so few classes that names can be read.
        classes: Their names.
    """
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [_short(name) for name in classes]
    longest = max(map(len, names), default=0)
    side = min(5.4, 1.2 + 0.42 * len(classes) + 0.07 * longest)
    figure, axes = _figure(side, side)
    blues = LinearSegmentedColormap.from_list("share", ["#3b82c400", "#3b82c4d8"])
    axes.pcolormesh(share, cmap=blues, vmin=0, vmax=1, rasterized=True)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.set_xlabel("predicted", color=_DIM)
    axes.set_ylabel("true", color=_DIM)
    ticks = np.arange(len(classes)) + 0.5
    axes.set_xticks(ticks, names, rotation=0 if longest < 3 else 90)
    axes.set_yticks(ticks, names)
    for (i, j), n in np.ndenumerate(matrix):
        if n:
            axes.text(j + 0.5, i + 0.5, str(n), ha="center", va="center", fontsize=8, color=_INK)
    return _svg(figure)


def _short(name: str) -> str:
    """Return a class's name, of a length that leaves room for the chart; ends tell names apart."""
    readable = name.replace("_", " ")
    if len(readable) <= _LONGEST_NAME:
        return readable
    return f"{readable[:_NAME_BEGINS]}…{readable[_NAME_BEGINS + 1 - _LONGEST_NAME :]}"


def reliability(bins: Sequence[ReliabilityBin]) -> str:
    """Return how often answers are right over how sure they are, with how many they are.

    Args:
        bins: Of enough images each; bars are 95 % intervals.
    """
    figure, axes = _figure(4.6, 3.8)
    axes.plot([0, 1], [0, 1], color=_DIM, linewidth=1, linestyle="--")
    x, y = [own.confidence for own in bins], np.array([own.accuracy for own in bins])
    low, high = np.array([wilson(own.accuracy, own.images) for own in bins]).T
    bars = np.maximum([y - low, high - y], 0)
    axes.errorbar(
        x, y, yerr=bars, color=_BLUE, marker="o", markersize=5, capsize=3, linewidth=1.5,
        elinewidth=1,
    )  # fmt: skip
    for own in bins:
        axes.annotate(
            f"{own.images:,}", (own.confidence, 0), (0, -4), textcoords="offset points",
            rotation=90, ha="center", va="top", fontsize=8, color=_DIM, annotation_clip=False,
        )  # fmt: skip
    most = min(1.04, 1.1 * max(*x, *high))
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.tick_params(axis="x", pad=28)
    axes.set_xlabel("how sure; above it, test images", color=_DIM)
    axes.set_title("how often right", loc="left", color=_INK, fontsize=10)
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_LINE)
    axes.tick_params(colors=_LINE, labelcolor=_DIM, labelsize=9)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    salt = {"svg.fonttype": "none", "svg.hashsalt": "bigtransfer"}
    with matplotlib.rc_context(salt):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, dpi=150)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"font: [^;\"]*;?", "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


@dataclass(frozen=True)
class Palette:
    """Colours of a chart that is drawn both for the page and for paper."""

    ink: str
    dim: str
    line: str
    inits: Mapping[str, str]
    """Of each init."""


PAGE = Palette(_INK, _DIM, _LINE, _COLOURS)
"""Follows light and dark."""
PAPER = Palette("#1c2330", "#5b6577", "#dde2ea", {"upstream": "#2563a8", "scratch": "#c2610c"})
LABELS = _LABELS


def svg_of(figure: Figure) -> str:
    """Return a figure that was drawn in the colours of `PAGE` as SVG that stands in a page."""
    return _svg(figure)
