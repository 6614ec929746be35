"""Validate a dataset folder: inspect every image, run the gate, write report and manifest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from bigtransfer import page
from bigtransfer.data import expectations, manifest
from bigtransfer.data.folder import SPLITS, Listing, list_folder
from bigtransfer.data.inspection import Limits, decode_rgb
from bigtransfer.errors import GateError
from bigtransfer.storage import as_json, new_folder, sha256_file

_BAR_PIXELS = 160


def validate(
    root: Path,
    name: str,
    *,
    manifest_path: Path,
    report: Path,
    limits: Limits,
    val: float,
    test: float,
    seed: int,
    required_splits: tuple[str, ...],
    min_classes: int,
    min_examples_per_class: int,
    params: dict[str, Any],
) -> dict[str, Any]:
    """Check a dataset folder and write its validation report and, if it passes, its manifest.

    Args:
        root: Folder `<class>/<image>` or `<split>/<class>/<image>`.
        name: Of the dataset, for messages and the report.
        manifest_path: Parquet file to write; absent afterwards if the gate says no.
        report: Folder to write `validation.json` and `index.html` into, whatever the verdict.
        limits: What an image may be.
        val: Share of validation images where the folder brings no splits.
        test: Share of test images where the folder brings no splits.
        seed: Of the splits.
        required_splits: Splits that must have images.
        min_classes: Classes needed.
        min_examples_per_class: Images needed in each class.
        params: Everything that was asked for, as shown in the report.

    Returns:
        The counts of the report.

    Raises:
        DatasetError: If the folder cannot be read as a dataset at all.
        GateError: If a rule is broken; names the rows. The report is written before.
    """
    listing = list_folder(root)
    rows = manifest.inspect_all(root, listing, limits)
    if not listing.has_splits:
        manifest.assign_splits(rows, val=val, test=test, seed=seed)
    manifest.find_copies(rows)
    outcomes = expectations.check(
        rows,
        listing.labels,
        required_splits=required_splits,
        min_classes=min_classes,
        min_examples_per_class=min_examples_per_class,
    )
    counts = _counts(rows, listing)
    success = all(outcome.success for outcome in outcomes)
    verdict = {
        "dataset": name,
        "success": success,
        "counts": counts,
        "notes": _notes(rows, listing),
        "rules": expectations.as_rows(outcomes),
        "params": params,
    }
    with new_folder(report) as folder:
        (folder / "validation.json").write_text(as_json(verdict), "utf-8")
        html = _page(root, rows, listing, verdict)
        (folder / "index.html").write_text(html, "utf-8")
    if not success:
        manifest_path.unlink(missing_ok=True)
        broken = "\n".join(f"  {o.line()}" for o in outcomes if not o.success)
        raise GateError(
            f"dataset {name!r} ({root}) is refused by the data gate:\n{broken}\n"
            f"mend or remove what is named (all of it: {report / 'index.html'}), then run again"
        )
    metadata = {
        "dataset": name,
        "validation_sha256": sha256_file(report / "validation.json"),
        "classes": json.dumps(listing.labels),
        "counts": json.dumps(counts),
    }
    manifest.write_manifest(manifest_path, rows, metadata)
    return counts


def _counts(rows: list[dict[str, Any]], listing: Listing) -> dict[str, Any]:
    splits = Counter(row["split"] for row in rows)
    return {
        "images": len(rows),
        "classes": len(listing.labels),
        "splits": {name: splits[name] for name in SPLITS if splits[name]},
        "rejected": sum(row["fault"] is not None for row in rows),
        "flags": dict(sorted(Counter(flag for row in rows for flag in row["flags"]).items())),
        "ignored_files": listing.ignored,
        "bytes": sum(row["bytes"] for row in rows),
    }


def _notes(rows: list[dict[str, Any]], listing: Listing) -> list[str]:
    notes = []
    splits = {row["split"] for row in rows}
    if listing.has_splits and len(splits) == 1:
        notes.append(
            f"only the split {splits.pop()!r} is there; nothing can be trained on it alone"
        )
    rotated = sum(row["orientation"] not in (0, 1) for row in rows)
    if rotated:
        notes.append(f"{rotated:,} images carry an EXIF rotation; their pixels are used as stored")
    if listing.ignored:
        notes.append(f"{listing.ignored:,} hidden or system files were passed over")
    return notes


def _page(root: Path, rows: list[dict[str, Any]], listing: Listing, verdict: dict[str, Any]) -> str:
    usable = [row for row in rows if row["fault"] is None]
    sides = [side for row in usable for side in (row["height"], row["width"])]
    origin = "The folder brings its own splits." if listing.has_splits else (
        "Splits were made here: per class, copies kept together, by seed and pixels alone."
    )  # fmt: skip
    return page.render(
        Path(__file__).with_name("validation.html"),
        name=verdict["dataset"],
        path=str(root),
        success=verdict["success"],
        counts=verdict["counts"],
        notes=verdict["notes"],
        rules=verdict["rules"],
        sizes=f"{min(sides)} – {max(sides)}" if sides else "–",
        split_origin=origin,
        classes=_class_rows(root, rows, listing),
        params=as_json(verdict["params"]),
    )


def _class_rows(root: Path, rows: list[dict[str, Any]], listing: Listing) -> list[dict[str, Any]]:
    by_class: dict[str, list[dict[str, Any]]] = {label: [] for label in listing.labels}
    for row in rows:
        by_class[row["label"]].append(row)
    most = max(map(len, by_class.values()), default=1) or 1
    result = []
    for label, members in by_class.items():
        splits = Counter(row["split"] for row in members)
        shown = next((row for row in members if row["fault"] is None), None)
        result.append(
            {
                "label": label,
                "images": len(members),
                "splits": splits,
                "width": round(_BAR_PIXELS * len(members) / most),
                "picture": page.picture(decode_rgb((root / shown["path"]).read_bytes()), 64)
                if shown
                else None,
            }
        )
    return result
