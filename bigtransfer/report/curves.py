"""Few-shot curves of many tasks: small charts on the same axes, for a page and for paper."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bigtransfer.artifacts.report import SummaryRow
from bigtransfer.report.charts import LABELS, PAGE, PAPER, Palette, svg_of
from bigtransfer.report.sweep import SweptTask
from bigtransfer.report.table import METRICS, by_shots

Shots = Sequence[int | str]
_COLUMNS = 4
_FULL_APART = 4
"""How far `full` stands from the largest number: times it."""
_DOTS_ROW = 0.34
"""Inches of a task in a chart of dots."""
_SALT = "bigtransfer"
_OTHERS = "published"


def shots_of(tasks: Sequence[SweptTask]) -> list[int | str]:
    """Return all sizes of training sets of the tasks, the least first, `full` last."""
    return sorted({row.examples_per_class for task in tasks for row in task.rows}, key=by_shots)


def are_curves(tasks: Sequence[SweptTask]) -> bool:
    """Say whether a task was trained on two sizes at least; else there is nothing to join."""
    return any(len({row.examples_per_class for row in task.rows}) > 1 for task in tasks)


def small_charts(tasks: Sequence[SweptTask]) -> list[str]:
    """Return an SVG for each task that has rows, all on the same axes, in the page's colours."""
    finished = [task for task in tasks if task.rows]
    shots = shots_of(finished)
    charts = []
    for task in finished:
        figure = Figure(figsize=(2.6, 2.1), layout="constrained")
        figure.patch.set_alpha(0)
        _draw(figure.add_subplot(), task, shots, PAGE)
        with _any_script():
            charts.append(svg_of(figure))
    return charts


def dots(tasks: Sequence[SweptTask]) -> str:
    """Return one SVG with a line for every task and init: median between min and max."""
    figure = _dots([task for task in tasks if task.rows], PAGE)
    with _any_script():
        return svg_of(figure)


@contextmanager
def _any_script() -> Iterator[None]:
    """Be quiet about letters that matplotlib's own font lacks: a browser has another for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        warnings.filterwarnings("ignore", r"Matplotlib currently does not support", UserWarning)
        yield


def for_paper(tasks: Sequence[SweptTask]) -> tuple[bytes, bytes]:
    """Return all tasks in one figure, as SVG and as PDF; the same tasks give the same bytes.

    Args:
        tasks: Of which those with rows are drawn; one at least.
    """
    finished = [task for task in tasks if task.rows]
    figure = _grid(finished) if are_curves(finished) else _dots(finished, PAPER)
    return written(figure, "svg"), written(figure, "pdf")


def written(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file, `svg` or `pdf`: the same figure gives the same bytes."""
    import matplotlib

    nothing = {"svg": {"Date": None, "Creator": None}}
    unsaid = {"CreationDate": None, "Creator": None, "Producer": None}
    settings = {"svg.hashsalt": _SALT, "pdf.fonttype": 42}  # TrueType: journals refuse type 3
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings), _any_script():
        figure.savefig(buffer, format=kind, metadata=nothing.get(kind, unsaid))
    return buffer.getvalue()


def _grid(tasks: Sequence[SweptTask]) -> Figure:
    columns = min(_COLUMNS, len(tasks))
    lines = ceil(len(tasks) / columns)
    figure = Figure(figsize=(1.9 * columns + 0.3, 1.6 * lines + 0.4), layout="constrained")
    shots = shots_of(tasks)
    for number, task in enumerate(tasks):
        axes = figure.add_subplot(lines, columns, number + 1)
        _draw(axes, task, shots, PAPER)
        if number % columns:
            axes.tick_params(labelleft=False)
        if number + columns >= len(tasks):
            axes.set_xlabel("examples per class", color=PAPER.dim, fontsize=8)
    inits = dict.fromkeys(row.init for task in tasks for row in task.rows)
    handles = [
        figure.axes[0].plot(
            [], [], color=PAPER.inits[init], marker="o", markersize=3, label=LABELS[init]
        )[0]
        for init in inits
    ]
    if any(task.reference for task in tasks):
        handles += figure.axes[0].plot([], [], "_", color=PAPER.ink, markersize=10, label=_OTHERS)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8,
        labelcolor=PAPER.ink,
    )  # fmt: skip
    return figure


