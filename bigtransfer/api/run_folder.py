"""The folder of a run: how it is called, and whose it is, so that no run overwrites another's."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from bigtransfer.errors import BigTransferError, ConfigError

if TYPE_CHECKING:
    from bigtransfer.artifacts.run import Run
    from bigtransfer.artifacts.validation import Counts
    from bigtransfer.config import DatasetRules
    from bigtransfer.data.shard_plan import Packing

_MADE = ("shards", "checkpoints", "report", "model")
"""What only a run that passed its check leaves in its folder."""
_MANIFEST, _REPORT = "manifest.parquet", "validation"
SWEEP_TABLE = "table.md"
"""What a sweep writes into its own folder."""
_ASIDE = Path(".work") / "check"
"""Where a dataset is checked that may turn out to be another one."""
_LONGEST_BYTES = 100


def folder_name(path: Path) -> str:
    """Return a name for the run of a dataset: its own, letters and digits of any script kept.

    Args:
        path: Folder, or file, of which the suffix is left out.
    """
    path = path.resolve()
    text = unicodedata.normalize("NFC", path.stem if path.is_file() else path.name)
    kept = "".join(c if c in "._-" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    name = "-".join(kept.split()).strip("._-").encode()[:_LONGEST_BYTES].decode(errors="ignore")
    name = name.rstrip("._-")
    return name or f"images-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_folder_name(name: str) -> bool:
    """Say whether a name is one that `folder_name` gives, so that it can stand in a path."""
    return name == folder_name(Path("/nowhere") / name) if name and "/" not in name else False


@dataclass(frozen=True)
class Claimed:
    """A run folder that belongs to a dataset, which has been checked."""

    folder: Path
    run: Run
    counts: Counts

    def packed(self) -> str | None:
        """Return the digest of the shards, if those that are there are whole and of this content.

        They are kept then, wherever the dataset lies now and however its folder is called: packed
        anew, they would count as other data.
        """
        from bigtransfer.storage import verify_folder

        with suppress(BigTransferError):
            if self.run.shards and verify_folder(self.folder / "shards") == self.run.shards:
                return self.run.shards
        return None

    def note_packed(self, digest: str) -> None:
        """Write down that the shards of this content are there."""
        self.run.model_copy(update={"shards": digest}).write(self.folder)


def claim(images: Path, folder: Path, name: str, rules: DatasetRules, to: Path) -> Claimed:
    """Check a dataset and take a run folder for it, or refuse one that is another dataset's.

    The same content may go on, wherever it lies; the same place may have changed; anything else is
    another dataset, and of what the folder holds nothing is touched.

    Args:
        images: Dataset.
        folder: Of the run; locked by the caller.
        name: Of the task, where the folder knows none.
        rules: For the check.
        to: What `--to` names: the folder, or the one that holds it.

    Raises:
        ConfigError: If the folder is another dataset's; names `--to`.
        DatasetError: If the images cannot be read.
        GateError: If they should not be used as they are.
    """
    from bigtransfer.artifacts.run import Run
    from bigtransfer.data.content import content_of
    from bigtransfer.data.shard_plan import packing_of
    from bigtransfer.data.validation import validate
    from bigtransfer.storage import sha256_json

    if (folder / SWEEP_TABLE).is_file():
        raise ConfigError(
            f"{str(folder)!r} holds a sweep over many tasks; give one run a folder of its own: "
            f"--to {_another(to)}"
        )
    here, packing = str(images.resolve()), packing_of(rules)
    known = Run.read(folder) if (folder / Run.FILE).is_file() else None
    if known is None and any((folder / part).exists() for part in _MADE):
        known = _from_before(folder, packing)
    own = known is None or known.images == here
    place = folder if own else folder / _ASIDE
    name = name if known is None else known.name
    counts = validate(images, name, rules, manifest_path=place / _MANIFEST, report=place / _REPORT)
    content = content_of(place / _MANIFEST)
    if not own:
        assert known is not None
        _require_same(known, content, place, images, folder, to)
        _move(place, folder)
    found = Run(name=name, images=here, content=content, packing=sha256_json(vars(packing)))
    if known is not None and (known.content, known.packing) == (found.content, found.packing):
        found = found.model_copy(update={"shards": known.shards})
    elif known is not None and known.content != content:
        _say(
            "the images are not those of the last run here: trained anew; its model stays until "
            "the new one is complete"
        )
    found.write(folder)
    return Claimed(folder, found, counts)


def was_made_of(folder: Path, images: Path) -> bool:
    """Say whether a run folder says that it was made from the dataset that lies there."""
    from bigtransfer.artifacts.run import Run
    from bigtransfer.artifacts.validation import ValidationReport

    here = images.resolve()
    with suppress(BigTransferError):
        if (folder / Run.FILE).is_file():
            return Run.read(folder).images == str(here)
        address = Path(ValidationReport.read(folder / _REPORT).address).resolve()
        return address == (here.parent if here.is_file() else here)
    return False


def _from_before(folder: Path, packing: Packing) -> Run:
    """Return what a run folder without `run.json` would say, as far as it can be told."""
    from bigtransfer.artifacts.run import Run
    from bigtransfer.data.content import content_of
    from bigtransfer.data.manifest import read_manifest
    from bigtransfer.data.shard_plan import make_plan
    from bigtransfer.data.shards import describe_shards
    from bigtransfer.storage import sha256_json

    manifest, shards = folder / _MANIFEST, None
    try:
        name, content = read_manifest(manifest)[1].dataset, content_of(manifest)
        with suppress(BigTransferError):
            digest, summary = describe_shards(folder / "shards")
            shards = digest if summary.plan == make_plan(manifest, packing).digest else None
    except BigTransferError:
        name, content = folder_name(folder), ""
    return Run(
        name=name,
        images="",
        content=content,
        packing=sha256_json(vars(packing)),
        shards=shards,
    )


def _require_same(
    known: Run, content: str, place: Path, images: Path, folder: Path, to: Path
) -> None:
    """Refuse a folder that other images were made into, at another place."""
    from bigtransfer.data.content import content_of

    if known.images:
        same = known.content == content
    else:  # how a split is drawn may have changed since; the images have not
        old, new = folder / _MANIFEST, place / _MANIFEST
        same = bool(known.content) and (
            known.content == content
            or content_of(old, with_splits=False) == content_of(new, with_splits=False)
        )
    if not same:
        raise ConfigError(
            f"{str(folder)!r} is the run of {known.images or 'other images'!r}, not of "
            f"{str(images)!r}; give these a folder of their own: --to {_another(to)}"
        )
    if not known.images:
        _say(f"{folder} was made before run.json was; taken over, it holds the same images")


def _another(folder: Path) -> str:
    numbers = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return shlex.quote(str(next(path for path in numbers if not path.exists())))


def _move(place: Path, folder: Path) -> None:
    """Put manifest and report of a check aside in their place."""
    (place / _MANIFEST).replace(folder / _MANIFEST)
    shutil.rmtree(folder / _REPORT, ignore_errors=True)
    (place / _REPORT).replace(folder / _REPORT)


def _say(line: str) -> None:
    print(f"             {line}", flush=True)
