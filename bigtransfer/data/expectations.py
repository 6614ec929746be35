"""The rules a dataset must obey, held by Great Expectations over its manifest.

Ours come first; then those that the user lists under `expectations:` in params.yaml, any of Great
Expectations' own, over the manifest's columns. A rule about each image for itself is held over some
rows at a time, so memory does not grow with them. One about all of them sees its own column; above
twenty million rows, one row per part of the manifest instead: its extremes and counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bigtransfer.artifacts.validation import Outcome
from bigtransfer.data.gate import NAMED_ROWS, Gate
from bigtransfer.data.repeated import repeated
from bigtransfer.data.sources.names import alike
from bigtransfer.data.tables import iter_rows
from bigtransfer.progress import counted

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SUMMARY_ABOVE_ROWS = 20_000_000
SUMMARY_ROWS = 100_000
"""That one row of a summary stands for."""
PIECE_ROWS = 10_000
_MOST_PIECES = 100
"""A rule takes a tenth of a second to hold over any piece."""
_MOST = 0.5
"""Share of images from which on a fault is one of the dataset."""
_NUMBERS = ("height", "width", "bytes", "brightness", "contrast", "orientation")
_OF_EACH_ROW = frozenset(
    f"column_values_to_{what}"
    for what in (
        "be_between", "be_in_set", "not_be_in_set", "be_null", "not_be_null", "match_regex",
        "not_match_regex", "match_regex_list", "not_match_regex_list", "match_like_pattern",
        "not_match_like_pattern", "match_like_pattern_list", "not_match_like_pattern_list",
    )
) | {"column_value_lengths_to_be_between", "column_value_lengths_to_equal"}  # fmt: skip
"""Expectations whose answer for a row depends on that row alone."""
COLUMNS = ("path", "label", "labels", "split", "mode", "format", "sha256", *_NUMBERS)
"""What a rule of the user may name; `label` is the first label."""


@dataclass(frozen=True)
class Rules:
    """What is asked of a dataset (section `data` of params.yaml)."""

    required_splits: tuple[str, ...]
    min_classes: int
    min_examples_per_class: int
    bad_budget: float
    """Share of unusable images that is accepted; 0: none."""
    classes: tuple[str, ...] | None
    """The class names in order, where they are fixed."""
    expectations: tuple[Mapping[str, Any], ...]
    """The user's own: `{expect: column_values_to_be_between, column: height, min_value: 64}`."""


def check(
    table: pa.Table,
    leaks: Sequence[str | None] | None,
    labels: Sequence[str],
    counts: Mapping[str, int],
    splits: Mapping[str, int],
    found_in: Mapping[tuple[str, str], int],
    rules: Rules,
    contradicted: int = 0,
) -> list[Outcome]:
    """Run every rule.

    Args:
        table: Of what was inspected, with splits and flags.
        leaks: Why each image leaks, or None; None in all: the splits are a benchmark's, which are
            used as they are, whatever is in two of them, or in none but test.
        labels: All class names of the source, those without images too.
        counts: Images of each class.
        splits: Images of each split.
        found_in: Usable images of each class in each split.
        rules: What is asked.
        contradicted: Images that are there with another label, too.

    Raises:
        ConfigError: If a rule of the user is none of Great Expectations', or names no column.
    """
    import pandas as pd

    gate = Gate()
    bad_count = len(table) - table["fault"].null_count
    share = bad_count / max(1, len(table))
    twice = repeated(lambda: iter_rows(table, "path"))
    outcomes = [
        _of_parts(
            gate.expect_null(part, "fault", "path", "every file is a usable image")
            for part in _parts(table, ["path", "fault"])
        )
        if rules.bad_budget == 0
        else gate.expect_between(
            pd.DataFrame({"dataset": [f"{bad_count:,} of {len(table):,}"], "share": [share]}),
            "share",
            "dataset",
            f"at most {100 * rules.bad_budget:g} % unusable images",
            max_value=rules.bad_budget,
        ),
        gate.expect_unique(
            _that_repeat(table, twice), "path", "every path is listed once"
        ).model_copy(update={"checked": len(table)}),
        gate.expect_between(
            pd.DataFrame({"dataset": ["classes"], "classes": [len(labels)]}),
            "classes",
            "dataset",
            f"at least {counted(rules.min_classes, 'class')}",
            min_value=rules.min_classes,
        ),
        gate.expect_between(
            pd.DataFrame({"class": list(labels), "examples": [counts.get(n, 0) for n in labels]}),
            "examples",
            "class",
            f"at least {counted(rules.min_examples_per_class, 'image')} in every class",
            min_value=rules.min_examples_per_class,
        ),
    ]
    if leaks is not None:
        outcome = _of_parts(
            gate.expect_null(part, "leak", "path", "no image is in two splits")
            for part in _with_leaks(_parts(table, ["path"]), leaks)
        )
        outcomes.insert(2, outcome)
    outcomes += _of_most(gate, table, contradicted)
    if rules.required_splits:
        needed = [splits.get(name, 0) for name in rules.required_splits]
        frame = pd.DataFrame({"split": list(rules.required_splits), "examples": needed})
        words = f"images in every split of {', '.join(rules.required_splits)}"
        outcomes.append(gate.expect_between(frame, "examples", "split", words, min_value=1))
    untrained = pd.DataFrame(untrained_classes(labels, found_in), columns=["class", "fault"])
    if len(untrained) and leaks is not None:
        rule = "every class of val and test has training images"
        outcomes.append(gate.expect_null(untrained, "fault", "class", rule))
    names = pd.DataFrame(_named_alike(labels, rules.classes or ()), columns=["class", "fault"])
    rule = "class names differ in more than case, blanks or Unicode's spelling"
    outcomes.append(gate.expect_null(names, "fault", "class", rule))
    if rules.classes is not None:
        drift = pd.DataFrame(_drift(rules.classes, labels), columns=["class", "drift"])
        outcomes.append(
            gate.expect_null(drift, "drift", "class", "the class names are those in params.yaml")
        )
    if rules.expectations:
        outcomes += _own_rules(gate, table, rules.expectations)
    return outcomes


