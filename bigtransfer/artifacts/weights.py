"""`meta.json` of a checkpoint: what is needed to build its network, and what made it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from bigtransfer.artifacts.base import Artifact, Json, Part
from bigtransfer.artifacts.calibration import Calibration, MultiLabelCalibration
from bigtransfer.artifacts.decoding import AS_STORED, DecodeSettings
from bigtransfer.errors import CheckpointError, StorageError
from bigtransfer.storage import MANIFEST_NAME

_ZIP = b"PK\x03\x04"
"""How an .npz begins."""


class WeightsMeta(Artifact):
    """What every checkpoint says of itself."""

    FILE: ClassVar[str] = "meta.json"
    WHAT: ClassVar[str] = "the description of a checkpoint"
    MAKER: ClassVar[str] = "pretrain, or finetune"
    SCHEMA: ClassVar[int] = 2
    REFUSAL: ClassVar[type[CheckpointError]] = CheckpointError

    architecture: str
    """E.g. `R50x1`."""
    root: Literal["imagenet", "small"]
    norm: Literal["gn_ws", "gn", "bn_ws", "bn"]
    classes: tuple[str, ...]
    """Names, in the order of the head's outputs."""
    crop: int
    """Side of the square that the network was trained on, pixels."""
    decode: DecodeSettings = AS_STORED
    """How the images that it was trained on became pixels; not noted before 2026-11-26."""
    digest: str = Field(default="", exclude=True)
    """Of the folder that this was read from; not in the file."""


class PublishedFile(Part):
    """The file that a checkpoint was made from."""

    file: str
    sha256: str


class UpstreamMeta(WeightsMeta):
    """Of a network that tasks start from: pretrained here, or published by others."""

    kind: Literal["upstream"] = "upstream"
    dataset: str = ""
    """That it was pretrained on here."""
    shards_digest: str = ""
    steps: int | None = None
    recipe: Json = {}
    """Params of its pretraining."""
    source: PublishedFile | None = None

    @classmethod
    def upgraded(cls, raw: Json, schema: int) -> Json:
        """Return the first schema, in which the recipe lay among the rest, as the second."""
        known = {key: raw[key] for key in raw if key in cls.model_fields}
        recipe: Json = {key: raw[key] for key in raw if key not in known}
        return {**known, "recipe": recipe}


class Narrowed(Part):
    """What weights in bfloat16 change of a network's answers on its validation images."""

    images: int
    top1: float
    """Share of right answers, in [0, 1]; with several labels: of exactly right sets."""
    top1_float32: float
    differ: float
    """Share of answers that are others than in float32."""

    @property
    def is_harmless(self) -> bool:
        """Say whether nothing that counts is lost: as good, and one answer in a hundred at most."""
        return self.top1 >= self.top1_float32 and self.differ <= 0.01


class TunedMeta(WeightsMeta):
    """Of a network that was fine-tuned to a task."""

    kind: Literal["tuned"] = "tuned"
    task: str
    init: Literal["upstream", "scratch"]
    examples_per_class: int | Literal["full"]
    seed: int
    trained: str
    """`all` weights, or the `head` alone."""
    train_on: tuple[str, ...]
    """Splits."""
    hyperrule: Json
    """The verdict that it was trained by."""
    calibration: Calibration | MultiLabelCalibration
    upstream_digest: str | None
    """None: it was trained from scratch."""
    shards_digest: str
    code: str | None = None
    """Version of the code that trained it; not noted before 2026-11-26."""
    bfloat16: Narrowed | None = None
    """Of a model that people predict with; None, and not in the file: nobody has looked."""

    @model_serializer(mode="wrap")
    def _without_what_nobody_looked_at(self, whole: SerializerFunctionWrapHandler) -> Json:
        values: Json = whole(self)
        if values.get("bfloat16") is None:
            values.pop("bfloat16", None)
        return values

    @property
    def multi_label(self) -> bool:
        """Say whether its images may have several labels."""
        return isinstance(self.calibration, MultiLabelCalibration)

    @classmethod
    def upgraded(cls, raw: Json, schema: int) -> Json:
        """Return the first schema, which called the calibration `validation`, as the second."""
        raw = {**raw, "calibration": raw["validation"]}
        return {key: raw[key] for key in raw if key not in ("validation", "multi_label")}


def parse_meta(raw: object, where: str) -> UpstreamMeta | TunedMeta:
    """Return what a `meta.json` says of a checkpoint of either kind.

    Args:
        raw: What the file holds.
        where: The file, for messages.

    Raises:
        CheckpointError: In one line, if it is damaged, foreign, or of a newer version.
    """
    facts = raw if isinstance(raw, dict) else {}
    # The first schema had no kind: a fine-tuned network had met its validation split.
    tuned = facts.get("kind") == "tuned" or "validation" in facts
    return (TunedMeta if tuned else UpstreamMeta).parse(raw, where)


def require_weights(folder: Path, address: str) -> None:
    """Refuse what cannot be weights; the only file gets the suffix by which it is known.

    Raises:
        StorageError: If it is neither a checkpoint folder nor a published file.
    """
    if (folder / MANIFEST_NAME).is_file():
        return
    files = [path for path in folder.rglob("*") if path.is_file()]
    if len(files) != 1:
        raise StorageError(
            f"{address!r} holds {len(files):,} files and no {MANIFEST_NAME}; give the address of a "
            "checkpoint folder, or of a published file (.npz)"
        )
    with files[0].open("rb") as file:
        begins = file.read(len(_ZIP))
    if begins != _ZIP:
        raise StorageError(
            f"{address!r} is no published file (.npz): it begins with {begins!r}; a login page, or "
            "another file? correct the address"
        )
    if files[0].suffix != ".npz":
        files[0].rename(folder / "weights.npz")
