"""The rules a dataset must obey, held by Great Expectations over the rows of its manifest."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_NAMED_ROWS = 20


@dataclass(frozen=True)
class Outcome:
    """What one expectation found."""

    rule: str
    """The rule in words."""
    expectation: str
    """Its name in Great Expectations."""
    success: bool
    checked: int
    """Rows it looked at."""
    failed: int
    """Rows that broke it."""
    failures: list[str]
    """The first of those rows, named, with what is wrong."""

    def line(self) -> str:
        """Return one line for a person: rule, count, rows."""
        rows = "; ".join(self.failures[:5])
        more = f"; and {self.failed - 5} more" if self.failed > 5 else ""
        return f"{self.rule}: {self.failed} of {self.checked} fail: {rows}{more}"


def check(
    rows: list[dict[str, Any]],
    labels: list[str],
    *,
    required_splits: tuple[str, ...],
    min_classes: int,
    min_examples_per_class: int,
) -> list[Outcome]:
    """Run every rule over the manifest's rows and over its table of classes.

    Args:
        rows: As `manifest.inspect_all` and `manifest.find_copies` leave them.
        labels: All class folders, those without images too.
        required_splits: Each must have images.
        min_classes: Classes needed.
        min_examples_per_class: Images needed in each class.
    """
    import pandas as pd

    images = pd.DataFrame(rows, columns=["path", "label", "split", "fault", "leak"])
    counts = Counter(row["label"] for row in rows)
    classes = pd.DataFrame({"class": labels, "examples": [counts[label] for label in labels]})
    splits = Counter(row["split"] for row in rows)
    needed = pd.DataFrame(
        {"split": list(required_splits), "examples": [splits[name] for name in required_splits]}
    )
    total = pd.DataFrame({"dataset": ["classes"], "classes": [len(labels)]})
    gate = _Gate()
    return [
        gate.expect_null(images, "fault", "path", "every file is a usable image"),
        gate.expect_unique(images, "path", "every path is listed once"),
        gate.expect_null(images, "leak", "path", "no image is in two splits"),
        gate.expect_at_least(
            total, "classes", "dataset", min_classes, f"at least {min_classes} classes"
        ),
        gate.expect_at_least(
            classes, "examples", "class", min_examples_per_class,
            f"at least {min_examples_per_class} images in every class",
        ),
        gate.expect_at_least(
            needed, "examples", "split", 1, f"images in every split of {', '.join(required_splits)}"
        ),
    ]  # fmt: skip


def as_rows(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return the outcomes as JSON values."""
    return [asdict(outcome) for outcome in outcomes]


class _Gate:
    """Great Expectations without its files, its progress bars and its telemetry."""

    def __init__(self) -> None:
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx

        self._gx = gx
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        self._source = context.data_sources.add_pandas("manifest")
        self._batches = 0

    def expect_null(self, frame: pd.DataFrame, column: str, key: str, rule: str) -> Outcome:
        expectation = self._gx.expectations.ExpectColumnValuesToBeNull(column=column)
        return self._run(frame, expectation, column, key, rule)

    def expect_unique(self, frame: pd.DataFrame, column: str, rule: str) -> Outcome:
        expectation = self._gx.expectations.ExpectColumnValuesToBeUnique(column=column)
        return self._run(frame, expectation, column, column, rule)

    def expect_at_least(
        self, frame: pd.DataFrame, column: str, key: str, least: int, rule: str
    ) -> Outcome:
        expectation = self._gx.expectations.ExpectColumnValuesToBeBetween(
            column=column, min_value=least
        )
        return self._run(frame, expectation, column, key, rule)

    def _run(
        self, frame: pd.DataFrame, expectation: Any, column: str, key: str, rule: str
    ) -> Outcome:
        self._batches += 1
        asset = self._source.add_dataframe_asset(f"{column}-{self._batches}")
        batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
        result = batch.validate(
            expectation,
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [key]},
        ).to_json_dict()
        details = result["result"]
        failed = details.get("unexpected_index_list") or []
        names = [
            str(row[key]) if column == key else f"{row[key]!r} ({row[column]})" for row in failed
        ]
        return Outcome(
            rule=rule,
            expectation=result["expectation_config"]["type"],
            success=bool(result["success"]),
            checked=int(details.get("element_count", len(frame))),
            failed=len(failed),
            failures=names[:_NAMED_ROWS],
        )