def _draw(axes: Axes, task: SweptTask, shots: Shots, palette: Palette) -> None:
    """Draw a line per init through the medians, and a band from the least to the most."""
    numbers = [int(k) for k in shots if k != "full"] or [1]
    places = {k: numbers[-1] * _FULL_APART if k == "full" else int(k) for k in shots}
    named = {str(k): place for k, place in places.items()}
    for init, rows in _by_init(task.rows).items():
        x = [places[row.examples_per_class] for row in rows]
        low, middle, high = (np.array([getattr(r, key) for r in rows]) for key in _SPREAD)
        colour = palette.inits[init]
        if len(rows) > 1:
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        else:
            axes.vlines(x, low, high, color=colour, alpha=0.4, linewidth=4)
        style = "-" if init == "upstream" else "--"
        axes.plot(x, middle, style, color=colour, marker="o", markersize=3, linewidth=1.4)
    for k, percent in task.reference.items():
        if k in named:
            axes.plot([named[k]], [percent / 100], "_", color=palette.ink, markersize=10)
    axes.set_xscale("log")
    axes.set_xlim(places[shots[0]] / 1.4, places[shots[-1]] * 1.4)
    axes.set_xticks([places[k] for k in shots], ["all" if k == "full" else str(k) for k in shots])
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
    plain(axes, palette)
    metric = task.rows[0].metric
    title = task.name if metric == "top1" else f"{task.name} ({METRICS[metric]})"
    axes.set_title(title, loc="left", color=palette.ink, fontsize=9)


_SPREAD = ("min", "median", "max")


def _dots(tasks: Sequence[SweptTask], palette: Palette) -> Figure:
    """Draw a row per task, a dot per init and size of training set, whiskers to min and max."""
    figure = Figure(figsize=(6.4, 0.8 + _DOTS_ROW * len(tasks)), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    named: set[str] = set()
    both = len({row.init for task in tasks for row in task.rows}) > 1
    for place, task in enumerate(tasks):
        for init, rows in _by_init(task.rows).items():
            for row in rows:
                up = place + (0 if not both else -0.14 if init == "upstream" else 0.14)
                colour = palette.inits[init]
                axes.plot([row.min, row.max], [up, up], color=colour, linewidth=2, alpha=0.45)
                label = "_" if init in named else LABELS[init]
                axes.plot([row.median], [up], "o", color=colour, markersize=4.5, label=label)
                named.add(init)
        for percent in task.reference.values():
            label = "_" if _OTHERS in named else _OTHERS
            axes.plot([percent / 100], [place], "|", color=palette.ink, markersize=10, label=label)
            named.add(_OTHERS)
    names = [task.name if not task.group else f"{task.name} · {task.group}" for task in tasks]
    axes.set_yticks(range(len(tasks)), names)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    plain(axes, palette)
    axes.grid(axis="x", color=palette.line, linewidth=0.6)
    if palette is PAPER:  # a page has its own, beside the text
        figure.legend(
            loc="outside upper left", ncols=3, frameon=False, fontsize=8, labelcolor=palette.ink
        )
    return figure


def _by_init(rows: Sequence[SummaryRow]) -> dict[str, list[SummaryRow]]:
    return {
        init: sorted(
            (row for row in rows if row.init == init),
            key=lambda row: by_shots(row.examples_per_class),
        )
        for init in dict.fromkeys(row.init for row in rows)
    }


def plain(axes: Axes, palette: Palette) -> None:
    """Leave of the axes what is read: no frame, thin lines, the palette's colours."""
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.line)
    axes.tick_params(colors=palette.line, labelcolor=palette.dim, labelsize=8)
    axes.grid(axis="y", color=palette.line, linewidth=0.6)
    axes.set_axisbelow(True)
