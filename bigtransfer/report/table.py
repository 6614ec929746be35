"""The headline table: transfer beside scratch, as text for the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from bigtransfer.artifacts.report import SummaryRow

METRICS = {"top1": "top-1", "map": "mAP"}
"""Names of the scores that rows are about, for people."""
OTHERS = {"balanced_accuracy": "balanced", "macro_f1": "macro-F1"}
"""Names of scores that stand beside top-1: a network that always says one class has a low one."""


def metric_names(rows: Iterable[SummaryRow]) -> str:
    """Return what the rows are about, e.g. `top-1`, or `top-1 or mAP`."""
    return " or ".join(dict.fromkeys(METRICS[row.metric] for row in rows))


def by_shots(examples_per_class: int | str) -> float:
    """Return a number to sort subset sizes by; `full` is the largest."""
    return float("inf") if examples_per_class == "full" else float(examples_per_class)


def headline_rows(rows: Iterable[SummaryRow]) -> list[dict[str, str]]:
    """Return transfer beside scratch per task and examples per class, as text to show."""
    pairs: dict[tuple[str, int | str], dict[str, SummaryRow]] = {}
    for row in rows:
        pairs.setdefault((row.task, row.examples_per_class), {})[row.init] = row
    result = []
    for (task, k), by_init in pairs.items():
        transfer, scratch = by_init.get("upstream"), by_init.get("scratch")
        gap = transfer.median - scratch.median if transfer and scratch else None
        result.append(
            {
                "task": task,
                "examples_per_class": str(k),
                "transfer": _score(transfer),
                "scratch": _score(scratch),
                "difference": "–" if gap is None else f"{100 * gap:+.1f}",
                "seeds": str(next(iter(by_init.values())).seeds),
                "balanced": _percent((transfer or scratch), "balanced_accuracy"),
                "macro_f1": _percent((transfer or scratch), "macro_f1"),
            }
        )
    return result


def as_markdown(rows: Iterable[SummaryRow]) -> str:
    """Return the same as a table in Markdown, with what it is about above it."""
    listed = list(rows)
    lines = [
        f"Test {metric_names(listed)}, median ± standard deviation over seeds",
        "",
        "| task | per class | transfer | scratch | difference |",
        "|---|---|---|---|---|",
    ]
    for row in headline_rows(listed):
        shown = ("task", "examples_per_class", "transfer", "scratch", "difference")
        lines.append("| " + " | ".join(row[name] for name in shown) + " |")
    return "\n".join(lines)


def others_of(row: SummaryRow) -> str:
    """Return the scores that stand beside top-1, to append to a line."""
    known = [(word, row.medians[name]) for name, word in OTHERS.items() if name in row.medians]
    return "".join(f", {word} {100 * value:.1f} %" for word, value in known)


def _percent(row: SummaryRow | None, name: str) -> str:
    """Return the median of another score, of the network that transfer or else scratch gave."""
    value = None if row is None else row.medians.get(name)
    return "–" if value is None else f"{100 * value:.1f} %"


def _score(row: SummaryRow | None) -> str:
    return f"{100 * row.median:.1f} ± {100 * row.sd:.1f} %" if row else "–"
