"""The page says of every figure what it is."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest

from bigtransfer.artifacts.registration import Registration
from bigtransfer.artifacts.report import Mistake, PlaceMap, TaskReport
from bigtransfer.report.page import picture
from bigtransfer.report.summary import render_report
from fixtures.project import PROJECT
from fixtures.reports import scored_cell, summary_row, task_report

GOLDEN = PROJECT / "tests" / "golden" / "artifacts" / "0.1.0"
SQUARE = picture(np.zeros((160, 160, 3), np.uint8), 160)
MAP = tuple(tuple(float(row * column) for column in range(7)) for row in range(7))
MISTAKE = Mistake(
    path="a/<1>.jpg", actual="a", predicted="b", probability=0.9, picture=SQUARE,
    actual_probability=0.1,
    maps=(PlaceMap(name="b", bias=0.5, values=MAP), PlaceMap(name="a", bias=0.0, values=MAP)),
)  # fmt: skip


def report() -> TaskReport:
    cell = scored_cell("upstream", 5, 1, 0.9, 0.625)
    rows = (summary_row("upstream", 5, 0.3, 0.417, 0.625), summary_row("scratch", 5, 0, 0.25, 0.5))
    bins = [{"images": 2, "confidence": 0.9, "accuracy": 0.5}]
    reliability = {"error_raw": 0.1, "error": 0.1, "bins": bins, "answered": 0.0,
                   "answered_accuracy": None}  # fmt: skip
    made = task_report(cells=(cell,), chosen=cell, rows=rows)
    raw = {**made.model_dump(mode="json"), "reliability": reliability}
    return TaskReport.parse({"schema": TaskReport.SCHEMA, **raw}, "report.json")


def shown(registrations: dict[str, Path] | None = None) -> str:
    page = render_report({"t": report()}, registrations=registrations, params="", commit="")
    return html.unescape(page)


def test_without_a_registered_model_the_tile_is_the_median() -> None:
    page = shown()
    assert (
        "<b>41.7 %</b><span>t: test top-1, median of 3 seeds, transfer, 5 per class</span>" in page
    )
    assert "<b>+16.7</b><span>t: points over scratch, between medians, 5 per class</span>" in page
    assert "<b>62.5 %</b> of this one network (median of 3 seeds: 41.7 %)" in page


def test_the_tile_of_a_registered_model_names_its_seed_and_the_median(tmp_path: Path) -> None:
    path = tmp_path / Registration.FILE
    Registration(
        name="b-t", version="1", alias="champion", run_id="r", new=True, reason="it is the first"
    ).write_file(path)
    label = "t: test top-1 of the registered model, seed 1 alone; the median of 3 seeds is 41.7 %"
    assert f"<b>62.5 %</b><span>{label}</span>" in shown({"t": path})


def test_the_page_shows_what_the_gates_say(tmp_path: Path) -> None:
    path = tmp_path / Registration.FILE
    Registration(
        name="b-t", version="1", alias="challenger", run_id="r", new=True, reason="refused",
        gates={"class_floor": "fail: recall of '3' falls by 9 points", "leakage": "pass: none"},
    ).write_file(path)  # fmt: skip
    page = shown({"t": path})
    row = "<tr><td>class floor</td><td>fail</td><td>recall of '3' falls by 9 points</td></tr>"
    assert row in page
    assert "What the gates say" in page
    assert "What the gates say" not in shown()


def page_of(*reports: TaskReport) -> str:
    return render_report({r.task: r for r in reports}, params="", commit="")


def with_classes(number: int) -> TaskReport:
    """Return a report of so many classes, each taken for the next one once."""
    matrix = np.diag(np.full(number, 3)) + np.roll(np.eye(number, dtype=int), 1, axis=1)
    classes = tuple(f"class_{n}" for n in range(number))
    return report().model_copy(
        update={"classes": classes, "confusion": tuple(map(tuple, matrix.tolist()))}
    )


def test_the_page_needs_no_network_and_no_script() -> None:
    page = page_of(report().model_copy(update={"mistakes": (MISTAKE,) * 13}))
    assert "<script" not in page and "url(" not in page and "@import" not in page
    loaded = re.findall(r'<(?:img|image|link|iframe)\b[^>]*?\b(?:src|href)="([^"]+)"', page)
    assert len(loaded) > 13 and all(address.startswith("data:image/") for address in loaded)
    anchors, links = set(re.findall(r'id="([^"]+)"', page)), re.findall(r'href="#([^"]+)"', page)
    assert links and set(links) <= anchors


def test_navigation_leads_to_every_task_whatever_its_name() -> None:
    names = ("pets", "my photos & “фото”", 'a"b')
    page = page_of(*(report().model_copy(update={"task": name}) for name in names))
    nav = page[page.index("<nav") : page.index("</nav>")]
    for number, name in enumerate(names, start=1):
        assert f'<a href="#task-{number}">{html.escape(name).replace("&quot;", "&#34;")}</a>' in nav
        assert page.count(f'<h2 id="task-{number}">') == 1
    assert "position: sticky" in page


def test_mistakes_have_maps_that_are_called_what_they_are() -> None:
    page = html.unescape(page_of(report().model_copy(update={"mistakes": (MISTAKE,) * 13})))
    assert "<b>how the logit adds up over places</b>" in page and "over 7 × 7 places" in page
    assert "GroupNorm takes its statistics over the whole image" in page
    assert "no proof of where the network looked" in page
    assert page.count("<b>b</b>: logit +9.50,<br>bias +0.50 in it") == 13
    assert page.count("<b>b</b> at 90.0 %,<br>is a (10.0 %)") == 13
    assert page.count(f'href="{SQUARE}"') == 13  # the picture once, however often it is seen
    assert "<summary>1 more</summary>" in page
    plain = page_of(
        report().model_copy(update={"mistakes": (MISTAKE.model_copy(update={"maps": ()}),)})
    )
    assert "adds up over places" not in plain
    assert '<img width="160" height="160" alt="a/&lt;1&gt;.jpg"' in plain


@pytest.mark.parametrize(("classes", "shown"), [(2, False), (5, False), (6, True)])
def test_top5_is_shown_where_it_says_something(classes: int, shown: bool) -> None:
    assert ("<th>top-5</th>" in page_of(with_classes(classes))) == shown


def test_a_chart_has_more_than_one_point() -> None:
    two = ({"images": 40, "confidence": 0.5, "accuracy": 0.5},
           {"images": 40, "confidence": 0.9, "accuracy": 0.8})  # fmt: skip
    for bins, words in (
        (two[:1], "On the mean it was 50.0 % sure, and right in 50.0 %."),
        (two, ""),
    ):
        raw = report().model_dump(mode="json")
        raw["reliability"]["bins"] = bins
        page = page_of(TaskReport.parse({"schema": TaskReport.SCHEMA, **raw}, "r"))
        assert ("how often right" in page) == (not words)
        assert words in page
    lone = page_of(report())
    assert "examples per class</text>" not in lone
    more = (*report().rows, summary_row("upstream", 1, 0.1, 0.2, 0.3))
    assert "examples per class</text>" in page_of(report().model_copy(update={"rows": more}))


def test_of_many_classes_the_confused_ones_are_shown() -> None:
    assert "that are most often taken for each other" not in page_of(with_classes(20))
    many = page_of(with_classes(78))
    assert "The 16 of 78 classes that are most often taken for each other; " in many
    svg = many[many.index("<svg", many.index('class="scroll wide"')) :].split("</svg>")[0]
    assert svg.count(">class ") == 32  # each beside its row and under its column


def test_a_report_of_the_first_schema_has_a_page() -> None:
    old = TaskReport.read(GOLDEN / "report")
    page = page_of(old)
    assert f"<b>{100 * old.chosen.test['top1']:.1f} %</b>" in page
    assert "Asked for" not in page and "it took" not in page


def test_time_and_device_are_shown_where_they_are_known() -> None:
    (cell,) = report().cells
    known = cell.model_copy(update={"seconds": 41.0, "device": "NVIDIA H100"})
    page = page_of(report().model_copy(update={"cells": (known,)}))
    assert "<tr><th>it took</th><td>41 s on NVIDIA H100</td></tr>" in page
