"""The headline figures of the report: each with its baseline, its interval and its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from bigtransfer.artifacts.calibration import Calibration
from bigtransfer.artifacts.report import SummaryRow, TaskReport
from bigtransfer.metrics.intervals import bootstrap_median, wilson
from bigtransfer.progress import counted
from bigtransfer.report.table import METRICS, by_shots
from bigtransfer.report.words import percent, span

_INSIDE = "inside the spread"
"""Of the seeds: what a difference is called whose sign they do not agree on."""


@dataclass(frozen=True)
class Strip:
    """A score on a line from 0 to 100 %: all in percent."""

    value: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    baseline: float | None


@dataclass(frozen=True)
class Card:
    """A figure in large type, and what it is."""

    value: str
    label: str
    notes: tuple[str, ...] = ()
    """Its interval, its baseline, its seeds."""
    strip: Strip | None = None
    grey: bool = False
    """Whether it is no more than chance."""


def scores_of(result: TaskReport, row: SummaryRow) -> list[float]:
    """Return the test scores of the seeds that a row is about."""
    return [
        cell.test[row.metric]
        for cell in result.cells
        if (cell.init, cell.examples_per_class) == (row.init, row.examples_per_class)
        and row.metric in cell.test
    ]


def interval_of(
    result: TaskReport, row: SummaryRow, score: float | None = None
) -> tuple[tuple[float, float], str] | None:
    """Return the 95 % interval of a score, and what it is over; None where there is none.

    Args:
        result: Of the task.
        row: The networks.
        score: Of one of them; None: their median.
    """
    if row.metric == "top1":
        share = row.median if score is None else score
        if result.test_images < 1:
            return None
        return wilson(share, result.test_images), f"{counted(result.test_images, 'test image')}"
    found = bootstrap_median(scores_of(result, row))
    seeds = counted(row.seeds, "seed")
    return None if found is None else (found, f"median, resampling {seeds}")


def interval_text(result: TaskReport, row: SummaryRow, score: float | None = None) -> str:
    """Return the interval in words, or why there is none."""
    found = interval_of(result, row, score)
    if found is None:
        return "no interval: one seed"
    return f"95 % interval {span(found[0])} ({found[1]})"


@dataclass(frozen=True)
class Baseline:
    """What a score has to beat."""

    share: float
    words: str


def baseline_of(result: TaskReport) -> Baseline | None:
    """Return what is got without looking at images; None where it is not known."""
    if result.multi_label:
        shares = [row.images / result.test_images for row in result.per_class if row.images]
        return Baseline(fmean(shares), "labels given at random") if shares else None
    if result.baseline is None:
        return None
    return Baseline(result.baseline, f"always saying “{result.largest_class}”")


def is_beaten(baseline: Baseline, found: tuple[tuple[float, float], str] | None) -> bool:
    """Say whether a score's interval lies above the baseline, as far as there is one."""
    return found is None or found[0][0] > baseline.share


def cards_of(results: Mapping[str, TaskReport], registrations: Mapping[str, Path]) -> list[Card]:
    """Return the cards on top of the page: score and gain of each task.

    Args:
        results: Report of each task, by name.
        registrations: Registration file of each task that has one.
    """
    cards = []
    for name, result in results.items():
        row = result.headline
        cards.append(_score_card(name, result, row, registered=name in registrations))
        if gain := _gain_card(name, result):
            cards.append(gain)
        if len(results) == 1 and (answers := _answers_card(result)):
            cards.append(answers)
    return cards


