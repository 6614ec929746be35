"""What the gates of a promotion cannot read anywhere: the champion, run beside a new version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bigtransfer.artifacts.measured import Measured
from bigtransfer.errors import ConfigError, TrackingError
from bigtransfer.storage.places import Place
from bigtransfer.track.contest import Contest, contest

_BATCH = 64


@dataclass(frozen=True)
class Measurement:
    """A version and the champion, measured and kept with the version."""

    name: str
    version: str
    champion: str
    images: int
    """Of the validation split."""
    found: Measured


def measure(
    project: Path, name: str, wanted: str, *, shards: Place | None = None, device: str = "auto"
) -> Measurement:
    """Run the champion on the validation images of a version, and both in turn for their latency.

    The champion's answers are kept with the version, so that its gates can read them.

    Args:
        project: The project's root.
        name: Of the registered model.
        wanted: The version, or an alias of it.
        shards: Those that it was trained on; None: `artifacts/datasets/<dataset>/shards`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: If the shards are others than those.
        TrackingError: If there is no such version, or it cannot be compared with the champion.
        GateError: If files of either are not as they were registered.
    """
    from bigtransfer.data.shards import open_shards
    from bigtransfer.evaluate.account import digest_of_split
    from bigtransfer.evaluate.in_turn import answers_of, latency_of
    from bigtransfer.model.checkpoint import read_tuned_meta
    from bigtransfer.model.processor import device_named
    from bigtransfer.storage import new_folder

    with contest(project, name, wanted) as both:
        place = shards if shards is not None else _shards_of(project, both)
        opened = open_shards(place)
        if digest_of_split(opened, "val") != both.evidence.validation_digest:
            raise ConfigError(
                f"the validation images in {str(place)!r} are not those of {name} version "
                f"{both.version}; name its shards with --shards"
            )
        theirs, mine = (
            tuple(read_tuned_meta(f).classes) for f in (both.champions, both.checkpoint)
        )
        if theirs != mine:
            raise TrackingError(
                f"{name} version {both.version} cannot be compared: it knows other classes than "
                f"v{both.champion}"
            )
        on = device_named(device)
        answers, left_out = answers_of(
            both.champions, opened, seed=both.evidence.seed, batch_size=_BATCH, device=on
        )
        latency = latency_of(both.champions, both.checkpoint, on)
        took = latency.milliseconds
        found = Measured(
            champion=both.champions_digest,
            validation_digest=both.evidence.validation_digest,
            left_out=left_out,
            latency=latency.ratio,
            latency_at=f"{took[1]:.2f} ms against {took[0]:.2f} ms on {on.type}",
        )
        with TemporaryDirectory() as scratch:
            with new_folder(Path(scratch) / "measured") as folder:
                found.write(folder)
                answers.write(folder)
            both.keep(Path(scratch) / "measured")
        return Measurement(name, both.version, both.champion, len(answers.labels), found)


def _shards_of(project: Path, both: Contest) -> Path:
    folder = project / "artifacts" / "datasets" / both.dataset / "shards"
    if not both.dataset or not folder.is_dir():
        raise ConfigError(
            f"the shards that {both.name} version {both.version} was trained on are not at "
            f"{str(folder)!r}; name them with --shards"
        )
    return folder
