"""Check a dataset: inspect every image, make the splits that lack, run the gate."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.artifacts.validation import Counts, Outcome
from bigtransfer.config import DatasetRules
from bigtransfer.data import expectations, manifest
from bigtransfer.data.copies import Copies, describe, find_copies
from bigtransfer.data.expectations import Rules
from bigtransfer.data.inspection import Limits
from bigtransfer.data.manifest import column, with_column
from bigtransfer.data.sources.listing import SPLITS, Source
from bigtransfer.data.splits import make_splits
from bigtransfer.errors import DatasetError
from bigtransfer.progress import counted

_NAMED = 3
_IMBALANCED = 5
"""Times the smallest class, from which on the largest is said to be too large."""
"""Classes that are named in a line."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a dataset."""

    limits: Limits
    rules: Rules
    val: float
    """Share of validation images where the source brings none: of all, or of its train split."""
    test: float
    """Share of test images where the source brings no splits."""
    decode: DecodeSettings
    seed: int
    near_duplicate_side: int
    """Images with a shorter side are compared by equal pixels alone; 0: all of them are."""
    exclude: tuple[str, ...] = ()
    """Paths that are left out."""
    quarantine: bool = False
    """Whether unusable images are left out and listed, instead of stopping everything."""


def asked_of(rules: DatasetRules) -> Asked:
    """Return what a section of params.yaml asks, as this room's own values."""
    quarantine = rules.on_bad == "quarantine"
    return Asked(
        limits=Limits(
            rules.min_side_pixels,
            rules.max_side_pixels,
            rules.max_image_pixels,
            rules.max_file_bytes,
            rules.small_side_pixels,
        ),
        rules=Rules(
            rules.required_splits,
            rules.min_classes,
            rules.min_examples_per_class,
            rules.bad_budget if quarantine else 0.0,
            rules.classes,
            rules.expectations,
        ),
        val=rules.splits.val,
        test=rules.splits.test,
        decode=DecodeSettings(orientation=rules.orientation, background=rules.background),
        seed=rules.seed,
        near_duplicate_side=rules.near_duplicate_side,
        exclude=rules.exclude,
        quarantine=quarantine,
    )


@dataclass(frozen=True)
class Checked:
    """What was found."""

    source: Source
    table: pa.Table
    """Every listed image but the excluded ones, with splits, flags and faults."""
    made: tuple[str, ...]
    """The splits that the source did not bring."""
    leaks: list[str | None]
    copies: Copies
    outcomes: list[Outcome]
    counts: Counts
    decode: DecodeSettings
    """How the images became pixels."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each: how it was read, what cannot be measured."""

    @property
    def success(self) -> bool:
        """Say whether every rule holds."""
        return all(outcome.success for outcome in self.outcomes)


def check(source: Source, name: str, asked: Asked) -> Checked:
    """Inspect every image of a source and run the gate over what was found.

    Raises:
        DatasetError: If `exclude` names an image that is not there.
    """
    source = _without(source, asked.exclude)
    table = manifest.inspect_all(source, asked.limits, asked.decode, name)
    mask = manifest.comparable(table, asked.near_duplicate_side)
    copies = find_copies(
        column(table, "pixel_sha256"),
        manifest.fingerprints(table),
        mask,
        near=asked.near_duplicate_side > 0,
    )
    made = _lacking(source, table, asked)
    if made:
        several = source.multi_label
        table = with_column(table, "split", _made_splits(table, copies, asked, made, several))
    splits, labels = column(table, "split"), column(table, "labels")
    found, leaks = describe(copies, column(table, "path"), labels, splits)
    flags = [[*own, *more] for own, more in zip(column(table, "flags"), found, strict=True)]
    table = with_column(table, "flags", flags)
    usable = [fault is None for fault in column(table, "fault")]
    taken = usable if asked.quarantine else [True] * len(usable)
    by_class = Counter(
        label for names, counts in zip(labels, taken, strict=True) if counts for label in names
    )
    by_split = Counter(s for s, counts in zip(splits, taken, strict=True) if counts)
    found_in = Counter(
        (label, split)
        for names, split, good in zip(labels, splits, usable, strict=True)
        if good
        for label in names
    )
    outcomes = expectations.check(
        table,
        None if source.benchmark else leaks,
        source.labels,
        by_class,
        by_split,
        found_in,
        asked.rules,
        _contradicted(copies, labels, usable),
    )
    counts = _counts(source, table, by_split)
    notes = (
        *source.notes,
        *_pixel_notes(table, asked.decode),
        *_imbalance(by_class),
        *_unmeasured(source, table, copies, found_in, asked),
        *_of_benchmark(source, leaks, found_in),
    )
    made = made if asked.val or asked.test else ()
    leaks = [None] * len(leaks) if source.benchmark else leaks
    return Checked(source, table, made, leaks, copies, outcomes, counts, asked.decode, notes)