def _score_card(name: str, result: TaskReport, row: SummaryRow, *, registered: bool) -> Card:
    metric, chosen = METRICS[result.metric], result.chosen
    score = chosen.test[result.metric] if registered else None
    median = percent(row.median)
    if registered:
        label = (
            f"{name}: test {metric} of the registered model, seed {chosen.seed} alone; the "
            f"median of {counted(row.seeds, 'seed')} is {median}"
        )
    else:
        label = (
            f"{name}: test {metric}, median of {counted(row.seeds, 'seed')}, "
            f"{_init(row.init)}, {shots_text(row.examples_per_class)}"
        )
    found = interval_of(result, row, score)
    value = row.median if score is None else score
    baseline = baseline_of(result)
    strip = Strip(
        value=100 * value,
        low=100 * found[0][0] if found else None,
        high=100 * found[0][1] if found else None,
        seeds=tuple(100 * own for own in scores_of(result, row)),
        baseline=None if baseline is None else 100 * baseline.share,
    )
    notes = [interval_text(result, row, score)]
    if baseline:
        doubt = "" if is_beaten(baseline, found) else ": not clearly beaten"
        notes.append(f"baseline {percent(baseline.share)}, {baseline.words}{doubt}")
    return Card(percent(value), label, tuple(notes), strip)


def _gain_card(name: str, result: TaskReport) -> Card | None:
    """Return what transfer gains over scratch with the most examples that both have."""
    pairs = pairs_of(result.rows)
    both = [(k, t, s) for k, (t, s) in pairs.items() if t and s]
    if not both:
        return None
    k, transfer, scratch = max(both, key=lambda pair: by_shots(pair[0]))
    verdict = spread_of(transfer, scratch)
    label = f"{name}: points over scratch, between medians, {shots_text(k)}"
    return Card(
        difference_text(transfer, scratch), label, (verdict.text,), grey=not verdict.certain
    )


def _answers_card(result: TaskReport) -> Card | None:
    """Return how right the answers are that count as sure, where there are any."""
    found, calibration = result.reliability, result.calibration
    if found is None or not isinstance(calibration, Calibration):
        return None
    if found.answered_accuracy is None or found.asked is None:
        return None
    answered = max(1, round(found.answered * result.test_images))
    return Card(
        percent(found.answered_accuracy),
        f"right where it is sure: asked for {100 * found.asked:g} %, answers "
        f"{percent(found.answered)} of the test images",
        (f"95 % interval {span(wilson(found.answered_accuracy, answered))} "
         f"({counted(answered, 'answer')})",),
    )  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """How a difference stands to what seeds alone make of it."""

    certain: bool
    """Whether every seed of the one is above every seed of the other."""
    short: str
    """Why not."""
    text: str


def spread_of(transfer: SummaryRow, scratch: SummaryRow) -> Spread:
    """Return whether the seeds agree on the sign of transfer - scratch."""
    if min(transfer.seeds, scratch.seeds) < 2:
        return Spread(certain=False, short="one seed", text="one seed: its spread is not known")
    least, most = transfer.min - scratch.max, transfer.max - scratch.min
    between = f"{100 * least:+.1f} to {100 * most:+.1f} between any two seeds"
    if least <= 0 <= most:
        return Spread(certain=False, short=_INSIDE, text=f"{_INSIDE}: {between}")
    return Spread(certain=True, short="", text=between)


def difference_text(transfer: SummaryRow, scratch: SummaryRow) -> str:
    """Return the difference of the medians in points, e.g. `+30.9`."""
    return f"{100 * (transfer.median - scratch.median):+.1f}"


def pairs_of(
    rows: Sequence[SummaryRow],
) -> dict[int | str, tuple[SummaryRow | None, SummaryRow | None]]:
    """Return transfer and scratch of each number of examples per class of one task."""
    kinds = dict.fromkeys(row.examples_per_class for row in rows)
    found = {(row.init, row.examples_per_class): row for row in rows}
    return {k: (found.get(("upstream", k)), found.get(("scratch", k))) for k in kinds}


def shots_text(examples_per_class: int | str) -> str:
    """Return how many examples of each class there were, e.g. `5 per class`."""
    return "all images" if examples_per_class == "full" else f"{examples_per_class} per class"


def _init(init: str) -> str:
    return "transfer" if init == "upstream" else "from scratch"
