"""Pages as a narrow panel shows them."""

from __future__ import annotations

from pathlib import Path

from bigtransfer.report.page import render


def rendered(folder: Path, table: str) -> str:
    (folder / "t.html").write_text(table)
    return render(folder / "t.html", rows=[1, 2])


def test_cells_of_a_wide_table_name_their_column(tmp_path: Path) -> None:
    page = rendered(
        tmp_path,
        "<table>\n<tr><th>task</th><th class='n'>a <b>b</b></th><th></th><th>d &amp; e</th></tr>"
        "{% for r in rows %}<tr><td>x</td><td class='n'>{{ r }}</td><td></td><td>4</td></tr>"
        "{% endfor %}</table>",
    )
    assert '<table class="stack">' in page
    assert page.count('<td data-label="task">x</td>') == 2
    assert """<td data-label="a b" class='n'>1</td>""" in page
    assert page.count('data-label="d &amp; e"') == 2


def test_other_tables_stay(tmp_path: Path) -> None:
    narrow = "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>"
    assert rendered(tmp_path, narrow) == narrow
    spanned = (
        "<table><tr><th>a</th><th>b</th><th>c</th><th>d</th></tr>"
        "<tr><td colspan='4'>1</td></tr></table>"
    )
    assert rendered(tmp_path, spanned) == spanned
