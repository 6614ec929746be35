"""Whether a model version may become champion: one list of gates, wherever that is asked.

Nothing is run here: each gate reads what `evaluate` and `audit` left with the version. Only where
there is a champion to compare with is numpy needed: the image of `register` has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from bigtransfer.artifacts.evidence import Evidence
from bigtransfer.config import GateRules

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bigtransfer.artifacts.answers import Answers
    from bigtransfer.artifacts.measured import Measured
    from bigtransfer.metrics.paired import Gain

Verdict = Literal["pass", "fail", "cannot be said", "waived", "off"]
_REGISTER_AGAIN = "register it again with this version of the program"


@dataclass(frozen=True)
class Gate:
    """What one gate says."""

    name: str
    verdict: Verdict
    reason: str

    @property
    def is_open(self) -> bool:
        """Say whether it lets the version pass."""
        return self.verdict in ("pass", "waived", "off")


@dataclass(frozen=True)
class Contender:
    """What is known of a version."""

    version: str
    evidence: Evidence | None = None
    """None: it was registered before such was kept."""
    answers: Answers | None = None
    leaks: int | None = None
    """Test images that its upstream network, or its own training, has seen; None: not known."""
    upstream: str | None = None
    """What its upstream weights are pinned by; empty: by nothing; None: not known."""
    damage: str | None = None
    """What of its files is not as it was registered; None: nothing."""
    unnoted: tuple[str, ...] = ()
    """Folders whose digest is not noted with it, so that nobody can say whether they changed."""
    withdrawn: str | None = None
    """Why it must not be used any more; None: it may."""
    checkpoint: str = ""
    """Digest of its checkpoint."""
    measured: tuple[Measured, Answers | None] | None = None
    """A champion, run on this one's validation images, and its answers."""

    def measured_against(self, champion: Contender) -> tuple[Measured, Answers | None] | None:
        """Return what that very champion was measured at on this one's images; None: it was not."""
        if self.measured is None or self.evidence is None:
            return None
        found = self.measured[0]
        fits = found.champion == champion.checkpoint and bool(champion.checkpoint)
        is_ours = found.validation_digest == self.evidence.validation_digest
        return self.measured if fits and is_ours else None

    @property
    def name(self) -> str:
        """Return it for people."""
        return f"v{self.version}"


def judge(
    rules: GateRules,
    contender: Contender,
    champion: Contender | None,
    *,
    waives_comparison: bool = False,
) -> list[Gate]:
    """Return what each gate says of a version that would become champion.

    Args:
        rules: Of `params.yaml`.
        contender: The version.
        champion: That it would replace; None: there is none.
        waives_comparison: Whether a person takes the comparison upon himself; nothing else can be
            waived.
    """
    compared = _compare(rules, contender, champion)
    if waives_comparison and not compared.is_open:
        compared = Gate(compared.name, "waived", compared.reason)
    withdrawn = [Gate("withdrawn", "fail", contender.withdrawn)] if contender.withdrawn else []
    return [
        *withdrawn,
        compared,
        _leakage(rules, contender),
        _digests(contender),
        _upstream(rules, contender),
        _calibration(rules, contender),
        _class_floor(rules, contender, champion),
        _latency(rules, contender, champion),
    ]


def refusal(gates: list[Gate]) -> str | None:
    """Return in one line why a version does not pass; None: it does."""
    closed = [f"{gate.name}: {gate.reason}" for gate in gates if not gate.is_open]
    return "; ".join(closed) or None


def comparison_of(contender: Contender, champion: Contender) -> Gain | str:
    """Return how much a version scores above the champion, or why that cannot be said."""
    from bigtransfer.metrics.paired import gain

    if contender.evidence is None:
        return f"{contender.name} keeps no answers on validation images; {_REGISTER_AGAIN}"
    if contender.answers is None:
        return f"{contender.name} was trained on its validation images (train_on)"
    if champion.evidence is not None and champion.evidence.classes != contender.evidence.classes:
        return f"it knows other classes than {champion.name}"
    theirs = _answers_of(champion, contender)
    if isinstance(theirs, str):
        return f"{theirs}; `bigtransfer measure` runs {champion.name} on its images"
    paired = _paired(contender.answers, theirs)
    if paired is None:
        return f"{champion.name} was trained on too many of its validation images"
    first, second, _ = paired
    # Of few images that all agree nobody can say how sure they are: a pair more each way.
    surely = gain(*_with_a_pair_each_way(first, second))
    return replace(surely, images=first.shape[1])


