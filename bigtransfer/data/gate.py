"""Great Expectations as a dataset's rules need it: a rule and a frame in, an outcome out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bigtransfer.artifacts.validation import Outcome
from bigtransfer.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

NAMED_ROWS = 20
"""That an outcome names of those that break a rule."""


class Gate:
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
        """Hold that a column is empty; rows where it is not are named by another one."""
        expectation = self._gx.expectations.ExpectColumnValuesToBeNull(column=column)
        return self._run(frame, expectation, column, key, rule)

    def expect_unique(self, frame: pd.DataFrame, column: str, rule: str) -> Outcome:
        """Hold that no value of a column comes twice."""
        expectation = self._gx.expectations.ExpectColumnValuesToBeUnique(column=column)
        return self._run(frame, expectation, column, column, rule)

    def expect_between(
        self, frame: pd.DataFrame, column: str, key: str, rule: str, **bounds: float
    ) -> Outcome:
        """Hold that numbers lie between bounds, as Great Expectations names them."""
        expectation = self._gx.expectations.ExpectColumnValuesToBeBetween(column=column, **bounds)
        return self._run(frame, expectation, column, key, rule)

    def expect_own(self, frame: pd.DataFrame, rule: Mapping[str, Any]) -> Outcome:
        """Run a rule of the user's."""
        given = dict(rule)
        name = str(given.pop("expect", ""))
        kinds = {
            _snake(kind): kind for kind in dir(self._gx.expectations) if kind.startswith("Expect")
        }
        wanted = name if name.startswith("expect_") else f"expect_{name}"
        if wanted not in kinds:
            short = [known.removeprefix("expect_") for known in kinds]
            raise ConfigError(
                f"'data.expectations': Great Expectations knows no {name!r}"
                f"{did_you_mean(name.removeprefix('expect_'), short)}"
            )
        column = str(given.get("column", "path"))
        if column not in frame.columns:
            raise ConfigError(
                f"'data.expectations': {name}: the manifest has no column {column!r}"
                f"{did_you_mean(column, list(frame.columns))}; it has {', '.join(frame.columns)}"
            )
        try:
            expectation = getattr(self._gx.expectations, kinds[wanted])(**given)
        except (TypeError, ValueError) as error:
            fault = str(error).splitlines()
            raise ConfigError(f"'data.expectations': {name}: {' '.join(fault[1:3])}") from error
        words = ", ".join(f"{key} {value}" for key, value in given.items() if key != "column")
        text = f"{column}: {wanted.removeprefix('expect_').replace('_', ' ')} {words}".strip()
        return self._run(frame, expectation, column, "path", text)

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
        # It keeps every frame that it has seen.
        known = self._source.get_execution_engine().batch_manager
        known._batch_cache.clear()
        known._batch_data_cache.clear()
        details = result["result"]
        failed = details.get("unexpected_index_list") or []
        names = [
            str(row[key]) if column == key else f"{row[key]!r} ({row[column]})"
            for row in failed[:NAMED_ROWS]
        ]
        success = bool(result["success"])
        if not success and not failed and "observed_value" in details:
            names = [f"observed: {details['observed_value']}"]
        if not success and (fault := _exception(result.get("exception_info") or {})):
            raise ConfigError(f"'data.expectations': {rule}: cannot be checked: {fault}")
        return Outcome(
            rule=rule,
            expectation=result["expectation_config"]["type"],
            success=success,
            checked=int(details.get("element_count", len(frame))),
            failed=len(failed) or int(not success),
            failures=tuple(names),
        )


def _exception(info: Mapping[str, Any]) -> str | None:
    """Return why a rule could not be run; Great Expectations nests it by metric, or does not."""
    for found in (info, *(v for v in info.values() if isinstance(v, Mapping))):
        if found.get("exception_message"):
            return " ".join(str(found["exception_message"]).split())
    return None


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
