"""The headline table: transfer beside scratch, as text for the page and the terminal."""

from __future__ import annotations

from typing import Any

METRICS = {"top1": "top-1", "map": "mAP"}
"""Names of the scores that rows are about, for people."""


def metric_names(rows: list[dict[str, Any]]) -> str:
    """Return what the rows are about, e.g. `top-1`, or `top-1 or mAP`."""
    return " or ".join(dict.fromkeys(METRICS[row["metric"]] for row in rows))


def by_shots(examples_per_class: int | str) -> float:
    """Return a number to sort subset sizes by; `full` is the largest."""
    return float("inf") if examples_per_class == "full" else float(examples_per_class)


def headline_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return transfer beside scratch per task and examples per class, as text to show."""
    pairs: dict[tuple[str, int | str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        pairs.setdefault((row["task"], row["examples_per_class"]), {})[row["init"]] = row
    result = []
    for (task, k), by_init in pairs.items():
        both = len(by_init) == 2
        gap = by_init["upstream"]["median"] - by_init["scratch"]["median"] if both else 0.0
        result.append(
            {
                "task": task,
                "examples_per_class": str(k),
                "transfer": _score(by_init.get("upstream")),
                "scratch": _score(by_init.get("scratch")),
                "difference": f"{100 * gap:+.1f}" if both else "–",
                "seeds": str(next(iter(by_init.values())).get("seeds", "")),
            }
        )
    return result


def _score(row: dict[str, Any] | None) -> str:
    return f"{100 * row['median']:.1f} ± {100 * row['sd']:.1f} %" if row else "–"
