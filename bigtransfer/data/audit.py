"""Compare datasets: is an image that a task is tested on among those the upstream network saw?

BiT took such images out of its upstream data before it reported anything (arXiv 1912.11370, section
4). All that is needed is in the manifests: hashes of pixels, and of looks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from bigtransfer.artifacts.audit import Audit, Closest, Compared, Leak
from bigtransfer.data.copies import find_between
from bigtransfer.data.fingerprint import (
    HASH_BITS,
    MAX_DISTANCE,
    MIN_CORRELATION,
    THUMB_SIDE,
    Fingerprints,
    nearest_pair,
)
from bigtransfer.data.manifest import comparable, fingerprints, read_manifest
from bigtransfer.data.tables import column
from bigtransfer.errors import ConfigError, GateError
from bigtransfer.report import page
from bigtransfer.storage import as_json, new_folder, sha256_file

_SHOWN = 60
_NAMED = 10
Columns = tuple[Sequence[str], Fingerprints, NDArray[np.bool_]]


def audit(
    manifests: Sequence[Path],
    output: Path,
    *,
    upstream: str | None,
    downstream: Sequence[str],
    on_leak: str,
) -> Audit:
    """Look for downstream validation and test images among the upstream training images.

    Args:
        manifests: Manifest files, or folders that hold `<dataset>/manifest.parquet`.
        output: Folder to write `audit.json` and `index.html` into, whatever the verdict.
        upstream: Name of the upstream dataset; None: not known, nothing can be compared.
        downstream: Names of the datasets that tasks are, or could be, made of.
        on_leak: `error` or `report`.

    Returns:
        What `audit.json` holds.

    Raises:
        ConfigError: If a dataset has no manifest among those given.
        GateError: If there is a leak and `on_leak` is `error`; the page is written before.
    """
    known = _by_dataset(manifests)
    wanted = [name for name in dict.fromkeys(downstream) if name != upstream]
    sides = [name for name in (upstream, *wanted) if name is not None]
    for name in sides:
        if name not in known:
            raise ConfigError(
                f"dataset {name!r} has no manifest below {', '.join(map(str, manifests))}; run "
                f"`validate@{name}` first"
            )
    leaks: list[Leak] = []
    pictures: list[tuple[str, str]] = []
    nearest: list[tuple[str, str] | None] = []
    compared = []
    if upstream is not None:
        source, facts = read_manifest(known[upstream])
        source = _of_splits(source, ("train",))
    for name in wanted if upstream is not None else ():
        table, own = read_manifest(known[name])
        table = _of_splits(table, ("val", "test"))
        side = max(facts.near_duplicate_side, own.near_duplicate_side)
        off = 0 in (facts.near_duplicate_side, own.near_duplicate_side)
        ours, theirs = _columns(table, side, off), _columns(source, side, off)
        found = find_between(ours, theirs)
        closest, shown_pair = _closest(table, source, ours[2], theirs[2])
        nearest.append(shown_pair)
        compared.append(
            Compared(
                upstream=facts.dataset,
                downstream=name,
                upstream_images=len(source),
                downstream_images=len(table),
                leaks=len({c.first for c in found}),
                by_looks=not off,
                comparable=(int(ours[2].sum()), int(theirs[2].sum())),
                closest=closest,
            )
        )
        leaks += [
            Leak(
                downstream=name,
                how=copy.how,
                downstream_path=table["path"][copy.first].as_py(),
                downstream_split=table["split"][copy.first].as_py(),
                upstream_path=source["path"][copy.second].as_py(),
            )
            for copy in found
        ]
        shown = found[: max(0, _SHOWN - len(pictures))]
        pictures += [(_thumb(table, copy.first), _thumb(source, copy.second)) for copy in shown]
    result = Audit(
        success=not leaks,
        datasets={name: sha256_file(known[name]) for name in sides},
        compared=tuple(compared),
        leaks=tuple(leaks),
        facts={name: read_manifest(known[name])[1] for name in sides},
    )
    with new_folder(output) as folder:
        result.write(folder)
        html = page.render(
            Path(__file__).with_name("audit.html"),
            audit=result,
            pictures=pictures,
            nearest=nearest,
            limits={"bits": MAX_DISTANCE, "of": HASH_BITS, "correlation": MIN_CORRELATION},
            exclude=_exclude(leaks),
            upstream=upstream,
            on_leak=on_leak,
        )
        (folder / "index.html").write_text(html, "utf-8")
    if leaks and upstream is not None and on_leak == "error":
        raise GateError(_refusal(leaks, upstream, output))
    return result


def _refusal(leaks: Sequence[Leak], upstream: str, output: Path) -> str:
    lines = [
        f"  {k.downstream} {k.downstream_split}: {k.downstream_path!r}: {k.how} {k.upstream_path!r}"
        for k in leaks[:_NAMED]
    ]
    if len(leaks) > _NAMED:
        lines.append(f"  and {len(leaks) - _NAMED} more")
    listing = "\n".join(lines)
    return (
        f"{len(leaks)} images that tasks are tested on are among the training images of "
        f"{upstream!r}:\n{listing}\nleave them out: 'datasets.{upstream}.exclude' in params.yaml, "
        f"ready to copy in {output / 'index.html'} (or set audit.on_leak: report)"
    )


def _by_dataset(places: Sequence[Path]) -> dict[str, Path]:
    found = {}
    for place in places:
        files = sorted(place.glob("*/manifest.parquet")) if place.is_dir() else [place]
        for file in files:
            found[read_manifest(file)[1].dataset] = file
    return found


def _of_splits(table: pa.Table, splits: tuple[str, ...]) -> pa.Table:
    mask = [split in splits for split in column(table, "split")]
    return table.filter(pa.array(mask, pa.bool_()))


def _columns(table: pa.Table, side: int, off: bool) -> Columns:
    mask = np.zeros(len(table), bool) if off else comparable(table, side)
    return column(table, "pixel_sha256"), fingerprints(table), mask


def _closest(
    table: pa.Table, source: pa.Table, ours: NDArray[np.bool_], theirs: NDArray[np.bool_]
) -> tuple[Closest | None, tuple[str, str] | None]:
    """Return the pair that looks most alike, and its pictures.

    Images whose looks count are preferred; where a side has none, all that show something are.
    """
    counts = bool(ours.any() and theirs.any())
    if not counts:
        ours, theirs = comparable(table, 1), comparable(source, 1)
    rows, others = np.flatnonzero(ours), np.flatnonzero(theirs)
    found = nearest_pair(fingerprints(table).take(rows), fingerprints(source).take(others))
    if found is None:
        return None, None
    own, other = int(rows[found.query]), int(others[found.reference])
    closest = Closest(
        downstream_path=table["path"][own].as_py(),
        downstream_split=table["split"][own].as_py(),
        upstream_path=source["path"][other].as_py(),
        mirrored=found.mirrored,
        bits=found.bits,
        correlation=round(found.correlation, 3),
        counts=counts,
        pairs=found.pairs,
    )
    return closest, (_thumb(table, own), _thumb(source, other))


def _thumb(table: pa.Table, row: int) -> str:
    raw = np.frombuffer(table["thumb"][row].as_py(), np.uint8).reshape(THUMB_SIDE, THUMB_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(raw).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _exclude(leaks: Sequence[Leak]) -> str:
    paths = sorted({leak.upstream_path for leak in leaks})
    return "exclude:\n" + "\n".join(f"  - {as_json(path).strip()}" for path in paths)
