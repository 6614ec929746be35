"""The page of a sweep: its curves on the same axes, its tables, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from bigtransfer.artifacts.report import SummaryRow
from bigtransfer.progress import counted
from bigtransfer.report import curves, page
from bigtransfer.report.sweep import ALL, Sweep, SweptTask, group_rows, in_order, table_rows
from bigtransfer.report.table import by_shots, metric_names
from bigtransfer.version import __version__

INITS = {"upstream": "transfer", "scratch": "from scratch"}
"""Words for how a network begins."""


def render(sweep: Sweep, *, pages: Mapping[str, str], files: Mapping[str, str], params: str) -> str:
    """Return the page as HTML, in one piece.

    Args:
        sweep: What was found.
        pages: Address of the page of each task that has one, relative to this page.
        files: Name -> address, relative to this page, of the same figures in other forms.
        params: Text of the params of each task.
    """
    tasks = sweep.tasks
    finished = [task for task in tasks if task.rows]
    joined = curves.are_curves(finished)
    return page.render(
        Path(__file__).with_name("sweep.html"),
        finished=finished,
        total=_total(sweep),
        missing=[task for task in tasks if not task.rows],
        cards=_cards(finished, sweep),
        charts=list(zip(finished, curves.small_charts(finished), strict=True)) if joined else [],
        dots=curves.dots(finished) if finished and not joined else "",
        references=any(task.reference for task in finished),
        rows=_rows(finished),
        groups=any(task.group for task in finished),
        means=_means(sweep),
        metric_names=metric_names(row for task in finished for row in task.rows),
        inits=INITS,
        drawn={row.init for task in finished for row in task.rows},
        pages=pages,
        files=files,
        params=params,
        version=__version__,
    )


def _total(sweep: Sweep) -> int:
    """Return how many tasks there are: all of their groups, not those alone that were come by."""
    sizes = sweep.sizes or {}
    lone = sum(task.group not in sizes for task in sweep.tasks)
    return sum(sizes.values()) + lone


def _rows(tasks: Sequence[SweptTask]) -> list[page.Shown]:
    """Return the rows of the table, with where its strip begins and ends."""
    figures = [row for task in tasks for row in task.rows]
    return [
        {**text, "low": 100 * row.min, "mid": 100 * row.median, "high": 100 * row.max}
        for text, row in zip(
            (text for text in table_rows(tasks) if text["median"]), figures, strict=True
        )
    ]


def _cards(finished: Sequence[SweptTask], sweep: Sweep) -> list[dict[str, str]]:
    """Return the headline figures: means over tasks on the largest training sets."""
    counting = [task for task in finished if task.counts]
    shots = curves.shots_of(counting)
    cards = []
    if shots:
        k = max(shots, key=lambda k: (sum(bool(_of(t, k)) for t in counting), by_shots(k)))
        found = [own for task in counting if (own := _of(task, k))]
        words = "all images" if k == "full" else f"{k} per class"
        for init, word in INITS.items():
            medians = [own[init].median for own in found if init in own]
            if medians:
                tasks = counted(len(medians), "task")
                label = f"mean of medians over {tasks}, {word}, {words}"
                cards.append({"value": f"{100 * fmean(medians):.1f} %", "label": label})
        both = [own for own in found if len(own) == len(INITS)]
        if both:
            gaps = [own["upstream"].median - own["scratch"].median for own in both]
            apart = sum(own["upstream"].min > own["scratch"].max for own in both)
            label = (
                f"points over scratch, mean of {counted(len(both), 'task')}, {words}; every seed "
                f"of transfer is above every one from scratch in {apart} of {len(both)}"
            )
            card = {"value": f"{100 * fmean(gaps):+.1f}", "label": label}
            cards.append(card if apart else card | {"inside": "yes"})
    total = _total(sweep)
    cards.append({"value": f"{len(finished)} of {total}", "label": "tasks are finished"})
    return cards


def _of(task: SweptTask, k: int | str) -> dict[str, SummaryRow]:
    """Return the rows of a task at a size, by init."""
    return {row.init: row for row in task.rows if row.examples_per_class == k}


def _means(sweep: Sweep) -> page.Shown:
    """Return groups as columns: rows of means of medians, and those that others have printed."""
    own = group_rows(sweep.tasks, sweep.sizes)
    names = dict.fromkeys(row["group"] for row in own)
    names |= dict.fromkeys(group for other in sweep.published for group in other.means)
    ordered = sorted(names, key=lambda name: name == ALL)
    kinds = in_order((row["per_class"], row["init"]) for row in own)
    cells = {(row["per_class"], row["init"], row["group"]): row for row in own}
    return {
        "groups": ordered,
        "ours": [
            {
                "per_class": k,
                "init": INITS[init],
                "cells": [cells.get((k, init, group)) for group in ordered],
            }
            for k, init in kinds
        ],
        "published": [
            {
                "name": other.name,
                "cells": [
                    f"{other.means[group]:.2f}" if group in other.means else "" for group in ordered
                ],
            }
            for other in sweep.published
        ],
    }
