"""The page of `dvc plots show`: drawn by the template of this project, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fixtures.project import PROJECT

PLOTS = """
plots:
  - history.csv: {x: step, y: loss}
  - cells.csv: {x: examples_per_class, y: test_top1}
  - predictions.csv: {template: confusion, x: predicted, y: actual}
"""
FILES = {
    "history.csv": "step,loss,val_top1\n1,3.5,\n20,0.5,0.4\n40,0.25,\n",
    "cells.csv": "init,examples_per_class,seed,test_top1\nupstream,1,0,0.5\nupstream,full,0,0.75\n"
    "scratch,1,0,0.25\nscratch,full,0,0.5\n",
    "predictions.csv": "path,actual,predicted\na.png,cat,cat\nb.png,cat,<dog>\nc.png,<dog>,<dog>\n",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page that DVC writes with this project's settings and template."""
    folder = tmp_path_factory.mktemp("plots")
    shutil.copytree(PROJECT / ".dvc" / "plots", folder / ".dvc" / "plots")
    settings = (PROJECT / ".dvc" / "config").read_text("utf-8")
    (folder / ".dvc" / "config").write_text(settings.replace("[core]", "[core]\n    no_scm = true"))
    (folder / "dvc.yaml").write_text(PLOTS)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    line = [sys.executable, "-m", "dvc", "plots", "show"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "dvc_plots" / "index.html"


def test_the_page_fetches_nothing_and_has_every_plot(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert "{plot_divs}" not in text and "{refresh_tag}" not in text
    assert re.findall(r"vegaEmbed\('#(\w+)'", text) == ["history_csv", "cells_csv",
                                                        "predictions_csv"]  # fmt: skip


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium to run the page")
def test_a_browser_draws_lines_and_a_confusion_matrix(page: Path) -> None:
    line = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.S)
    history, cells, predictions = dom.split("<h2>")[1:]
    assert history.count("<polyline") == 1 and history.count("<circle") == 3
    assert cells.count("<polyline") == 2 and cells.count("stroke-dasharray") == 1
    assert ">full</text>" in cells and "scratch: full, 0.5" in cells
    assert "cat taken for &lt;dog&gt;: 1 of 2" in predictions
    assert predictions.count("<rect") == 1 + 3
