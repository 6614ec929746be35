"""Each gate refuses one planted model, and lets the others pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bigtransfer.artifacts.answers import Answers
from bigtransfer.artifacts.evidence import CalibrationError
from bigtransfer.artifacts.measured import Measured
from bigtransfer.config import GateRules
from bigtransfer.track.gates import Contender, judge, refusal
from fixtures.registered import IMAGES, answers, evidence

CHAMPION = Contender("1", evidence(), answers(0.8), 0, "pretrained here on upstream, abc…")
GOOD = replace(CHAMPION, version="2", answers=answers(0.83))
PLANTED: dict[str, tuple[Contender, str]] = {
    "compare": (replace(GOOD, answers=answers(0.78)), "points of v1 on 300 validation images x 3"),
    "leakage": (replace(GOOD, leaks=2), "2 images are on both sides"),
    "digests": (replace(GOOD, damage="its model is gone"), "its model is gone"),
    "upstream": (replace(GOOD, upstream=""), "nobody pinned the weights"),
    "calibration": (
        replace(GOOD, evidence=evidence(calibration=CalibrationError(
            error=0.2, raw=0.3, lowest=0.15, lowest_more=-0.1))),
        "error 0.200 (raw 0.300), at least 0.150 with 95 %, above 0.1",
    ),
    "class_floor": (
        replace(GOOD, answers=Answers(GOOD.answers.labels, {
            seed: np.where(np.arange(IMAGES) % 3 == 1, own * (np.arange(IMAGES) % 4 > 0), 1)
            for seed, own in GOOD.answers.scores.items()
        })) if GOOD.answers else GOOD,
        "recall of 'b' falls by",
    ),
}  # fmt: skip


def closed(contender: Contender, rules: GateRules, champion: Contender | None = CHAMPION) -> Any:
    return {g.name: g.reason for g in judge(rules, contender, champion) if not g.is_open}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_model_fails_its_gate_alone(name: str) -> None:
    contender, said = PLANTED[name]
    found = closed(contender, GateRules())
    assert list(found) == [name]
    assert said in found[name]
    assert not closed(GOOD, GateRules())


@pytest.mark.parametrize(
    ("name", "off"),
    [("leakage", {"leakage": "any"}), ("upstream", {"upstream": "any"}),
     ("calibration", {"calibration": None}), ("class_floor", {"class_floor": False})],
)  # fmt: skip
def test_a_gate_that_is_switched_off_says_so(name: str, off: dict[str, Any]) -> None:
    contender, _ = PLANTED[name]
    rules = GateRules.model_validate(off)
    assert not closed(contender, rules)
    (gate,) = (gate for gate in judge(rules, contender, CHAMPION) if gate.name == name)
    assert gate.verdict == "off"


def test_a_temperature_that_makes_it_worse_is_refused() -> None:
    worse = CalibrationError(error=0.09, raw=0.02, lowest=0.05, lowest_more=0.04)
    found = closed(replace(GOOD, evidence=evidence(calibration=worse)), GateRules())
    assert "its temperature makes it worse" in found["calibration"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"evidence": None, "answers": None}, "v2 keeps no answers on validation images"),
        ({"evidence": evidence(held_out=False, calibration=None), "answers": None},
         "v2 was trained on its validation images"),
        ({"evidence": evidence(classes=("a", "b", "d"))}, "it knows other classes than v1"),
        ({"evidence": evidence(validation_digest="w" * 64)}, "are not those of v1"),
        ({"answers": answers(0.9, seeds=(7,))}, "no seed of it is one of v1's"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_does_not_pass(changes: dict[str, Any], why: str) -> None:
    contender = replace(GOOD, **changes)
    found = closed(contender, GateRules(calibration=None))
    assert list(found) == ["compare"]
    assert found["compare"].startswith("cannot be compared: ")
    assert why in found["compare"]
    as_champion = replace(CHAMPION, **changes)
    assert "compare" in closed(GOOD, GateRules(), as_champion)
    waived = judge(GateRules(calibration=None), contender, CHAMPION, waives_comparison=True)
    assert refusal(waived) is None
    assert waived[0].verdict == "waived"


def measured(share: float, **changes: Any) -> tuple[Measured, Answers]:
    wanted = {
        "champion": "c1", "validation_digest": "w" * 64, "left_out": 0, "latency": 1.1,
        "latency_at": "2.2 ms against 2.0 ms on cpu", **changes,
    }  # fmt: skip
    return Measured.model_validate(wanted), answers(share, (0,))


OTHER_SPLIT = replace(GOOD, evidence=evidence(validation_digest="w" * 64))
FIRST = replace(CHAMPION, checkpoint="c1")


@pytest.mark.parametrize(
    "champion",
    [FIRST, replace(FIRST, evidence=None, answers=None),
     replace(FIRST, evidence=evidence(held_out=False), answers=None)],
    ids=["another split", "of older code", "trained on its validation images"],
)  # fmt: skip
def test_a_champion_that_was_run_on_its_images_is_compared(champion: Contender) -> None:
    found = closed(OTHER_SPLIT, GateRules(), champion)
    assert list(found) == ["compare"]
    assert "`bigtransfer measure` runs v1 on its images" in found["compare"]
    assert not closed(replace(OTHER_SPLIT, measured=measured(0.8)), GateRules(), champion)
    worse = closed(replace(OTHER_SPLIT, measured=measured(0.9)), GateRules(), champion)
    assert "points of v1 on 300 validation images x 1 seed" in worse["compare"]


@pytest.mark.parametrize("changes", [{"champion": "c0"}, {"validation_digest": "x" * 64}])
def test_what_another_champion_or_other_images_showed_does_not_count(
    changes: dict[str, Any],
) -> None:
    contender = replace(OTHER_SPLIT, measured=measured(0.8, **changes))
    found = closed(contender, GateRules(latency=1.2), FIRST)
    assert found["compare"].startswith("cannot be compared")
    assert found["latency"] == "nobody ran it and v1 in turn; `bigtransfer measure` does"
    assert "compare" in closed(contender, GateRules(), replace(FIRST, checkpoint=""))


def test_images_that_the_champion_was_trained_on_are_left_out_of_the_comparison() -> None:
    facts, kept = measured(0.8, left_out=100)
    known = np.where(np.arange(IMAGES) < 100, np.nan, kept.scores[0]).astype(np.float32)
    contender = replace(OTHER_SPLIT, measured=(facts, Answers(kept.labels, {0: known})))
    (gate,) = (g for g in judge(GateRules(), contender, FIRST) if g.name == "compare")
    assert gate.is_open
    assert "on 200 validation images x 1 seed" in gate.reason
    assert gate.reason.endswith("(100 that v1 was trained on are left out)")
    nobody = replace(contender, measured=(measured(0.8, left_out=None)[0], kept))
    (gate,) = (g for g in judge(GateRules(), nobody, FIRST) if g.name == "compare")
    assert gate.reason.endswith("(v1 may have been trained on some of them: nobody noted which)")
    all_of_them = np.full(IMAGES, np.nan, np.float32)
    none = replace(contender, measured=(facts, Answers(kept.labels, {0: all_of_them})))
    assert "was trained on too many of its" in closed(none, GateRules(), FIRST)["compare"]


@pytest.mark.parametrize("compare", ["not_worse", "better"])
def test_few_images_that_are_left_prove_nothing(compare: Any) -> None:
    facts, kept = measured(0.8, left_out=IMAGES - 3)
    heard = np.arange(IMAGES) < 3
    theirs = np.where(heard, 0 if compare == "better" else 1, np.nan).astype(np.float32)
    mine = Answers(kept.labels, {0: np.ones(IMAGES, np.float32)})
    contender = replace(
        OTHER_SPLIT, answers=mine, measured=(facts, Answers(kept.labels, {0: theirs}))
    )
    found = closed(contender, GateRules(compare=compare), FIRST)
    assert "on 3 validation images" in found["compare"]


def test_a_measurement_counts_where_the_split_is_one_and_no_seed_is() -> None:
    contender = replace(GOOD, answers=answers(0.83, (7,)), evidence=evidence(seed=7))
    assert "`bigtransfer measure`" in closed(contender, GateRules(), FIRST)["compare"]
    facts = measured(0.8, validation_digest="v" * 64)[0]
    run = replace(contender, measured=(facts, answers(0.8, (7,))))
    assert not closed(run, GateRules(), FIRST)


def test_a_slow_model_fails_the_gate_of_latency_alone() -> None:
    own = measured(0.8, validation_digest="v" * 64, latency=1.3)
    slow = replace(GOOD, measured=own)
    assert not closed(slow, GateRules(), FIRST)  # off unless somebody sets it
    found = closed(slow, GateRules(latency=1.2), FIRST)
    assert found == {"latency": "x1.30 of v1 (2.2 ms against 2.0 ms on cpu), above x1.2"}
    assert not closed(slow, GateRules(latency=1.4), FIRST)
    assert not closed(GOOD, GateRules(latency=1.2), None)


def test_nothing_but_the_comparison_can_be_waived() -> None:
    for name, (contender, _) in PLANTED.items():
        gates = judge(GateRules(), contender, CHAMPION, waives_comparison=True)
        left = [gate.name for gate in gates if not gate.is_open]
        assert left == ([] if name == "compare" else [name])


def test_two_seeds_of_one_setting_are_refused_both_ways_under_better() -> None:
    one, other = (replace(CHAMPION, version=n, answers=answers(0.8, (0, 1))) for n in "12")
    shuffled = Answers(
        other.answers.labels,
        {  # type: ignore[union-attr]
            0: one.answers.scores[1],
            1: one.answers.scores[0],
        },
    )  # type: ignore[union-attr]
    other = replace(other, answers=shuffled)
    rules = GateRules(compare="better")
    assert "compare" in closed(other, rules, one)
    assert "compare" in closed(one, rules, other)


def test_better_wants_proof_and_not_worse_a_gain_within_the_margin() -> None:
    one = answers(0.8)
    turned = {seed: own.copy() for seed, own in one.scores.items()}
    for own in turned.values():  # more are gained than lost, but not many more
        own[np.flatnonzero(own == 0)[:7]] = 1
        own[np.flatnonzero(own == 1)[-4:]] = 0
    slightly = replace(GOOD, answers=Answers(one.labels, turned))
    assert "compare" in closed(slightly, GateRules(compare="better"))
    assert not closed(slightly, GateRules())
    assert not closed(replace(GOOD, answers=answers(0.95)), GateRules(compare="better"))
    (first, *_) = judge(GateRules(), slightly, CHAMPION)
    assert "this split would prove +" in first.reason


def test_without_a_champion_the_first_gates_need_no_answers() -> None:
    alone = replace(GOOD, answers=None)
    assert not closed(alone, GateRules(), None)


def test_several_labels_are_compared_and_neither_calibrated_nor_floored() -> None:
    several = evidence(metric="map", calibration=None)
    one = replace(CHAMPION, evidence=several)
    other = replace(GOOD, evidence=several)
    gates = {gate.name: gate.verdict for gate in judge(GateRules(), other, one)}
    assert gates["compare"] == "pass"
    assert gates["calibration"] == gates["class_floor"] == "off"
