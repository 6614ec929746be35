"""Check a dataset: inspect every image, make the splits that lack, run the gate."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bigtransfer.artifacts.decoding import DecodeSettings
from bigtransfer.artifacts.validation import Counts, Outcome
from bigtransfer.config import DatasetRules
from bigtransfer.data import expectations, manifest
from bigtransfer.data.copies import MOST_COMPARED, Copies, describe, find_copies, first_of_equal
from bigtransfer.data.expectations import Rules
from bigtransfer.data.inspection import Limits
from bigtransfer.data.manifest import INSPECTED
from bigtransfer.data.sources.listing import SPLITS, Listing, Source
from bigtransfer.data.splits import TEST, TRAIN, VAL, Shares, make_splits
from bigtransfer.data.tables import LazyColumn, collect, iter_rows, with_column
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
    """Every listed image but the excluded ones, with splits, flags and faults. Of many images it
    lies in a file: read it by `tables.iter_rows`, not as lists."""
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
    source = without(source, asked.exclude)
    everything = range(len(source.images))
    found = manifest.inspect_rows(source, asked.limits, asked.decode, name, everything)
    return judge(source, found, asked)


def judge(source: Source, inspected: Iterable[pa.RecordBatch], asked: Asked) -> Checked:
    """Run the gate over what was found in every image.

    Args:
        source: Without what is excluded.
        inspected: A row per image of it, in its order, as `manifest.inspect_rows` yields them.
        asked: Of the dataset.
    """
    table = collect(inspected, INSPECTED)
    digests, known = manifest.pixel_digests(table)
    firsts, ranks = first_of_equal(digests, known)
    copies = find_copies(
        firsts,
        manifest.fingerprints(table),
        manifest.comparable(table, asked.near_duplicate_side),
        near=asked.near_duplicate_side > 0,
    )
    made = _lacking(source, table, asked)
    if made:
        several = source.multi_label
        codes = _made_splits(table, copies, (digests, ranks), asked, made, several=several)
        table = with_column(table, "split", (SPLITS[code] for code in codes))
    del digests, known, firsts, ranks
    names = {name: LazyColumn(table, name) for name in ("path", "labels", "split")}
    found, leaks = describe(copies, names["path"], names["labels"], names["split"])
    flags = enumerate(iter_rows(table, "flags"))
    table = with_column(table, "flags", ([*own, *found.get(row, ())] for row, own in flags))
    by_class: Counter[str] = Counter()
    by_split: Counter[str] = Counter()
    found_in: Counter[tuple[str, str]] = Counter()
    for labels, split, fault in iter_rows(table, "labels", "split", "fault"):
        if fault is None or not asked.quarantine:
            by_class.update(labels)
            by_split[split] += 1
        if fault is None:
            found_in.update((label, split) for label in labels)
    outcomes = expectations.check(
        table,
        None if source.benchmark else leaks,
        source.labels,
        by_class,
        by_split,
        found_in,
        asked.rules,
        _contradicted(table, copies),
    )
    counts = _counts(source, table, by_split)
    notes = (
        *source.notes,
        *_pixel_notes(table, asked.decode),
        *_imbalance(by_class),
        *_not_compared(copies),
        *_unmeasured(source, table, copies, found_in, asked),
        *_of_benchmark(source, leaks, found_in),
    )
    made = made if asked.val or asked.test else ()
    leaks = [None] * len(leaks) if source.benchmark else leaks
    return Checked(source, table, made, leaks, copies, outcomes, counts, asked.decode, notes)


def _pixel_notes(table: pa.Table, settings: DecodeSettings) -> list[str]:
    """Return a line about photos that a camera turned, and one about transparency."""
    kinds = _kinds(table)
    turned, clear = kinds["orientation"], kinds["transparent"]
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


def _not_compared(copies: Copies) -> list[str]:
    """Return a line where copies that merely look the same were not looked for."""
    if not copies.too_many:
        return []
    return [
        f"copies were looked for by equal pixels alone: {copies.too_many:,} images are too many to "
        f"compare each with each (more than {MOST_COMPARED:,})"
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
        iter_rows(table, "labels"), copies.groups, iter_rows(table, "fault"), strict=True
    ):
        for label in names if fault is None else ():
            if len(distinct[label]) <= shares:
                distinct[label].add(int(group))
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


def _contradicted(table: pa.Table, copies: Copies) -> int:
    """Return how many usable images are there with another label, too."""
    several = np.bincount(copies.groups, minlength=len(table))[copies.groups] > 1
    labels, faults = LazyColumn(table, "labels"), LazyColumn(table, "fault")
    said: dict[int, set[tuple[str, ...]]] = defaultdict(set)
    usable = [row for row in np.flatnonzero(several).tolist() if faults[row] is None]
    for row in usable:
        said[int(copies.groups[row])].add(tuple(labels[row]))
    return sum(len(said[int(copies.groups[row])]) > 1 for row in usable)


def without(source: Source, exclude: Sequence[str]) -> Source:
    """Return a source without some images.

    Raises:
        DatasetError: If one of them is not there.
    """
    if not exclude:
        return source
    unwanted = set(exclude)
    if missing := unwanted.difference(image.path for image in source.images):
        raise DatasetError(
            f"'exclude' names {min(missing)!r}, which {source.address!r} does not hold; correct "
            "the path, as the manifest spells it"
        )
    kept = Listing(image for image in source.images if image.path not in unwanted)
    return replace(source, images=kept, ignored=source.ignored + len(unwanted))


def _lacking(source: Source, table: pa.Table, asked: Asked) -> tuple[str, ...]:
    """Return the splits to make: all of them, or the validation images from those of train."""
    if not source.has_splits:
        return SPLITS
    brought = set(pc.unique(table["split"]).to_pylist())
    wanted = "val" in asked.rules.required_splits and asked.val > 0
    return ("val",) if wanted and "train" in brought and "val" not in brought else ()


def _made_splits(
    table: pa.Table,
    copies: Copies,
    pixels: tuple[NDArray[np.uint8], NDArray[np.int64]],
    asked: Asked,
    made: tuple[str, ...],
    *,
    several: bool,
) -> NDArray[np.int8]:
    """Return the split of every image.

    Where an image may have several labels, every combination is dealt like a class; small ones are
    dealt anew only where a whole split would stay empty otherwise.

    Args:
        table: Of the images.
        copies: Among them.
        pixels: Digests (N, 32) and their ranks (N,); images of a group are one by the least.
        asked: The shares.
        made: The splits that are to be made.
        several: Whether an image may have several labels.
    """
    digests, ranks = pixels
    whole = "test" in made
    result = np.full(len(table), TRAIN, np.int8)
    if not whole:
        result[:] = [SPLITS.index(split) for split in iter_rows(table, "split")]
    # Unusable images take no place in a split: adding one must not move the others.
    usable = np.flatnonzero((result == TRAIN) & table["fault"].is_null().to_numpy())
    least = np.full(len(table), len(table), np.int64)  # group -> rank of its least digest
    np.minimum.at(least, copies.groups, ranks)
    row_of = np.empty(len(table), np.int64)
    row_of[ranks] = np.arange(len(table))
    known: dict[str, int] = {}
    labels = np.fromiter(
        (known.setdefault("\n".join(names), len(known)) for names in iter_rows(table, "labels")),
        np.int64,
        len(table),
    )
    test = asked.test if whole else 0.0

    def dealt(fill: bool) -> NDArray[np.int8]:
        return make_splits(
            labels[usable],
            copies.groups[usable],
            lambda group: digests[row_of[least[group]]].tobytes().hex(),
            Shares(asked.val, test, asked.seed, fill),
        )

    found = dealt(not several)
    wanted = {code for code, share in ((VAL, asked.val), (TEST, test)) if share > 0}
    if several and not wanted <= set(found.tolist()):
        found = dealt(True)
    result[usable] = found
    return result


def _kinds(table: pa.Table) -> Counter[str]:
    """Return how often there is a flag of each kind."""
    return Counter(flag.partition(":")[0] for own in iter_rows(table, "flags") for flag in own)


def _counts(source: Source, table: pa.Table, splits: Mapping[str, int]) -> Counts:
    return Counts(
        images=table["fault"].null_count,
        listed=len(table),
        classes=len(source.labels),
        splits={name: splits[name] for name in SPLITS if splits[name]},
        rejected=len(table) - table["fault"].null_count,
        flags=dict(sorted(_kinds(table).items())),
        ignored_files=source.ignored,
        bytes=pc.sum(table["bytes"]).as_py() or 0,
    )
