"""The page of a sweep, and its curves."""

from __future__ import annotations

import html
import re
from dataclasses import replace

from bigtransfer.report.curves import are_curves, for_paper, shots_of, small_charts
from bigtransfer.report.sweep import Published, Sweep, SweptTask
from bigtransfer.report.sweep_page import render
from fixtures.reports import summary_row

BOTH = [
    summary_row("upstream", 1, 0.3, 0.4, 0.5), summary_row("upstream", 10, 0.6, 0.7, 0.8),
    summary_row("scratch", 1, 0.1, 0.2, 0.3), summary_row("scratch", 10, 0.2, 0.3, 0.65),
]  # fmt: skip
TASKS = [
    SweptTask("pets", "natural", BOTH, {"10": 82.3}),
    SweptTask("фото", "natural", [summary_row("upstream", "full", 0.8, 0.9, 0.95)]),
    SweptTask("dtd", "natural", missing="put <DTD> at data/dtd"),
    SweptTask("broken", "natural", missing="failed: it asks for 99"),
]
SWEEP = Sweep(TASKS, [Published("theirs", {"natural": 80.77})], {"natural": 7})


def page_of(sweep: Sweep = SWEEP) -> str:
    return render(
        sweep, pages={"pets": "../pets/page/index.html"},
        files={"table.tex": "../table.tex", "curves.pdf": "../curves.pdf"}, params="{}",
    )  # fmt: skip


def test_curves_of_all_tasks_have_the_same_axes() -> None:
    assert shots_of(TASKS) == [1, 10, "full"] and are_curves(TASKS)
    charts = small_charts(TASKS)
    assert len(charts) == 2
    for chart, name in zip(charts, ("pets", "фото"), strict=True):
        assert f">{name}<" in chart and ">all<" in chart and ">100 %<" in chart
        assert "var(--blue)" in chart and "#0" not in chart
    assert "var(--orange)" in charts[0] and "var(--orange)" not in charts[1]
    assert "fill-opacity: 0.2" in charts[0]  # the band


def test_the_figure_for_a_paper_is_the_same_bytes_each_time() -> None:
    svg, pdf = for_paper(TASKS)
    assert (svg, pdf) == for_paper(TASKS)
    assert svg.startswith(b"<?xml") and pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")
    assert b"CreationDate" not in pdf and b"<dc:date>" not in svg and b"var(--" not in svg
    assert for_paper(TASKS[1:]) != (svg, pdf)


def test_one_size_alone_is_no_curve_but_dots() -> None:
    one = [replace(TASKS[0], rows=BOTH[1:2]), replace(TASKS[0], name="cats", rows=BOTH[1:2])]
    assert not are_curves(one)
    page = page_of(Sweep(one))
    assert 'class="multiples"><' not in page and ">cats · natural<" in page
    assert "from scratch</p>" not in page
    assert for_paper(one)[0].count(b"<svg") == 1


def test_what_is_missing_is_listed_with_what_to_do() -> None:
    page = page_of()
    missing = page.partition("<h2>Missing (2)")[2].partition("<h2>")[0]
    assert "put &lt;DTD&gt; at data/dtd" in missing
    assert re.search(r'<dd class="bad">failed: it asks for 99', missing)
    assert "<b>2 of 7</b><span>tasks are finished" in page


def test_headline_figures_are_means_over_tasks_that_count() -> None:
    page = page_of(Sweep(TASKS[:1]))
    assert "<b>70.0 %</b><span>mean of medians over 1 task, transfer, 10 per class" in page
    gap = "points over scratch, mean of 1 task, 10 per class; every seed"
    assert f'title="inside the spread of the seeds">+40.0</b><span>{gap}' in page
    assert "above every one from scratch in 0 of 1</span>" in page
    noted = [replace(TASKS[0], note="made with other params")]
    assert "mean of medians" not in page_of(Sweep(noted)).partition("</div>\n</div>")[0]


def test_the_table_can_be_sorted_and_read_without_a_script() -> None:
    page = page_of()
    table = page.partition('<div class="scroll sort">')[2].partition("</table>")[0]
    assert table.count("<tr>") == 1 + len(BOTH) + 1
    assert '<a href="../pets/page/index.html">pets</a>' in table
    assert re.search(r'<td class="n">60.0</td><td class="n"><b>70.0</b></td><td class="n">80.0</td>'
                     r'<td class="n">3</td><td class="n">82.3</td>', table)  # fmt: skip
    assert "aria-sort" in page.partition("<script>")[2]
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


def test_published_means_stand_beneath_ours() -> None:
    page = html.unescape(page_of())
    means = page.partition("<h2>Means over groups")[2].partition("</table>")[0]
    assert "<b>90.0</b>" in means and "1 of 7" in means
    assert means.index("80.77") > means.index("90.0")
