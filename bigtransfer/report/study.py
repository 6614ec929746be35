"""The table of a study: a row for each point, least <- median -> most over seeds; as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from bigtransfer.report.sweep_latex import escaped

UPSTREAM = "upstream"
"""Name of the figure that every study has: validation top-1 of the upstream network."""
_NOTHING = "–"


@dataclass(frozen=True)
class Spread:
    """Scores that differ by their seed alone, in [0, 1]."""

    values: Sequence[float]

    @property
    def low(self) -> float:
        """Return the least."""
        return min(self.values)

    @property
    def middle(self) -> float:
        """Return the median."""
        return median(self.values)

    @property
    def high(self) -> float:
        """Return the most."""
        return max(self.values)

    def text(self, arrows: Sequence[str] = (" ← ", " → ")) -> str:
        """Return it in percent; one value alone has no spread."""
        low, middle, high = (f"{100 * own:.1f}" for own in (self.low, self.middle, self.high))
        if len(self.values) == 1:
            return middle
        return f"{low}{arrows[0]}{middle}{arrows[1]}{high}"


@dataclass(frozen=True)
class StudyRow:
    """A point of a study: the cells that differ by their upstream seed alone."""

    labels: Mapping[str, str]
    """Axis -> value."""
    steps: int | None = None
    """Of upstream training; None: no cell is finished."""
    images: int | None = None
    """That it takes, each time that it sees one."""
    parameters: int | None = None
    figures: Mapping[str, Spread] = field(default_factory=dict)
    """`upstream`, and each task -> scores of the cells that count."""
    curve: Sequence[tuple[int, float]] = ()
    """Images that upstream training has seen, and validation top-1 there; of the first seed."""
    finished: int = 0
    """Cells that count."""
    cells: int = 0
    note: str = ""
    """What is missing or does not count, and why."""

    @property
    def title(self) -> str:
        """Return what sets it apart."""
        return ", ".join(f"{axis} {label}" for axis, label in self.labels.items())


@dataclass(frozen=True)
class PublishedFigure:
    """A figure of the literature."""

    where: str
    figure: str
    percent: float
    source: str


@dataclass(frozen=True)
class StudyTable:
    """All that the tables and the page of a study are made of."""

    name: str
    about: str
    axes: Sequence[str]
    tasks: Mapping[str, str]
    """Task -> what is scored, for people."""
    rows: Sequence[StudyRow]
    x: str
    """Axis, left to right."""
    lines: str | None = None
    """Axis, a line for each value."""
    published: Sequence[PublishedFigure] = ()
    note: str = ""
    curves: bool = False
    """Whether each point's curve is drawn."""

    @property
    def figures(self) -> dict[str, str]:
        """Return the columns of scores -> what each is."""
        return {UPSTREAM: "validation top-1", **{t: f"test {m}" for t, m in self.tasks.items()}}

    @property
    def finished(self) -> list[StudyRow]:
        """Return the rows that have scores."""
        return [row for row in self.rows if row.figures]


def text_rows(table: StudyTable) -> list[dict[str, str]]:
    """Return the table as text, a dictionary per row."""
    found = []
    for row in table.rows:
        own = dict(row.labels)
        own["steps"] = _NOTHING if row.steps is None else f"{row.steps:,}"
        own["images"] = _NOTHING if row.images is None else f"{row.images:,}"
        for name in table.figures:
            own[name] = row.figures[name].text() if name in row.figures else _NOTHING
        own["cells"] = f"{row.finished} of {row.cells}"
        own["note"] = row.note
        found.append(own)
    return found


def csv_rows(table: StudyTable) -> list[dict[str, object]]:
    """Return the table with numbers apart: `<figure>_min`, `_median`, `_max`, shares of one."""
    found = []
    for row in table.rows:
        own: dict[str, object] = {**row.labels, "steps": row.steps, "images": row.images}
        own["parameters"] = row.parameters
        for name in table.figures:
            spread = row.figures.get(name)
            own[f"{name}_min"] = None if spread is None else spread.low
            own[f"{name}_median"] = None if spread is None else spread.middle
            own[f"{name}_max"] = None if spread is None else spread.high
            own[f"{name}_values"] = 0 if spread is None else len(spread.values)
        own |= {"cells": row.finished, "cells_wanted": row.cells, "note": row.note}
        found.append(own)
    return found


