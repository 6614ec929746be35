"""Validate a dataset: check it, write the report, and if it passes the manifest."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa

from bigtransfer.artifacts.base import Json
from bigtransfer.artifacts.validation import Counts, LeftOut, ManifestFacts, ValidationReport
from bigtransfer.config import DatasetRules
from bigtransfer.data import manifest, validation_page
from bigtransfer.data.checking import Asked, Checked, asked_of, check, judge, without
from bigtransfer.data.inspection_parts import inspected, write_part
from bigtransfer.data.sources.opening import open_source
from bigtransfer.data.tables import releasing_pages
from bigtransfer.errors import GateError
from bigtransfer.storage import MANIFEST_NAME, new_folder, sha256_file, sha256_json
from bigtransfer.storage.dvc_file import dvc_revision
from bigtransfer.storage.places import Place

_LEFT_OUT_NAMED = 20


@dataclass(frozen=True)
class Parts:
    """Where parts were left, and how many."""

    place: Place
    count: int


def inspect_part(
    root: Path, name: str, rules: DatasetRules, place: Place, number: int, parts: int
) -> int:
    """Look at one part of a dataset, for `validate` to join; return how many images it has.

    Args:
        root: Folder, table, archive or index of a remote address.
        name: Of the dataset, for messages.
        rules: What is asked of it, as the user wrote it.
        place: Folder or `s3://` prefix where the parts meet.
        number: Of this part, from 0.
        parts: In all.

    Raises:
        DatasetError: If it cannot be read as a dataset at all.
    """
    source = open_source(root, rules.layout)
    return write_part(source, name, asked_of(rules), _origin(root), place, number, parts)


def _origin(root: Path) -> str:
    """Return what tells the version of the data: DVC's digest, and that of a sealed folder."""
    seal = root / MANIFEST_NAME
    return f"{dvc_revision(root)} {sha256_file(seal) if seal.is_file() else ''}".strip()


def validate(
    root: Path,
    name: str,
    rules: DatasetRules,
    *,
    manifest_path: Path,
    report: Path,
    parts: Parts | None = None,
) -> Counts:
    """Check a dataset and write its validation report and, if it passes, its manifest.

    Args:
        root: Folder, table, archive or index of a remote address.
        name: Of the dataset, for messages and the report.
        rules: What is asked of it, as the user wrote it.
        manifest_path: Parquet file to write; absent afterwards if the gate says no.
        report: Folder to write `validation.json`, `index.html` and `quarantine.csv` into, whatever
            the verdict.
        parts: What was found in parts already; None: every image is looked at here.

    Returns:
        The counts of the report.

    Raises:
        DatasetError: If it cannot be read as a dataset at all.
        GateError: If a rule is broken; names the rows. The report is written before.
    """
    with releasing_pages():
        return _validate(root, name, rules, manifest_path, report, parts)


def _validate(
    root: Path,
    name: str,
    rules: DatasetRules,
    manifest_path: Path,
    report: Path,
    parts: Parts | None,
) -> Counts:
    asked = asked_of(rules)
    source = open_source(root, rules.layout)
    if parts is None:
        checked = check(source, name, asked)
    else:
        source = without(source, asked.exclude)
        checked = judge(
            source, inspected(source, asked, _origin(root), parts.place, parts.count), asked
        )
    for note in checked.notes:
        print(f"{name}: {note}", flush=True)
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
        decode=asked.decode,
        revision=dvc_revision(root),
        split_seed=rules.seed if checked.made else None,
        left_out=_left_out(checked, rules.exclude),
        left_out_in_all=len(rules.exclude) + checked.counts.rejected,
    )
    manifest.write_manifest(manifest_path, checked.table, facts)
    return checked.counts


def _left_out(checked: Checked, excluded: Sequence[str]) -> tuple[LeftOut, ...]:
    found = [LeftOut(path=path, reason="excluded (data.exclude)") for path in excluded]
    for path, fault in islice(manifest.faulty(checked.table), _LEFT_OUT_NAMED):
        found.append(LeftOut(path=path, reason=fault))
    return tuple(found[:_LEFT_OUT_NAMED])


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
    page = validation_page.render(root, checked, verdict, asked)
    with new_folder(report) as folder:
        verdict.write(folder)
        _write_quarantine(folder / "quarantine.csv", checked.table)
        (folder / "index.html").write_text(page, "utf-8")


def _notes(checked: Checked, asked: Asked) -> list[str]:
    source, counts = checked.source, checked.counts
    notes = list(checked.notes)
    if source.has_splits and len(counts.splits) == 1:
        notes.append(
            f"only the split {next(iter(counts.splits))!r} is there; nothing can be trained on "
            "it alone"
        )
    if source.ignored:
        notes.append(
            f"{source.ignored:,} hidden, system or excluded files and folders were passed over"
        )
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
        writer.writerows(manifest.faulty(table))
