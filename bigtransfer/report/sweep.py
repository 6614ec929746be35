"""Tables over many tasks: median between min and max, group means, as text and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from bigtransfer.artifacts.report import SummaryRow
from bigtransfer.report.table import METRICS, by_shots

ALL = "all groups"


@dataclass(frozen=True)
class SweptTask:
    """A task of a sweep, and what became of it."""

    name: str
    group: str = ""
    rows: Sequence[SummaryRow] = ()
    """As `evaluate` summarizes them: one per init and examples per class."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """Examples per class -> a published figure of the same task, percent."""
    missing: str = ""
    """Why there are no rows."""
    official: bool = True
    """Whether its splits are the benchmark's; if not, it stays out of the means."""
    note: str = ""
    """What else sets its rows apart, e.g. other weights; if there is any, so does it."""

    @property
    def counts(self) -> bool:
        """Say whether its medians go into means."""
        return self.official and not self.note

    @property
    def notes(self) -> str:
        """Return what stands beside its rows."""
        split = "" if self.official else "not the official split"
        return ", ".join(filter(None, (split, self.note)))


@dataclass(frozen=True)
class Published:
    """Means that others have printed."""

    name: str
    means: Mapping[str, float]
    """Group, or `all groups` -> percent."""


@dataclass(frozen=True)
class Sweep:
    """All that the tables of a sweep are made of; the page is made of the same."""

    tasks: Sequence[SweptTask]
    published: Sequence[Published] = ()
    sizes: Mapping[str, int] | None = None
    """Tasks that each group has; None: those of `tasks`."""


def table_rows(tasks: Sequence[SweptTask]) -> list[dict[str, str]]:
    """Return a row of text per task, examples per class and init; a missing task has one."""
    result = []
    for task in tasks:
        same = {"task": task.name, "group": task.group, "note": task.notes}
        if task.missing:
            result.append(_row(same | {"note": f"missing: {task.missing}"}))
        for row in task.rows:
            k = str(row.examples_per_class)
            figure = task.reference.get(k)
            values = {key: f"{100 * getattr(row, key):.1f}" for key in ("min", "median", "max")}
            result.append(
                _row(
                    same,
                    per_class=k,
                    init=row.init,
                    metric=METRICS[row.metric],
                    **values,
                    runs=str(row.seeds),
                    reference="" if figure is None else f"{figure:.1f}",
                )
            )
    return result


def _row(same: dict[str, str], **values: str) -> dict[str, str]:
    keys = ("per_class", "init", "metric", "min", "median", "max", "runs", "reference")
    return same | {key: values.get(key, "") for key in keys}


def group_rows(
    tasks: Sequence[SweptTask], sizes: Mapping[str, int] | None = None
) -> list[dict[str, str]]:
    """Return the mean of the tasks' medians per group, and over all that have a group.

    How many of a group's tasks are in a mean stands beside it; none is averaged away.

    Args:
        tasks: What was found.
        sizes: Tasks that each group has; None: those of `tasks`.
    """
    grouped = [task for task in tasks if task.group]
    names = [*dict.fromkeys(task.group for task in grouped)]
    pools = {name: [t for t in grouped if t.group == name] for name in names}
    if len(names) > 1:
        pools[ALL] = grouped
    wholes = {name: len(members) for name, members in pools.items()}
    if sizes is not None:
        wholes |= sizes
        wholes[ALL] = sum(sizes.values())
    result = []
    for name, members in pools.items():
        for k, init in in_order(
            (str(row.examples_per_class), row.init) for t in members for row in t.rows
        ):
            medians = [
                row.median
                for t in members
                if t.counts
                for row in t.rows
                if (str(row.examples_per_class), row.init) == (k, init)
            ]
            if not medians:
                continue
            result.append(
                {
                    "group": name,
                    "per_class": k,
                    "init": init,
                    "mean_of_medians": f"{100 * fmean(medians):.1f}",
                    "tasks": f"{len(medians)} of {wholes[name]}",
                }
            )
    return result


def in_order(kinds: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return pairs of examples per class and init, each once: transfer first, the least first."""
    return sorted(set(kinds), key=lambda kind: (kind[1] != "upstream", by_shots(kind[0])))


def published_rows(published: Sequence[Published]) -> tuple[list[str], list[list[str]]]:
    """Return the groups that others have printed means of, and a row of text for each of them."""
    names = [*dict.fromkeys(group for other in published for group in other.means)]
    names.sort(key=lambda name: name == ALL)
    return names, [
        [other.name, *(f"{other.means[g]:.2f}" if g in other.means else "" for g in names)]
        for other in published
    ]


def as_markdown(
    tasks: Sequence[SweptTask],
    published: Sequence[Published] = (),
    sizes: Mapping[str, int] | None = None,
) -> str:
    """Return the tables as Markdown: min ← **median** → max; beneath, what others have printed."""
    lines = [
        "| task | per class | init | min ← **median** → max, % | runs | reference |",
        "|---|---|---|---|---|---|",
    ]
    for row in table_rows(tasks):
        spread = f"{row['min']} ← **{row['median']}** → {row['max']}"
        if row["metric"] not in (METRICS["top1"], ""):
            spread += f" ({row['metric']})"
        if row["note"]:
            spread = f"{spread}, {row['note']}" if row["median"] else row["note"]
        cells = (
            row["task"],
            row["per_class"],
            row["init"],
            spread,
            row["runs"],
            row["reference"],
        )
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    if groups := group_rows(tasks, sizes):
        lines += [
            "",
            "| group | per class | init | mean of medians, % | tasks |",
            "|---|---|---|---|---|",
        ]
        lines += ["| " + " | ".join(row.values()) + " |" for row in groups]
    if published:
        names, rows = published_rows(published)
        lines += ["", "| published means, % | " + " | ".join(names) + " |"]
        lines.append("|---" * (1 + len(names)) + "|")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