def as_markdown(table: StudyTable) -> str:
    """Return the table, what differs, and published figures, in Markdown."""
    rows = text_rows(table)
    heads = [*table.axes, "steps", "images", *table.figures, "cells"]
    if any(row["note"] for row in rows):
        heads.append("note")
    right = {"steps", "images", "cells", *table.figures}
    lines = [_line(heads), _line(["---:" if head in right else "---" for head in heads])]
    lines += [_line([row[head].replace("|", r"\|") for head in heads]) for row in rows]
    told = "Percent, least ← median → most over seeds: " + ", ".join(
        f"{name} ({what})" for name, what in table.figures.items()
    )
    parts = [f"{told}.", "\n".join(lines)]
    if said := [*differences(table)]:
        parts.append("\n".join(f"- {one}" for one in said))
    if table.published:
        heads = ["published", "figure", "percent", "source"]
        own = [
            _line([one.where, one.figure, f"{one.percent:g}", one.source])
            for one in table.published
        ]
        parts.append("\n".join([_line(heads), _line(["---", "---", "---:", "---"]), *own]))
    if table.note:
        parts.append(table.note)
    return "\n\n".join(parts) + "\n"


def as_latex(table: StudyTable) -> str:
    """Return the table for the package booktabs."""
    heads = [*table.axes, "steps", "images", *table.figures]
    kinds = "l" * len(table.axes) + "r" * (2 + len(table.figures))
    lines = [
        "% \\usepackage{booktabs}. Percent; median over seeds, small: least to most seed.",
        rf"\begin{{tabular}}{{{kinds}}}", r"\toprule",
        " & ".join(map(escaped, heads)) + r" \\", r"\midrule",
    ]  # fmt: skip
    for row in table.rows:
        cells = [escaped(row.labels[axis]) for axis in table.axes]
        cells += ["--" if own is None else f"{own:,}" for own in (row.steps, row.images)]
        cells += [_latex(row.figures.get(name)) for name in table.figures]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def differences(table: StudyTable) -> Iterator[str]:
    """Say of each figure which point is best, which is worst, and whether seeds tell them apart.

    Where lines are drawn, the values of that axis are compared with all else equal.
    """
    finished = table.finished
    if table.lines is None:
        groups = {"": finished}
    else:
        groups = {}
        for row in finished:
            same = ", ".join(f"{a} {v}" for a, v in row.labels.items() if a != table.lines)
            groups.setdefault(same, []).append(row)
    for name in table.figures:
        for same, rows in groups.items():
            own = [row for row in rows if name in row.figures]
            if len(own) > 1:
                yield _compared(name, same, own, table.lines)


def _compared(name: str, same: str, rows: Sequence[StudyRow], axis: str | None) -> str:
    ranked = sorted(rows, key=lambda row: row.figures[name].middle)
    worst, best = ranked[0], ranked[-1]
    low, high = worst.figures[name], best.figures[name]
    told = [f"{axis} {row.labels[axis]}" if axis else row.title for row in (best, worst)]
    at = f" at {same}" if same else ""
    line = f"{name}{at}: {told[0]}: {high.text()}, {told[1]}: {low.text()}"
    if min(len(low.values), len(high.values)) == 1:
        return f"{line}: of one seed, so nothing is known of the spread"
    if high.low <= low.high:
        return f"{line}: their seeds overlap, so this does not tell them apart"
    apart = f"{line}: every seed of the one is above every seed of the other"
    if min(best.finished, worst.finished) == 1:
        return f"{apart}, but each is of one upstream training, whose own spread is not known"
    return apart


def _latex(spread: Spread | None) -> str:
    if spread is None:
        return "--"
    middle = f"{100 * spread.middle:.1f}"
    if len(spread.values) == 1:
        return middle
    return rf"{middle} {{\scriptsize [{100 * spread.low:.1f}, {100 * spread.high:.1f}]}}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
