"""Validate a dataset: inspect every image, run the gate, write report and manifest."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.validation import Counts, ManifestFacts, Outcome, ValidationReport
from bigtransfer.config import DatasetRules
from bigtransfer.data import expectations, manifest
from bigtransfer.data.copies import Copies, describe, find_copies
from bigtransfer.data.decoding import UndecodableError, decode_rgb
from bigtransfer.data.expectations import Rules
from bigtransfer.data.inspection import Limits
from bigtransfer.data.manifest import column, with_column
from bigtransfer.data.sources.listing import SPLITS, Source
from bigtransfer.data.sources.opening import open_source
from bigtransfer.data.splits import make_splits
from bigtransfer.errors import DatasetError, GateError
from bigtransfer.report import page
from bigtransfer.storage import as_json, new_folder, sha256_file, sha256_json

_BAR_PIXELS = 160
_SHOWN = 24
"""Pictures of a kind on the page."""
_CLASS_PICTURES = 1000


@dataclass(frozen=True)
class Asked:
    """What is asked of a dataset."""

    limits: Limits
    rules: Rules
    val: float
    """Share of validation images where the source brings none: of all, or of its train split."""
    test: float
    """Share of test images where the source brings no splits."""
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

    @property
    def success(self) -> bool:
        """Say whether every rule holds."""
        return all(outcome.success for outcome in self.outcomes)


def validate(
    root: Path, name: str, rules: DatasetRules, *, manifest_path: Path, report: Path
) -> Counts:
    """Check a dataset and write its validation report and, if it passes, its manifest.

    Args:
        root: Folder, table, archive or index of a remote address.
        name: Of the dataset, for messages and the report.
        rules: What is asked of it, as the user wrote it.
        manifest_path: Parquet file to write; absent afterwards if the gate says no.
        report: Folder to write `validation.json`, `index.html` and `quarantine.csv` into, whatever
            the verdict.

    Returns:
        The counts of the report.

    Raises:
        DatasetError: If it cannot be read as a dataset at all.
        GateError: If a rule is broken; names the rows. The report is written before.
    """
    asked = asked_of(rules)
    checked = check(open_source(root, rules.layout), name, asked)
    write_report(checked, root, name, asked, report, rules.model_dump(mode="json"))
    if not checked.success:
        manifest_path.unlink(missing_ok=True)
        broken = "\n".join(f"  {o.line()}" for o in checked.outcomes if not o.success)
        raise GateError(
            f"dataset {name!r} ({root}) is refused by the data gate:\n{broken}\n"
            f"mend or remove what is named (all of it: {report / 'index.html'}), then run again"
        )
    classes = list(asked.rules.classes or checked.source.labels)
    facts = ManifestFacts(
        dataset=name,
        address=checked.source.address,
        layout=checked.source.layout,
        multi_label=checked.source.multi_label,
        validation_sha256=sha256_file(report / ValidationReport.FILE),
        classes=tuple(classes),
        classes_sha256=sha256_json(classes),
        near_duplicate_side=asked.near_duplicate_side,
        counts=checked.counts,
    )
    usable = checked.table.filter(checked.table["fault"].is_null())
    manifest.write_manifest(manifest_path, usable, facts)
    return checked.counts


def write_report(
    checked: Checked, root: Path, name: str, asked: Asked, report: Path, params: Json
) -> None:
    """Write `validation.json`, `index.html` and `quarantine.csv` into a folder."""
    verdict = ValidationReport(
        dataset=name,
        address=checked.source.address,
        layout=checked.source.layout,
        success=checked.success,
        counts=checked.counts,
        notes=tuple(_notes(checked, asked)),
        rules=tuple(checked.outcomes),
        params=params,
    )
    with new_folder(report) as folder:
        verdict.write(folder)
        _write_quarantine(folder / "quarantine.csv", checked.table)
        (folder / "index.html").write_text(_page(root, checked, verdict), "utf-8")


def check(source: Source, name: str, asked: Asked) -> Checked:
    """Inspect every image of a source and run the gate over what was found.

    Raises:
        DatasetError: If `exclude` names an image that is not there.
    """
    source = _without(source, asked.exclude)
    table = manifest.inspect_all(source, asked.limits, name)
    mask = manifest.comparable(table, asked.near_duplicate_side)
    copies = find_copies(
        column(table, "pixel_sha256"),
        manifest.fingerprints(table),
        mask,
        near=asked.near_duplicate_side > 0,
    )
    made = _lacking(source, table, asked)
    if made:
        table = with_column(table, "split", _made_splits(table, copies, asked, made))
    splits, labels = column(table, "split"), column(table, "labels")
    found, leaks = describe(copies, column(table, "path"), labels, splits)
    flags = [[*own, *more] for own, more in zip(column(table, "flags"), found, strict=True)]
    table = with_column(table, "flags", flags)
    usable = [fault is None for fault in column(table, "fault")]
    counted = usable if asked.quarantine else [True] * len(usable)
    by_class = Counter(
        label for names, counts in zip(labels, counted, strict=True) if counts for label in names
    )
    by_split = Counter(s for s, counts in zip(splits, counted, strict=True) if counts)
    outcomes = expectations.check(table, leaks, source.labels, by_class, by_split, asked.rules)
    counts = _counts(source, table, by_split)
    return Checked(source, table, made, leaks, copies, outcomes, counts)


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
    return Source(
        source.address,
        source.layout,
        kept,
        source.labels,
        source.has_splits,
        source.multi_label,
        source.ignored + len(unwanted),
        source.read,
    )


def _lacking(source: Source, table: pa.Table, asked: Asked) -> tuple[str, ...]:
    """Return the splits to make: all of them, or the validation images from those of train."""
    if not source.has_splits:
        return SPLITS
    brought = set(column(table, "split"))
    wanted = "val" in asked.rules.required_splits and asked.val > 0
    return ("val",) if wanted and "train" in brought and "val" not in brought else ()


def _made_splits(table: pa.Table, copies: Copies, asked: Asked, made: tuple[str, ...]) -> list[str]:
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
    dealt = make_splits(
        [labels[i] for i in usable],
        [smallest[int(copies.groups[i])] for i in usable],
        val=asked.val,
        test=asked.test if whole else 0.0,
        seed=asked.seed,
    )
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


def _notes(checked: Checked, asked: Asked) -> list[str]:
    source, counts = checked.source, checked.counts
    notes = []
    if source.has_splits and len(counts.splits) == 1:
        notes.append(
            f"only the split {next(iter(counts.splits))!r} is there; nothing can be trained on "
            "it alone"
        )
    rotated = sum(value not in (0, 1) for value in column(checked.table, "orientation"))
    if rotated:
        notes.append(f"{rotated:,} images carry an EXIF rotation; their pixels are used as stored")
    if source.ignored:
        notes.append(f"{source.ignored:,} hidden, system or excluded files were passed over")
    if counts.rejected and asked.quarantine:
        notes.append(
            f"{counts.rejected:,} unusable images are left out; quarantine.csv beside this page "
            "names each with its reason"
        )
    if asked.near_duplicate_side == 0:
        notes.append("copies were looked for by equal pixels alone (near_duplicate_side: 0)")
    return notes


def _write_quarantine(path: Path, table: pa.Table) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "reason"])
        for row in manifest.rows_of(table.filter(table["fault"].is_valid()), ["path", "fault"]):
            writer.writerow([row["path"], row["fault"]])


def _page(root: Path, checked: Checked, verdict: ValidationReport) -> str:
    table, source = checked.table, checked.source
    usable = table.filter(table["fault"].is_null())
    sides = [s for name in ("height", "width") for s in column(usable, name)]
    how = "made here: per class, copies kept together, by seed and pixels alone"
    origin = {
        (): "The source brings its own splits.",
        ("val",): f"The source brings its own splits but val, which is taken from train, {how}.",
    }.get(checked.made, f"Splits were {how}.")
    return page.render(
        Path(__file__).with_name("validation.html"),
        name=verdict.dataset,
        path=str(root) if str(root) == source.address else f"{root} ({source.address})",
        success=verdict.success,
        counts=verdict.counts,
        notes=verdict.notes,
        rules=verdict.rules,
        sizes=f"{min(sides)} – {max(sides)}" if sides else "–",
        split_origin=origin,
        rejected=_rejected(checked),
        copies=_copy_pictures(checked),
        pairs=len(checked.copies.pairs),
        flagged=_flagged(checked),
        classes=_class_rows(checked),
        params=as_json(verdict.params) if verdict.params else "",
    )


def _picture(checked: Checked, row: int, longest: int) -> str | None:
    """Return a picture of a row, or None where it does not decode."""
    values = checked.table.slice(row, 1).to_pylist()[0]
    if not values["height"] or values["height"] * values["width"] > 1 << 26:
        return None
    try:
        data = checked.source.read(values["file"], values["offset"], values["length"])
        return page.picture(decode_rgb(data), longest)
    except (UndecodableError, OSError):
        return None


def _rejected(checked: Checked) -> list[page.Shown]:
    faults = column(checked.table, "fault")
    paths = column(checked.table, "path")
    rows = [i for i, fault in enumerate(faults) if fault]
    return [
        {"path": paths[i], "fault": faults[i], "picture": _picture(checked, i, 64)}
        for i in rows[:200]
    ]


def _copy_pictures(checked: Checked) -> list[page.Shown]:
    paths, splits = column(checked.table, "path"), column(checked.table, "split")
    pairs = sorted(checked.copies.pairs, key=lambda p: splits[p.first] == splits[p.second])
    return [
        {
            "how": pair.how,
            "leak": splits[pair.first] != splits[pair.second],
            "images": [
                {"path": paths[i], "split": splits[i], "picture": _picture(checked, i, 112)}
                for i in (pair.first, pair.second)
            ],
        }
        for pair in pairs[:_SHOWN]
    ]


def _flagged(checked: Checked) -> list[page.Shown]:
    """Return examples of every kind of flag that is not about copies."""
    shown: dict[str, list[page.Shown]] = {}
    counts: Counter[str] = Counter()
    for i, row in enumerate(manifest.rows_of(checked.table, ["path", "flags"])):
        for flag in row["flags"]:
            kind, _, text = flag.partition(": ")
            if "duplicate" in kind:
                continue
            counts[kind] += 1
            if counts[kind] <= 8:
                shown.setdefault(kind, []).append(
                    {"path": row["path"], "text": text, "picture": _picture(checked, i, 96)}
                )
    return [
        {"kind": kind.replace("_", " "), "count": counts[kind], "examples": examples}
        for kind, examples in sorted(shown.items())
    ]


def _class_rows(checked: Checked) -> list[page.Shown]:
    images, first = Counter[str](), dict[str, int]()
    splits: dict[str, Counter[str]] = {label: Counter() for label in checked.source.labels}
    for i, row in enumerate(manifest.rows_of(checked.table, ["labels", "split", "fault"])):
        for label in row["labels"]:
            images[label] += 1
            splits[label][row["split"]] += 1
            if row["fault"] is None:
                first.setdefault(label, i)
    most = max(images.values(), default=1)
    return [
        {
            "label": label,
            "images": images[label],
            "splits": by_split,
            "width": round(_BAR_PIXELS * images[label] / most),
            "picture": _picture(checked, first[label], 64)
            if label in first and number < _CLASS_PICTURES
            else None,
        }
        for number, (label, by_split) in enumerate(splits.items())
    ]