def _of_most(gate: Gate, table: pa.Table, contradicted: int) -> list[Outcome]:
    """Hold what need not be true of every image, but must be of most."""
    import pandas as pd

    usable = table["fault"].null_count
    blank = sum(
        fault is None and any(flag.startswith("blank") for flag in own)
        for own, fault in iter_rows(table, "flags", "fault")
    )
    return [
        gate.expect_between(
            pd.DataFrame({"dataset": [what], "share": [number / max(1, usable)]}),
            "share",
            "dataset",
            f"{rule} ({number:,} of {usable:,} {what})",
            max_value=_MOST,
        )
        for number, rule, what in (
            (blank, "most images show something", "are blank"),
            (contradicted, "most labels agree", "are there with another label, too"),
        )
        if number
    ]


def untrained_classes(
    labels: Sequence[str], found_in: Mapping[tuple[str, str], int]
) -> list[tuple[str, str | None]]:
    """Return each class of val or test and what it lacks; nothing if there is no train split."""
    if not any(split == "train" for _, split in found_in):
        return []
    rows: list[tuple[str, str | None]] = []
    for label in labels:
        held = {split: found_in.get((label, split), 0) for split in ("val", "test")}
        if any(held.values()):
            counts = ", ".join(f"{count} in {split}" for split, count in held.items() if count)
            lacks = not found_in.get((label, "train"))
            rows.append((label, f"{counts}, none in train" if lacks else None))
    return rows


