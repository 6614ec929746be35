"""The page of a study: a chart for each figure, what differs, the table, published figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bigtransfer.report import page
from bigtransfer.report.charts import PAGE, PAPER, Palette, svg_of
from bigtransfer.report.curves import plain, written
from bigtransfer.report.study import StudyRow, StudyTable, differences, text_rows
from bigtransfer.version import __version__

_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SHADES = ("upstream", "scratch")
"""Two colours that both light and dark have; more lines differ by dashes and marks."""


def render(table: StudyTable, *, files: Mapping[str, str]) -> str:
    """Return the page as HTML, in one piece.

    Args:
        table: What was found.
        files: Name -> address, relative to this page, of the same figures in other forms.
    """
    return page.render(
        Path(__file__).with_name("study.html"),
        table=table,
        charts=[*map(svg_of, _charts(table))] if table.finished else [],
        rows=text_rows(table),
        heads=[*table.axes, "steps", "images", *table.figures, "cells"],
        numbers={"steps", "images", "cells", *table.figures},
        notes=any(row.note for row in table.rows),
        differences=list(differences(table)),
        done=sum(row.finished for row in table.rows),
        cells=sum(row.cells for row in table.rows),
        files=files,
        version=__version__,
    )


def for_paper(table: StudyTable) -> tuple[bytes, bytes]:
    """Return all charts in one figure, as SVG and as PDF; the same table gives the same bytes.

    Args:
        table: Has a finished row.
    """
    names = [*table.figures]
    figure = Figure(figsize=(2.6 * len(names) + 0.4, 2.5), layout="constrained")
    for number, name in enumerate(names):
        _draw(figure.add_subplot(1, len(names), number + 1), table, name, PAPER, legend=number == 0)
    return written(figure, "svg"), written(figure, "pdf")


def _charts(table: StudyTable) -> Iterator[Figure]:
    """Yield what the page shows: curves where they are asked for, then each figure."""
    if table.curves and any(row.curve for row in table.finished):
        yield _curves(table, PAGE)
    for name in table.figures:
        yield _chart(table, name, PAGE)


def _chart(table: StudyTable, name: str, palette: Palette) -> Figure:
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    figure.patch.set_alpha(0)
    _draw(figure.add_subplot(), table, name, palette, legend=True)
    return figure


def _curves(table: StudyTable, palette: Palette) -> Figure:
    """Draw validation top-1 over images, a line for each point."""
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    for number, row in enumerate(row for row in table.finished if row.curve):
        axes.plot(
            [images for images, _ in row.curve], [100 * score for _, score in row.curve],
            label=", ".join(row.labels.values()), linewidth=1.6, markersize=3,
            color=palette.inits[_SHADES[number % 2]], linestyle=_STYLES[number // 2 % 4],
            marker=_MARKERS[number % 8],
        )  # fmt: skip
    axes.set_xlabel("images seen", color=palette.dim, fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title("upstream, validation top-1 in %", loc="left", color=palette.ink, fontsize=9)
    plain(axes, palette)
    axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink)
    return figure


def _draw(axes, table: StudyTable, name: str, palette: Palette, *, legend: bool) -> None:  # type: ignore[no-untyped-def]  # an Axes of matplotlib
    """Draw a line per value of the axis `lines`: medians, with a bar from the least to the most."""
    ticks = list(dict.fromkeys(row.labels[table.x] for row in table.rows))
    places = {label: place for place, label in enumerate(_in_order(ticks))}
    for number, (line, rows) in enumerate(_lines(table, name).items()):
        rows = sorted(rows, key=lambda row: places[row.labels[table.x]])
        # Lines that stand side by side: bars of one place do not hide each other.
        x = [places[row.labels[table.x]] + 0.06 * number for row in rows]
        y = [100 * row.figures[name].middle for row in rows]
        down = [100 * (row.figures[name].middle - row.figures[name].low) for row in rows]
        up = [100 * (row.figures[name].high - row.figures[name].middle) for row in rows]
        axes.errorbar(
            x, y, yerr=[down, up], label=line or None, capsize=3, linewidth=1.6, markersize=4.5,
            color=palette.inits[_SHADES[number % 2]], linestyle=_STYLES[number // 2 % 4],
            marker=_MARKERS[number % 8],
        )  # fmt: skip
    axes.set_xticks([*places.values()], [*places])
    axes.set_xlim(-0.4, len(places) - 0.4)
    axes.set_xlabel(table.x, color=palette.dim, fontsize=9)
    axes.set_title(f"{name}, {table.figures[name]} in %", loc="left", color=palette.ink, fontsize=9)
    plain(axes, palette)
    if legend and table.lines:
        axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink, title=table.lines,
                    title_fontsize=8).get_title().set_color(palette.dim)  # fmt: skip


def _lines(table: StudyTable, name: str) -> dict[str, list[StudyRow]]:
    """Return the rows of each line: those with one value of `lines` and of all other axes."""
    found: dict[str, list[StudyRow]] = {}
    for row in table.finished:
        if name in row.figures:
            own = [v for axis, v in row.labels.items() if axis != table.x]
            found.setdefault(", ".join(own), []).append(row)
    return found


def _in_order(labels: Sequence[str]) -> list[str]:
    """Return the labels of an axis: numbers by size, words as the file has them."""
    try:
        return sorted(labels, key=float)
    except ValueError:
        return list(labels)
