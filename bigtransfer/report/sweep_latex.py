r"""The tables of a sweep as LaTeX: tasks as rows, sizes of training sets and inits as columns.

For the package booktabs. A cell is the median in percent, with the least and the most seed beside
it. Beneath each group stand its means; a second table sets them beside published ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bigtransfer.artifacts.report import SummaryRow
from bigtransfer.report.sweep import ALL, Published, SweptTask, group_rows, in_order
from bigtransfer.report.table import METRICS, by_shots

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&",
    "#": r"\#", "$": r"\$", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "–": "--",
    "→": r"$\rightarrow$", "≥": r"$\geq$", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "*": "{*}",  # behind the end of a row they would be its options
}  # fmt: skip
_INITS = {"upstream": "transfer", "scratch": "scratch"}
_NOTHING = "--"
_MEAN = "mean"
Column = tuple[str, str]
"""Examples per class, and init; or `published` in its place."""
_PUBLISHED = "published"


def as_latex(
    tasks: Sequence[SweptTask],
    published: Sequence[Published] = (),
    sizes: Mapping[str, int] | None = None,
) -> str:
    """Return both tables; the second only where there are means.

    Args:
        tasks: In the order of the rows within their groups.
        published: Means of others.
        sizes: Tasks that each group has; None: those of `tasks`.
    """
    means = group_rows(tasks, sizes)
    parts = [_by_task(tasks, means)]
    if means or published:
        parts.append(_means(means, published))
    return "\n".join(
        ["% \\usepackage{booktabs}. Percent; median over seeds, small: least to most seed.", *parts]
    )


def _columns(tasks: Sequence[SweptTask]) -> list[Column]:
    rows = [row for task in tasks for row in task.rows]
    columns: list[Column] = []
    for k in sorted({str(row.examples_per_class) for row in rows}, key=by_shots):
        there = {row.init for row in rows if str(row.examples_per_class) == k}
        columns += [(k, init) for init in _INITS if init in there]
        if any(k in task.reference for task in tasks if task.rows):
            columns.append((k, _PUBLISHED))
    return columns


def _by_task(tasks: Sequence[SweptTask], means: Sequence[Mapping[str, str]]) -> str:
    columns = _columns(tasks)
    notes: dict[str, str] = {}
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", *_header(columns)]
    for group in dict.fromkeys(task.group for task in tasks):
        lines.append(r"\midrule")
        if group:
            lines.append(
                rf"\multicolumn{{{1 + len(columns)}}}{{l}}{{\emph{{{escaped(group)}}}}} \\"
            )
        members = [task for task in tasks if task.group == group]
        lines += [_line([_name(task, notes), *_cells(task, columns)]) for task in members]
        if group and (mean := _mean_line(group, means, columns)):
            lines.append(mean)
    if whole := _mean_line(ALL, means, columns):
        lines += [r"\midrule", whole]
    lines.append(r"\bottomrule")
    wide = rf"\multicolumn{{{1 + len(columns)}}}{{l}}"
    lines += [
        rf"{wide}{{\footnotesize $^{{{mark}}}$ {escaped(note)}}} \\" for note, mark in notes.items()
    ]
    return "\n".join([*lines, r"\end{tabular}", ""])


def _header(columns: Sequence[Column]) -> list[str]:
    """Return the names of the columns: sizes above, inits beneath."""
    above, rules, start = [""], [], 2
    for k in dict.fromkeys(k for k, _ in columns):
        width = sum(own == k for own, _ in columns)
        title = "all images" if k == "full" else f"{k} per class"
        above.append(rf"\multicolumn{{{width}}}{{c}}{{{title}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    beneath = ["task", *(_INITS.get(init, init) for _, init in columns)]
    return [_line(above), " ".join(rules), _line(beneath)] if columns else [_line(beneath)]


def _cells(task: SweptTask, columns: Sequence[Column]) -> list[str]:
    found: dict[Column, SummaryRow] = {
        (str(row.examples_per_class), row.init): row for row in task.rows
    }
    cells = []
    for k, init in columns:
        if init == _PUBLISHED:
            figure = task.reference.get(k)
            cells.append(_NOTHING if figure is None else f"{figure:.1f}")
        else:
            row = found.get((k, init))
            cells.append(_NOTHING if row is None else _score(row))
    return cells


def _score(row: SummaryRow) -> str:
    low, middle, high = (f"{100 * value:.1f}" for value in (row.min, row.median, row.max))
    return middle if row.seeds == 1 else rf"{middle} {{\scriptsize [{low}, {high}]}}"


def _name(task: SweptTask, notes: dict[str, str]) -> str:
    """Return the task's name with the marks of its notes, which are numbered as they come."""
    own = [task.notes] if task.notes else []
    if task.missing and not task.rows:
        own.append("no results yet")
    if task.rows and task.rows[0].metric != "top1":
        own.append(METRICS[task.rows[0].metric])
    marks = [notes.setdefault(note, _letter(len(notes))) for note in own]
    return escaped(task.name) + (f"$^{{{','.join(marks)}}}$" if marks else "")


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else str(number - 25)


def _mean_line(
    group: str, means: Sequence[Mapping[str, str]], columns: Sequence[Column]
) -> str | None:
    """Return the row of a group's means; where not all tasks are in one, how many are."""
    found = {(row["per_class"], row["init"]): row for row in means if row["group"] == group}
    if not found:
        return None
    cells = []
    for column in columns:
        row = found.get(column)
        cells.append(_NOTHING if row is None else _mean(row))
    name = _MEAN if group != ALL else f"{_MEAN}, {ALL}"
    return _line([rf"\textit{{{name}}}", *cells])


def _mean(row: Mapping[str, str]) -> str:
    part, whole = row["tasks"].split(" of ")
    some = "" if part == whole else rf" {{\scriptsize ({part} of {whole})}}"
    return row["mean_of_medians"] + some


def _means(means: Sequence[Mapping[str, str]], published: Sequence[Published]) -> str:
    """Return a table of groups as columns: our rows, and those that others have printed."""
    names = [*dict.fromkeys(row["group"] for row in means)]
    names += [g for other in published for g in other.means if g not in names]
    names = sorted(dict.fromkeys(names), key=lambda name: name == ALL)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(names)}}}",
        r"\toprule",
        _line(["mean of medians", *map(escaped, names)]),
        r"\midrule",
    ]
    kinds = in_order((row["per_class"], row["init"]) for row in means)
    for k, init in kinds:
        own = {r["group"]: r for r in means if (r["per_class"], r["init"]) == (k, init)}
        title = f"{_INITS[init]}, {'all images' if k == 'full' else f'{k} per class'}"
        lines.append(_line([title, *(_mean(own[n]) if n in own else _NOTHING for n in names)]))
    if published:
        lines += [r"\midrule"] if kinds else []
        for other in published:
            cells = [f"{other.means[n]:.2f}" if n in other.means else _NOTHING for n in names]
            lines.append(_line([f"{escaped(other.name)} (published)", *cells]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escaped(text: str) -> str:
    """Return text in which LaTeX finds no command of its own."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)