def _named_alike(labels: Sequence[str], listed: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return all names and which others they look like, but for those listed as they are."""
    faults = {
        label: f"looks like {' and '.join(repr(other) for other in group if other != label)}"
        f"{_spelled(group)}; rename or merge them, or, if they are different classes, list all "
        "class names under `classes:` in params.yaml (finetune: --set 'data.classes=[…]')"
        for group in alike(labels)
        if not set(group) <= set(listed)
        for label in group[:1]
    }
    return [(label, faults.get(label)) for label in labels]


def _spelled(group: Sequence[str]) -> str:
    """Return how names are spelled that cannot be told apart on a screen."""
    if len({name.casefold() for name in group}) < len(group):
        return ""
    return f"; spelled {' and '.join(ascii(name) for name in group)}"


def _drift(wanted: Sequence[str], found: Sequence[str]) -> list[tuple[str, str | None]]:
    rows: list[tuple[str, str | None]] = [
        (name, None if name in found else "is in params.yaml, not in the data") for name in wanted
    ]
    known = set(wanted)
    return rows + [
        (name, "is in the data, not in params.yaml") for name in found if name not in known
    ]


def _parts(table: pa.Table, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield columns of so many rows at a time; one frame without rows of a table without."""
    rows = _piece_rows(table)
    for start in range(0, max(1, len(table)), rows):
        yield table.slice(start, rows).select(list(names)).to_pandas()


def _piece_rows(table: pa.Table) -> int:
    return max(PIECE_ROWS, -(-len(table) // _MOST_PIECES))


def _with_leaks(
    parts: Iterable[pd.DataFrame], leaks: Sequence[str | None]
) -> Iterator[pd.DataFrame]:
    import pandas as pd

    start = 0
    for part in parts:
        part["leak"] = pd.Series(list(leaks[start : start + len(part)]), dtype=object)
        start += len(part)
        yield part


def _of_parts(found: Iterable[Outcome]) -> Outcome:
    """Return what a rule about each row for itself says of all rows, by what it says of parts."""
    first, *more = found
    for other in more:
        first = first.model_copy(
            update={
                "success": first.success and other.success,
                "checked": first.checked + other.checked,
                "failed": first.failed + other.failed,
                "failures": (first.failures + other.failures)[:NAMED_ROWS],
            }
        )
    return first


def _that_repeat(table: pa.Table, twice: set[str]) -> pd.DataFrame:
    """Return the paths of the table: of a large one those that repeat, and one that does not."""
    if len(table) <= PIECE_ROWS:
        return next(_parts(table, ["path"]))
    import pandas as pd

    return pd.DataFrame(
        {"path": [path for path in iter_rows(table, "path") if path in twice] or [""]}
    )


def _own_rules(gate: Gate, table: pa.Table, wanted: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    import pandas as pd

    many = table["fault"].null_count > PIECE_ROWS
    outcomes = []
    for rule in wanted:
        name = str(rule.get("expect", "")).removeprefix("expect_")
        known = str(rule.get("column", "path")) in COLUMNS
        named = {word for value in rule.values() for word in _words(value)} & set(COLUMNS)
        whole = not (many and known) or "row_condition" in rule or name.startswith("table_")
        taken = COLUMNS if whole else ["path", *sorted(named - {"path"})]
        if many and not whole and name in _OF_EACH_ROW and rule.get("mostly", 1) == 1:
            parts = (_frame(part, taken) for part in _usable_parts(table, _piece_rows(table)))
            outcomes.append(_of_parts(gate.expect_own(part, rule) for part in parts))
        elif table["fault"].null_count > SUMMARY_ABOVE_ROWS:
            outcomes.append(gate.expect_own(summary_rows(table), rule))
        else:
            frames = [_frame(part, taken) for part in _usable_parts(table, _piece_rows(table))]
            outcomes.append(gate.expect_own(pd.concat(frames, ignore_index=True), rule))
    return outcomes


def _words(value: object) -> Iterator[str]:
    for word in value if isinstance(value, list | tuple) else [value]:
        if isinstance(word, str):
            yield word


def _usable_parts(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    for start in range(0, max(1, len(table)), rows):
        part = table.slice(start, rows)
        yield part.filter(part["fault"].is_null())


def _frame(table: pa.Table, names: Sequence[str]) -> pd.DataFrame:
    listed = ["labels" if name == "label" else name for name in names]
    frame: pd.DataFrame = table.select(list(dict.fromkeys(listed))).to_pandas()
    if "label" in names:
        frame["label"] = [own[0] if len(own) else None for own in frame["labels"]]
    return frame


def summary_rows(table: pa.Table) -> pd.DataFrame:
    """Return one row per part of the usable rows: how many, and the extremes of every number.

    Columns are named `rows`, `height_min`, `height_max`, …; a rule about `height` between two
    values is then one about `height_min` and `height_max`.
    """
    import pandas as pd
    import pyarrow.compute as pc

    rows: list[dict[str, object]] = []
    start = 0
    for part in _usable_parts(table, SUMMARY_ROWS):
        if not len(part):
            continue
        row: dict[str, object] = {"path": f"rows {start} to {start + len(part) - 1}"}
        start += len(part)
        row["rows"] = len(part)
        for name in _NUMBERS:
            extremes = pc.min_max(part[name]).as_py()
            row[f"{name}_min"], row[f"{name}_max"] = extremes["min"], extremes["max"]
        rows.append(row)
    return pd.DataFrame(rows)