def _with_a_pair_each_way(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    import numpy as np

    one, other = (np.array([pair] * len(first), np.float32) for pair in ([1, 0], [0, 1]))
    return np.hstack([first, one]), np.hstack([second, other])


def _answers_of(champion: Contender, contender: Contender) -> Answers | str:
    """Return the champion's answers on a version's validation images, or why there are none."""
    assert contender.evidence is not None
    why = f"its validation images are not those of {champion.name}"
    if champion.evidence is None:
        why = f"{champion.name} keeps no answers on validation images"
    elif champion.answers is None:
        why = f"{champion.name} was trained on its validation images (train_on)"
    elif champion.evidence.validation_digest == contender.evidence.validation_digest:
        assert contender.answers is not None
        if champion.answers.scores.keys() & contender.answers.scores.keys():
            return champion.answers
        why = f"no seed of it is one of {champion.name}'s"
    measured = contender.measured_against(champion)
    return measured[1] if measured is not None and measured[1] is not None else why


def _compare(rules: GateRules, contender: Contender, champion: Contender | None) -> Gate:
    name = "compare"
    if champion is None:
        return Gate(name, "pass", "there is no champion")
    found = comparison_of(contender, champion)
    if isinstance(found, str):
        return Gate(name, "cannot be said", f"cannot be compared: {found}")
    said = (
        f"{100 * found.mean:+.1f} points of {champion.name} on {found.images:,} validation images "
        f"x {found.seeds} {'seed' if found.seeds == 1 else 'seeds'}, at least "
        f"{100 * found.lowest:+.1f} with 95 %; this split would prove "
        f"{100 * found.smallest_proof:+.1f} four times out of five"
    )
    said += _how_measured(contender, champion)
    if rules.compare == "better":
        return Gate(name, "pass" if found.lowest > 0 else "fail", f"better: {said}")
    enough = found.lowest > -rules.margin and found.mean >= 0
    margin = f"not worse by {100 * rules.margin:g} points"
    return Gate(name, "pass" if enough else "fail", f"{margin}: {said}")


def _how_measured(contender: Contender, champion: Contender) -> str:
    """Return what must be known of a comparison for which the champion was run again."""
    found = contender.measured_against(champion)
    if found is None or _answers_of(champion, contender) is not found[1]:
        return ""
    left_out = found[0].left_out
    if left_out is None:
        return f" ({champion.name} may have been trained on some of them: nobody noted which)"
    return f" ({left_out:,} that {champion.name} was trained on are left out)" if left_out else ""


def _leakage(rules: GateRules, contender: Contender) -> Gate:
    if rules.leakage == "any":
        return Gate("leakage", "off", "gates.leakage is any")
    if contender.leaks is None:
        return Gate("leakage", "cannot be said", f"no audit is kept with it; {_REGISTER_AGAIN}")
    if contender.leaks:
        return Gate("leakage", "fail", f"{contender.leaks:,} images are on both sides of an audit")
    return Gate("leakage", "pass", "the audit found none")


def _digests(contender: Contender) -> Gate:
    if contender.damage is not None:
        return Gate("digests", "fail", contender.damage)
    if contender.unnoted:
        missing = ", ".join(contender.unnoted)
        return Gate("digests", "cannot be said", f"no digest is noted of its {missing}")
    return Gate("digests", "pass", "its files are those that were registered")


def _upstream(rules: GateRules, contender: Contender) -> Gate:
    name = "upstream"
    if rules.upstream == "any":
        return Gate(name, "off", "gates.upstream is any")
    if contender.upstream is None:
        return Gate(name, "cannot be said", f"its origin is not noted; {_REGISTER_AGAIN}")
    if not contender.upstream:
        return Gate(name, "fail", "nobody pinned the weights that it began with; give their sha256")
    return Gate(name, "pass", contender.upstream)


def _calibration(rules: GateRules, contender: Contender) -> Gate:
    name, evidence = "calibration", contender.evidence
    if rules.calibration is None:
        return Gate(name, "off", "gates.calibration is null")
    if evidence is None or not evidence.held_out:
        return Gate(name, "cannot be said", "it has no validation images of its own")
    found = evidence.calibration
    if found is None:
        return Gate(name, "off", "an image may have several labels")
    lowest = max(0.0, found.lowest)
    said = f"error {found.error:.3f} (raw {found.raw:.3f}), at least {lowest:.3f} with 95 %"
    if found.lowest > rules.calibration:
        return Gate(name, "fail", f"{said}, above {rules.calibration:g}")
    if found.lowest_more > 0:
        return Gate(name, "fail", f"{said}: its temperature makes it worse")
    return Gate(name, "pass", said)


def _class_floor(rules: GateRules, contender: Contender, champion: Contender | None) -> Gate:
    name = "class_floor"
    if not rules.class_floor:
        return Gate(name, "off", "gates.class_floor is false")
    if champion is None:
        return Gate(name, "pass", "there is no champion")
    if isinstance(comparison_of(contender, champion), str):
        return Gate(name, "off", "cannot be compared")
    import numpy as np

    from bigtransfer.metrics.paired import gain

    evidence, answers, theirs = contender.evidence, contender.answers, None
    assert evidence is not None
    assert answers is not None
    theirs = _answers_of(champion, contender)
    assert not isinstance(theirs, str)
    paired = _paired(answers, theirs)
    assert paired is not None
    if evidence.metric == "map":
        return Gate(name, "off", "an image may have several labels")
    *scores, labels = paired
    worst: tuple[float, str] | None = None
    known = np.unique(labels)
    for label in known:
        own = labels == label
        first, second = (of_all[:, own] for of_all in scores)
        found = gain(*_with_a_pair_each_way(first, second))
        highest = found.mean + found.quantile(1 - 0.025 / len(known)) * found.error
        fall = float(second.mean() - first.mean())
        if highest < 0 and (worst is None or fall < worst[0]):
            worst = fall, evidence.classes[label]
    if worst is not None:
        return Gate(
            name, "fail",
            f"recall of {worst[1]!r} falls by {-100 * worst[0]:.1f} points, more than chance does",
        )  # fmt: skip
    return Gate(name, "pass", f"no class of {len(known):,} falls by more than chance does")


def _latency(rules: GateRules, contender: Contender, champion: Contender | None) -> Gate:
    name = "latency"
    if rules.latency is None:
        return Gate(name, "off", "gates.latency is null")
    if champion is None:
        return Gate(name, "pass", "there is no champion")
    measured = contender.measured_against(champion)
    if measured is None:
        return Gate(
            name, "cannot be said",
            f"nobody ran it and {champion.name} in turn; `bigtransfer measure` does",
        )  # fmt: skip
    found = measured[0]
    said = f"x{found.latency:.2f} of {champion.name} ({found.latency_at})"
    if found.latency > rules.latency:
        return Gate(name, "fail", f"{said}, above x{rules.latency:g}")
    return Gate(name, "pass", said)


_Paired = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.int64]"]


def _paired(mine: Answers, theirs: Answers) -> _Paired | None:
    """Return the scores (S, N) of the champion and of a version, for seeds that both have.

    Returns:
        With the labels (N,) of the images, without those that say nothing; None: there are none.
    """
    import numpy as np

    seeds = sorted(theirs.scores.keys() & mine.scores.keys())
    if not seeds:
        return None
    first = np.stack([theirs.scores[seed] for seed in seeds])
    second = np.stack([mine.scores[seed] for seed in seeds])
    heard = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    if heard.sum() < 2:
        return None
    return first[:, heard], second[:, heard], mine.labels[heard]
