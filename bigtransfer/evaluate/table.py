"""The headline table: transfer beside scratch, as text for the page and the terminal."""

from __future__ import annotations

from typing import Any


def headline_rows(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return transfer beside scratch per task and examples per class, as text to show."""
    pairs: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
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
