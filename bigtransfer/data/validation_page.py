"""The page of a validation report: what was found, with pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bigtransfer.artifacts.validation import ValidationReport
from bigtransfer.data import manifest
from bigtransfer.data.checking import Asked, Checked
from bigtransfer.data.class_rows import class_rows, image_sizes, spread
from bigtransfer.data.copies import LABEL_CONFLICT
from bigtransfer.data.tables import LazyColumn, iter_rows
from bigtransfer.data.thumbnails import Thumbnails, augmented
from bigtransfer.report import page
from bigtransfer.storage import as_json

_SHOWN = 24
"""Pairs of copies on the page."""
_EXAMPLES = 8
"""Of every kind of oddity."""
_REJECTED = 200
_AUGMENTED = 4
"""Images that training's variants are shown of."""
_FIRST = (LABEL_CONFLICT, "decode_warning", "blank")
"""Oddities that are most likely to be mistakes."""


def render(root: Path, checked: Checked, verdict: ValidationReport, asked: Asked) -> str:
    """Return the page as HTML: what is wrong first, then what to look at, then what there is."""
    source = checked.source
    thumbnails = Thumbnails(checked)
    how = "made here: per class, copies kept together, by seed and pixels alone"
    origin = {
        (): "The source brings its own splits." if source.has_splits else "No splits were made.",
        ("val",): f"The source brings its own splits but val, which is taken from train, {how}.",
    }.get(checked.made, f"Splits were {how}.")
    sizes = image_sizes(checked)
    pairs = _copy_pictures(checked, thumbnails)
    rules = _rules(verdict, asked.rules.expectations)
    return page.render(
        Path(__file__).with_name("validation.html"),
        name=verdict.dataset,
        path=str(root) if str(root) == source.address else f"{root} ({source.address})",
        success=verdict.success,
        counts=verdict.counts,
        notes=verdict.notes,
        broken=[rule for rule in rules if not rule["success"]],
        held=[rule for rule in rules if rule["success"]],
        sizes=sizes,
        split_origin=origin,
        rejected=_rejected(checked, thumbnails),
        leaks=[pair for pair in pairs if pair["leak"]],
        copies=[pair for pair in pairs if not pair["leak"]],
        pairs=len(checked.copies.pairs),
        flagged=_flagged(checked, thumbnails),
        classes=class_rows(checked, thumbnails),
        batch=_batch(checked, thumbnails, sizes, asked.seed) if sizes else [],
        params=as_json(verdict.params) if verdict.params else "",
    )


def _rules(verdict: ValidationReport, own: Sequence[Mapping[str, Any]]) -> list[page.Shown]:
    """Return the rules in words; those of the user, which come last, as they were written."""
    ours = len(verdict.rules) - len(own)
    written = [", ".join(f"{key}: {value}" for key, value in rule.items()) for rule in own]
    return [
        {
            **outcome.model_dump(),
            "written": written[number - ours] if number >= ours else "",
        }
        for number, outcome in enumerate(verdict.rules)
    ]


def _rejected(checked: Checked, thumbnails: Thumbnails) -> list[page.Shown]:
    rows = enumerate(iter_rows(checked.table, "path", "fault"))
    found = ((i, path, fault) for i, (path, fault) in rows if fault)
    return [
        {"path": path, "fault": fault, "picture": thumbnails.uri(i, 64)}
        for i, path, fault in islice(found, _REJECTED)
    ]


def _copy_pictures(checked: Checked, thumbnails: Thumbnails) -> list[page.Shown]:
    paths, splits = LazyColumn(checked.table, "path"), LazyColumn(checked.table, "split")
    pairs = sorted(checked.copies.pairs, key=lambda p: splits[p.first] == splits[p.second])
    return [
        {
            "how": pair.how,
            "leak": splits[pair.first] != splits[pair.second],
            "images": [
                {"path": paths[i], "split": splits[i], "picture": thumbnails.uri(i, 128)}
                for i in (pair.first, pair.second)
            ],
        }
        for pair in pairs[:_SHOWN]
    ]


def _flagged(checked: Checked, thumbnails: Thumbnails) -> list[page.Shown]:
    """Return examples of every kind of flag that is not about copies."""
    shown: dict[str, list[page.Shown]] = {}
    counts: Counter[str] = Counter()
    for i, row in enumerate(manifest.rows_of(checked.table, ["path", "flags"])):
        for flag in row["flags"]:
            kind, _, text = flag.partition(": ")
            if "duplicate" in kind:
                continue
            counts[kind] += 1
            if counts[kind] <= _EXAMPLES:
                shown.setdefault(kind, []).append(
                    {"path": row["path"], "text": text, "picture": thumbnails.uri(i, 112)}
                )
    kinds = sorted(shown, key=lambda kind: (kind not in _FIRST, kind))
    return [
        {"kind": kind.replace("_", " "), "count": counts[kind], "examples": shown[kind]}
        for kind in kinds
    ]


def _batch(
    checked: Checked, thumbnails: Thumbnails, sizes: Mapping[str, Any], seed: int
) -> list[page.Shown]:
    """Return some training images, each beside what the first epochs would make of it."""
    first: dict[str, int] = {}
    for i, row in enumerate(manifest.rows_of(checked.table, ["labels", "split", "fault"])):
        if row["fault"] is None and row["split"] == "train":
            first.setdefault(", ".join(row["labels"]), i)
    rows = spread(list(first.values()), _AUGMENTED)
    precrop, crop = sizes["precrop"], sizes["crop"]
    shown: list[page.Shown] = []
    for number in rows:
        pixels = thumbnails.pixels(number, precrop)
        if pixels is None:
            continue
        variants = augmented(pixels, number, precrop=precrop, crop=crop, seed=seed)
        values = checked.table.slice(number, 1).to_pylist()[0]
        shown.append(
            {
                "label": ", ".join(values["labels"]),
                "path": values["path"],
                "picture": page.picture(pixels, 144),
                "variants": [
                    {"picture": page.picture(cut, 128), "mirrored": flip} for cut, flip in variants
                ],
            }
        )
    return shown
