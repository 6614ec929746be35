"""The page of a validation report: what was found, with pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from bigtransfer.artifacts.validation import ValidationReport
from bigtransfer.data import manifest
from bigtransfer.data.checking import Checked
from bigtransfer.data.decoding import UndecodableError, decode_rgb
from bigtransfer.data.manifest import column
from bigtransfer.report import page
from bigtransfer.storage import as_json

_BAR_PIXELS = 160
_SHOWN = 24
"""Pictures of a kind on the page."""
_CLASS_PICTURES = 1000


def render(root: Path, checked: Checked, verdict: ValidationReport) -> str:
    """Return the page as HTML."""
    table, source = checked.table, checked.source
    usable = table.filter(table["fault"].is_null())
    sides = [s for name in ("height", "width") for s in column(usable, name)]
    how = "made here: per class, copies kept together, by seed and pixels alone"
    origin = {
        (): "The source brings its own splits." if source.has_splits else "No splits were made.",
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
        return page.picture(decode_rgb(data, checked.decode), longest)
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