def _pixel_notes(table: pa.Table, settings: DecodeSettings) -> list[str]:
    """Return a line about photos that a camera turned, and one about transparency."""
    flags = [flag for own in column(table, "flags") for flag in own]
    turned = sum(flag.startswith("orientation:") for flag in flags)
    clear = sum(flag.startswith("transparent:") for flag in flags)
    how = "turned upright" if settings.orientation == "apply" else "left as stored"
    notes = []
    if turned:
        notes.append(f"orientation: {turned:,} of the images were held otherwise: {how}")
    if clear:
        notes.append(f"background: {clear:,} of the images are transparent: laid on the background")
    return notes


def _imbalance(by_class: Mapping[str, int]) -> list[str]:
    """Return a line where the largest class is many times as large as the smallest."""
    if len(by_class) < 2:
        return []
    large, small = (chosen(by_class, key=by_class.__getitem__) for chosen in (max, min))
    if by_class[large] < _IMBALANCED * by_class[small]:
        return []
    return [
        f"imbalanced: {large!r} has {by_class[large]:,} images, {small!r} {by_class[small]:,}; "
        "look at balanced accuracy beside top-1, and see finetune.sampling: balanced"
    ]


def _unmeasured(
    source: Source,
    table: pa.Table,
    copies: Copies,
    found_in: Mapping[tuple[str, str], int],
    asked: Asked,
) -> list[str]:
    """Return a line about classes that no validation or test image can be set aside of."""
    if source.has_splits:
        there = {split for _, split in found_in}
        few = [
            (split, [label for label in source.labels if not found_in.get((label, split))])
            for split in SPLITS[1:]
            if split in there and "train" in there
        ]
        return [
            f"{of_classes(names)} no image in the split {split!r}: not measured there"
            for split, names in few
            if names
        ]
    shares = sum(share > 0 for share in (asked.val, asked.test)) or len(SPLITS) - 1
    distinct: dict[str, set[int]] = defaultdict(set)
    for names, group, fault in zip(
        column(table, "labels"), copies.groups.tolist(), column(table, "fault"), strict=True
    ):
        for label in names if fault is None else ():
            distinct[label].add(group)
    short = [label for label in source.labels if 0 < len(distinct[label]) <= shares]
    if not short:
        return []
    return [
        f"{of_classes(short)} fewer than {shares + 1} distinct images, copies counted once: not "
        "every split gets one, so how well they are told cannot be measured"
    ]


def _of_benchmark(
    source: Source, leaks: Sequence[str | None], found_in: Mapping[tuple[str, str], int]
) -> list[str]:
    """Return a line about what would be refused, were the splits not those of a benchmark."""
    if not source.benchmark:
        return []
    leaking = sum(leak is not None for leak in leaks)
    rows = expectations.untrained_classes(source.labels, found_in)
    untrained = [name for name, fault in rows if fault]
    told = [f"{counted(leaking, 'image')} in two of them"] if leaking else []
    told += [f"{of_classes(untrained)} none in train"] if untrained else []
    beside = f": {', '.join(told)}" if told else ""
    return [f"benchmark: the splits are those of {source.benchmark}, used as they are{beside}"]


