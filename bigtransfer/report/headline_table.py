"""The table of all tasks on the report page: no column of it is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bigtransfer.artifacts.report import SummaryRow, TaskReport
from bigtransfer.report.headline import (
    baseline_of,
    difference_text,
    interval_of,
    pairs_of,
    spread_of,
)
from bigtransfer.report.table import OTHERS
from bigtransfer.report.words import percent, span


@dataclass(frozen=True)
class Entry:
    """What stands in a place of the table."""

    text: str = ""
    note: str = ""
    """In small type beneath."""
    grey: bool = False


@dataclass(frozen=True)
class Column:
    """A column, top to bottom."""

    title: str
    entries: Sequence[Entry]
    number: bool = True


def headline_columns(results: Mapping[str, TaskReport]) -> list[Column]:
    """Return the columns that say something, of a row per task and examples per class.

    Args:
        results: Report of each task, by name.
    """
    lines = [
        (result, k, transfer, scratch)
        for result in results.values()
        for k, (transfer, scratch) in pairs_of(result.rows).items()
    ]
    controlled = any(scratch for *_, scratch in lines)
    columns = [
        Column("task", [Entry(_name(result, results)) for result, *_ in lines], number=False),
        Column("examples per class", [Entry(_all(k)) for _, k, *_ in lines]),
        Column("transfer" if controlled else "test score", [_score(r, t) for r, _, t, _ in lines]),
        Column("scratch", [_score(r, s) for r, _, _, s in lines]),
        Column("difference", [_difference(t, s) for *_, t, s in lines]),
        Column("baseline", [_baseline(result) for result, *_ in lines]),
        *(
            Column(word, [_share(_other(t or s, name)) for *_, t, s in lines])
            for name, word in OTHERS.items()
        ),
        Column("seeds", [Entry(_seeds(t, s)) for *_, t, s in lines]),
    ]
    return [column for column in columns if any(entry.text for entry in column.entries)]


def _name(result: TaskReport, results: Mapping[str, TaskReport]) -> str:
    return result.task if len(results) > 1 else ""


def _all(k: int | str) -> str:
    return "all" if k == "full" else f"{k}"


def _score(result: TaskReport, row: SummaryRow | None) -> Entry:
    if row is None:
        return Entry()
    found = interval_of(result, row)
    spread = f"{100 * row.median:.1f} ± {100 * row.sd:.1f} %"
    text = percent(row.median) if row.seeds == 1 else spread
    return Entry(text, "" if found is None else span(found[0]))


def _difference(transfer: SummaryRow | None, scratch: SummaryRow | None) -> Entry:
    if transfer is None or scratch is None:
        return Entry()
    verdict = spread_of(transfer, scratch)
    text = difference_text(transfer, scratch)
    return Entry(text, verdict.short, grey=not verdict.certain)


def _other(row: SummaryRow | None, name: str) -> float | None:
    return None if row is None else row.medians.get(name)


def _baseline(result: TaskReport) -> Entry:
    found = baseline_of(result)
    return _share(found.share if found else None)


def _share(share: float | None) -> Entry:
    return Entry("" if share is None else percent(share))


def _seeds(*rows: SummaryRow | None) -> str:
    return " and ".join(dict.fromkeys(str(row.seeds) for row in rows if row))
