"""The tables of a sweep as LaTeX."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from bigtransfer.report.sweep import Published, SweptTask
from bigtransfer.report.sweep_latex import as_latex, escaped
from fixtures.reports import summary_row

TASKS = [
    SweptTask(
        "pets", "natural",
        [summary_row("upstream", 5, 0.4, 0.5, 0.7), summary_row("scratch", 5, 0, 0.1, 0.2),
         summary_row("upstream", "full", 0.6, 0.8, 0.9)],
        {"full": 82.3},
    ),
    SweptTask("flow_ers", "natural", [summary_row("upstream", 5, 0.8, 0.9, 0.95)]),
    SweptTask("dtd", "natural", missing="put it at data/dtd"),
    SweptTask("dsprites", "structured", [summary_row("upstream", 5, 0.1, 0.2, 0.3)],
              official=False),
]  # fmt: skip


def cells_of(latex: str, name: str) -> list[str]:
    """Return the cells of the row that begins with a name."""
    lines = [line for line in latex.splitlines() if line.startswith(f"{name} & ")]
    assert len(lines) == 1, name
    assert lines[0].endswith(r" \\")
    return lines[0].removesuffix(r" \\").split(" & ")[1:]


def test_tasks_are_rows_and_sizes_are_columns() -> None:
    latex = as_latex(TASKS)
    assert r" & \multicolumn{2}{c}{5 per class} & \multicolumn{2}{c}{all images} \\" in latex
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}" in latex
    assert cells_of(latex, "task") == ["transfer", "scratch", "transfer", "published"]
    assert cells_of(latex, "pets") == [
        r"50.0 {\scriptsize [40.0, 70.0]}", r"10.0 {\scriptsize [0.0, 20.0]}",
        r"80.0 {\scriptsize [60.0, 90.0]}", "82.3",
    ]  # fmt: skip
    assert cells_of(latex, r"flow\_ers")[1:] == ["--", "--", "--"]
    assert cells_of(latex, "dtd$^{a}$") == ["--"] * 4
    assert r"$^{a}$ no results yet" in latex and r"$^{b}$ not the official split" in latex


def test_every_row_of_a_table_has_as_many_cells() -> None:
    for table in as_latex(TASKS, [Published("theirs", {"natural": 80.77})]).split(r"\end{tabular}"):
        spec = re.search(r"begin{tabular}{(l+r*)}", table)
        if spec is None:
            continue
        for line in table.splitlines():
            if line.endswith(r" \\"):
                spans = sum(int(n) - 1 for n in re.findall(r"\\multicolumn{(\d+)}", line))
                assert line.count(" & ") + 1 + spans == len(spec[1]), line


def test_group_means_and_published_ones_stand_together() -> None:
    others = [Published("A & B", {"natural": 80.77, "all groups": 73.5})]
    latex = as_latex(TASKS, others, {"natural": 7, "structured": 8})
    assert latex.count(r"\textit{mean} & 70.0 {\scriptsize (2 of 7)} &") == 1
    assert r"\textit{mean, all groups} & 70.0 {\scriptsize (2 of 15)} &" in latex
    assert cells_of(latex, "mean of medians") == ["natural", "all groups"]
    assert cells_of(latex, "transfer, 5 per class")[0] == r"70.0 {\scriptsize (2 of 7)}"
    assert r"A \& B (published) & 80.77 & 73.50 \\" in latex


def test_one_seed_has_no_spread_and_another_metric_is_marked() -> None:
    row = summary_row("upstream", 5, 0.5, 0.5, 0.5).model_copy(update={"seeds": 1, "metric": "map"})
    latex = as_latex([SweptTask("signs", rows=[row])])
    assert cells_of(latex, "signs$^{a}$") == ["50.0"]
    assert r"$^{a}$ mAP" in latex and "mean" not in latex


def test_a_sweep_without_results_is_a_table_all_the_same() -> None:
    latex = as_latex([replace(TASKS[2], group="")])
    assert "begin{tabular}{l}" in latex and "dtd$^{a}$" in latex


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("50 % & #1_$x", r"50 \% \& \#1\_\$x"),
        (r"a\b{c}", r"a\textbackslash{}b\{c\}"),
        ("~^", r"\textasciitilde{}\textasciicircum{}"),
        ("[a]* é–", "{[}a]{*} é--"),
    ],
)
def test_what_latex_would_read_as_a_command_is_escaped(text: str, wanted: str) -> None:
    assert escaped(text) == wanted