def of_classes(names: Sequence[str]) -> str:
    """Return `class 'a' has`, or `3 classes ('a', 'b', …) have`."""
    if len(names) == 1:
        return f"class {names[0]!r} has"
    more = ", …" if len(names) > _NAMED else ""
    return f"{len(names):,} classes ({', '.join(map(repr, names[:_NAMED]))}{more}) have"


def _contradicted(copies: Copies, labels: Sequence[Sequence[str]], usable: Sequence[bool]) -> int:
    """Return how many usable images are there with another label, too."""
    said: dict[int, set[tuple[str, ...]]] = {}
    groups = copies.groups.tolist()
    for group, own, counts in zip(groups, labels, usable, strict=True):
        if counts:
            said.setdefault(group, set()).add(tuple(own))
    return sum(
        counts and len(said[group]) > 1 for group, counts in zip(groups, usable, strict=True)
    )


def _without(source: Source, exclude: Sequence[str]) -> Source:
    if not exclude:
        return source
    unwanted = set(exclude)
    if missing := unwanted - {image.path for image in source.images}:
        raise DatasetError(
            f"'exclude' names {min(missing)!r}, which {source.address!r} does not hold; correct "
            "the path, as the manifest spells it"
        )
    kept = [image for image in source.images if image.path not in unwanted]
    return replace(source, images=kept, ignored=source.ignored + len(unwanted))


def _lacking(source: Source, table: pa.Table, asked: Asked) -> tuple[str, ...]:
    """Return the splits to make: all of them, or the validation images from those of train."""
    if not source.has_splits:
        return SPLITS
    brought = set(column(table, "split"))
    wanted = "val" in asked.rules.required_splits and asked.val > 0
    return ("val",) if wanted and "train" in brought and "val" not in brought else ()


def _made_splits(
    table: pa.Table, copies: Copies, asked: Asked, made: tuple[str, ...], several: bool
) -> list[str]:
    """Return the split of every image.

    Where an image may have several labels, every combination is dealt like a class; small ones are
    dealt anew only where a whole split would stay empty otherwise.
    """
    keys = [
        digest or path
        for digest, path in zip(column(table, "pixel_sha256"), column(table, "path"), strict=True)
    ]
    smallest: dict[int, str] = {}
    for group, key in zip(copies.groups.tolist(), keys, strict=True):
        smallest[group] = min(key, smallest.get(group, key))
    labels = ["\n".join(names) for names in column(table, "labels")]
    whole = "test" in made
    result = ["train"] * len(labels) if whole else column(table, "split")
    # Unusable images take no place in a split: adding one must not move the others.
    faults = column(table, "fault")
    usable = [i for i, split in enumerate(result) if split == "train" and faults[i] is None]
    test = asked.test if whole else 0.0
    deal = partial(
        make_splits,
        [labels[i] for i in usable],
        [smallest[int(copies.groups[i])] for i in usable],
        val=asked.val,
        test=test,
        seed=asked.seed,
    )
    dealt = deal(fill=not several)
    wanted = {name for name, share in (("val", asked.val), ("test", test)) if share > 0}
    if several and not wanted <= set(dealt):
        dealt = deal(fill=True)
    for i, split in zip(usable, dealt, strict=True):
        result[i] = split
    return result


def _counts(source: Source, table: pa.Table, splits: Mapping[str, int]) -> Counts:
    kinds = Counter(flag.partition(":")[0] for flags in column(table, "flags") for flag in flags)
    return Counts(
        images=table["fault"].null_count,
        listed=len(table),
        classes=len(source.labels),
        splits={name: splits[name] for name in SPLITS if splits[name]},
        rejected=len(table) - table["fault"].null_count,
        flags=dict(sorted(kinds.items())),
        ignored_files=source.ignored,
        bytes=sum(column(table, "bytes")),
    )
