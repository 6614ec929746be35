"""The typed sections of `params.yaml`: frozen, strictly typed, no unknown keys.

There is no second place with defaults: a value is in `params.yaml`, where the user sees it, or it
is `null` there and the BiT-HyperRule computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from bigtransfer.config.base import (
    Colour,
    Mirror,
    Name,
    NotNegative,
    Positive,
    Rate,
    Section,
    Share,
    Shots,
)
from bigtransfer.config.cluster import FEWEST_IN_PARTS, IN_PARTS, LAUNCHED, ClusterParams
from bigtransfer.errors import ConfigError, did_you_mean

SplitName = Literal["train", "val", "test"]
Layout = Literal[
    "auto", "folders", "flat", "table", "cifar", "ilsvrc2012", "class_tars", "webdataset"
]
LAYOUTS: tuple[str, ...] = get_args(Layout)
"""How a dataset may lie where it is; `auto` tells it by the names of its files."""
SOURCES = "artifacts/sources"
"""Where the stage `fetch` writes what it found at a dataset's remote source."""


class MaterializeParams(Section):
    """The embedded data: which profile is rendered, from which seed."""

    profile: Literal["default", "thorough"]
    seed: NotNegative


class SplitFractions(Section):
    """Shares of a dataset that become its validation and test split; the rest is train."""

    val: Share
    test: Share

    @model_validator(mode="after")
    def _leave_some_for_train(self) -> SplitFractions:
        if self.val + self.test >= 1:
            raise ValueError("val + test must stay below 1; the rest is the train split")
        return self


class DatasetRules(Section):
    """What a dataset must obey and how it is split and packed (section `data`)."""

    seed: NotNegative
    """Of the splits that are made, and of the order inside the shards."""
    splits: SplitFractions
    """Where the dataset brings none."""
    required_splits: Annotated[tuple[SplitName, ...], Field(strict=False, min_length=1)]
    """Each must hold an image."""
    min_classes: Positive
    min_examples_per_class: Positive
    min_side_pixels: Positive
    """Of the shorter side."""
    max_side_pixels: Positive
    """Of the longer side."""
    max_image_pixels: Positive
    """Height times width."""
    max_file_bytes: Positive
    """Encoded."""
    small_side_pixels: NotNegative
    """Pixels; an image with a shorter side is flagged."""
    near_duplicate_side: NotNegative
    """Pixels; images with a shorter side are compared by equal pixels alone; 0: all are."""
    on_bad: Literal["error", "quarantine"]
    bad_budget: Share
    """Share of unusable images that quarantine accepts."""
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None
    """Names, in label order; None: those of the data."""
    exclude: Annotated[tuple[str, ...], Field(strict=False)]
    """Paths, as the manifest spells them."""
    expectations: Annotated[tuple[dict[str, Any], ...], Field(strict=False)]
    orientation: Literal["apply", "ignore"] = "apply"
    """Of cameras; may be absent: a params.yaml from before it keeps working."""
    background: Colour | None = "#ffffff"
    """That transparent pixels are laid on; None: transparency is dropped. May be absent, too."""
    layout: Layout
    examples: Annotated[Positive | None, Field(exclude=True)] = None
    """Images that a submission reckons with, where they are not counted yet. May be absent."""
    source: str | None
    mirror: bool
    """Whether the bytes of a remote source are copied here."""
    shard_bytes: Positive
    """About one shard."""
    short_side_pixels: Positive | None
    """Larger photos are made smaller to it when packed; None: never."""
    shards_at: Annotated[str, Field(pattern=r"^s3://[^/]+(/.*)?$")] | None

    @model_validator(mode="after")
    def _possible(self) -> DatasetRules:
        if self.min_side_pixels > self.max_side_pixels:
            raise ValueError("min_side_pixels must not exceed max_side_pixels")
        for rule in self.expectations:
            if not isinstance(rule.get("expect"), str):
                raise ValueError(
                    f"expectations: {rule!r} names no rule; write {{expect: "
                    "column_values_to_be_between, column: height, min_value: 64}"
                )
        if self.classes and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes holds a name twice")
        return self


class DatasetParams(DatasetRules):
    """One entry of `datasets:` with the rules of `data:` filled in."""

    name: Name
    path: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _remote_lies_in_its_index(self) -> DatasetParams:
        index = f"{SOURCES}/{self.name}"
        if "://" in self.path:
            raise ValueError(
                f"path {self.path!r} is an address; DVC depends on local paths only: write "
                f"path: {index}, source: {self.path}"
            )
        if self.source is not None and self.path.rstrip("/") != index:
            raise ValueError(f"the index of a remote source lies at {index!r}; write path: {index}")
        return self


class ProbeParams(Section):
    """The cheap check of the features during upstream training (`pretrain.probe`)."""

    dataset: Name
    examples_per_class: Annotated[tuple[Positive, ...], Field(strict=False)]
    seeds: Annotated[tuple[NotNegative, ...], Field(strict=False, min_length=1)]
    """Of the subsets; the mean over them is noted."""


class PretrainParams(Section):
    """Upstream training (section `pretrain`)."""

    RECIPE: ClassVar = (
        "architecture", "root", "norm", "norm_batch", "loss", "head_bias", "batch_size",
        "momentum", "weight_decay", "precrop", "crop", "augmentation", "flip", "seed", "threads",
        "train_share",
    )  # fmt: skip
    """What decides the result, beside the schedule and the data."""
    SCHEDULE: ClassVar = ("epochs", "base_lr", "warmup_steps", "decay_epochs")
    """What decides the schedule, beside the number of images."""

    dataset: Name
    architecture: str
    root: Literal["imagenet", "small"]
    norm: Literal["gn_ws", "gn", "bn_ws", "bn"]
    examples: Positive | None
    """Training images, where they are not counted yet; for planning alone."""
    loss: Literal["softmax", "sigmoid"]
    head_bias: Annotated[float, Field(allow_inf_nan=False)]
    """Start of the bias of the head; log(1 / classes) for the sigmoid loss."""
    epochs: Rate
    """Passes over the train split; total_steps = round(examples * epochs / batch_size)."""
    batch_size: Positive
    """Images per step, over all processes."""
    base_lr: Rate
    """Peak of the schedule, per step, for this very batch_size."""
    warmup_steps: NotNegative
    decay_epochs: Annotated[tuple[Rate, ...], Field(strict=False)]
    """Where the rate is divided by 10."""
    momentum: Share
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of SGD; on kernels alone."""
    precrop: Positive
    """Side of the square that an image is resized to, pixels."""
    crop: Positive
    """Side of the random crop of it, pixels."""
    augmentation: Literal["square", "inception"]
    flip: bool
    seed: NotNegative
    threads: Positive
    """Of PyTorch and the decoder, per process; rounding depends on it."""
    device: Literal["auto", "cpu", "cuda", "tpu"]
    parallel: Literal["ddp", "fsdp"]
    micro_batch_size: Positive | None
    """Images per forward pass of a process; None: all of its share."""
    precision: Literal["float32", "bfloat16"]
    recompute: Literal["none", "norms", "units"]
    compile: bool
    cuda_graph: Literal["auto", True, False]
    """Whether a GPU's steps are recorded as CUDA graphs; `auto`: where they can be."""
    evaluation_steps: Positive
    """Steps between two evaluations."""
    probe: ProbeParams
    max_loss_factor: Rate
    """Times the first loss: above it the training has diverged."""
    checkpoint_steps: Positive | None
    """Steps between two checkpoints."""
    checkpoint_seconds: Positive | None
    """Seconds between two checkpoints."""
    checkpoint_mirror: Mirror | None
    """s3:// prefix that checkpoints are copied to."""
    resume: Literal["same_code", "any_code"]
    stop_seconds: NotNegative
    """Seconds after SIGTERM in which the last checkpoint must be written; 0: none is written."""
    norm_batch: Positive | None = None
    """Images over which BatchNorm takes its statistics, as if each so many were on a device of
    their own; None: all of a forward pass. This and what follows may be absent."""
    train_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the train split; a larger share holds what a smaller one of the same seed holds."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the values of `RECIPE`: without those that are as before there was a choice."""
        usual = {"norm_batch": None, "train_share": 1.0}
        found = {key: getattr(self, key) for key in self.RECIPE}
        return {key: own for key, own in found.items() if key not in usual or own != usual[key]}

    def trained_on(self, examples: int) -> int:
        """Return how many of so many training images are used."""
        return max(1, round(self.train_share * examples))

    @model_validator(mode="after")
    def _possible(self) -> PretrainParams:
        if self.norm_batch is not None:
            if self.norm not in ("bn", "bn_ws"):
                raise ValueError(f"norm_batch is for norm bn and bn_ws, not for {self.norm}")
            for name in ("batch_size", "micro_batch_size"):
                if (getattr(self, name) or 0) % self.norm_batch:
                    raise ValueError(f"norm_batch {self.norm_batch} must divide {name}")
        if self.crop > self.precrop:
            raise ValueError(f"crop {self.crop} must not exceed precrop {self.precrop}")
        epochs = self.decay_epochs
        if any(a >= b for a, b in zip(epochs, epochs[1:], strict=False)):
            raise ValueError("decay_epochs must increase")
        if epochs and epochs[-1] >= self.epochs:
            raise ValueError(f"decay_epochs must stay below epochs ({self.epochs:g})")
        if self.checkpoint_steps is None and self.checkpoint_seconds is None:
            raise ValueError(
                "give checkpoint_steps or checkpoint_seconds; without either nothing "
                "is kept of an interrupted run"
            )
        if self.recompute != "none" and self.norm in ("bn", "bn_ws"):
            raise ValueError(f"recompute {self.recompute} does not go with norm {self.norm}")
        if self.cuda_graph is True and (self.compile or self.parallel == "fsdp"):
            raise ValueError("cuda_graph goes with neither compile nor parallel: fsdp")
        return self


class FinetuneParams(Section):
    """Transfer to a task (section `finetune`); `null` leaves a value to the BiT-HyperRule."""

    inits: Annotated[tuple[Literal["upstream", "scratch"], ...], Field(strict=False, min_length=1)]
    examples_per_class: Annotated[tuple[Shots, ...], Field(strict=False, min_length=1)]
    """Of balanced subsets of the train split, or `full`."""
    seeds: Annotated[tuple[NotNegative, ...], Field(strict=False, min_length=1)]
    """Of the subset, the order, and the weights from scratch; the median over them counts."""
    preset: Literal["paper", "repository", "quick"]
    """Of the HyperRule; `quick`: a linear head on the frozen network's features."""
    trained: Literal["all", "head"]
    """`all` weights, or the `head` alone."""
    train_on: Annotated[tuple[Literal["train", "val"], ...], Field(strict=False, min_length=1)]
    """Splits; what a network was trained on cannot calibrate it."""
    total_steps: Positive | None
    warmup_steps: NotNegative | None
    decay_steps: Annotated[tuple[Positive, ...], Field(strict=False)] | None
    batch_size: Positive | None
    """Images per step."""
    base_lr: Rate | None
    """Peak of the schedule, per step."""
    precrop: Positive | None
    """Pixels, as in pretraining."""
    crop: Positive | None
    """Pixels."""
    mixup_alpha: Share | None
    random_crop: bool
    flip: bool
    abstain_accuracy: Annotated[float, Field(gt=0, le=1)]
    """Wanted among the answers that count as sure, in (0, 1]."""
    threads: Positive
    """Of PyTorch and the decoder, per worker; rounding depends on it."""
    device: Literal["auto", "cpu", "cuda"]
    workers: Positive | None
    """Networks that are trained at a time; None: one per GPU."""
    micro_batch_size: Positive | None
    """Images per forward pass; None: as many as fit into memory."""
    precision: Literal["float32", "bfloat16", "auto"]
    """`auto`, of preset quick alone: bfloat16 where the processor multiplies it."""
    recompute: Literal["none", "norms", "units"]
    compile: bool
    checkpoint_seconds: Positive
    """Seconds between two checkpoints of a network."""
    cuda_graph: Literal["auto", True, False] = "auto"
    """As in pretraining. May be absent."""
    sampling: Literal["natural", "balanced"] = "natural"
    """`balanced`: rarer classes are seen more often, each class equally. May be absent."""
    checkpoint_mirror: Mirror | None = None
    """s3:// prefix that finished networks and the states of running ones are copied to. May be
    absent."""
    stop_seconds: NotNegative = 12
    """Seconds after SIGTERM in which the last checkpoint must be written; 0: none is written. May
    be absent."""
    resume: Literal["same_code", "any_code"] = "same_code"
    """May be absent: a params.yaml from before it keeps working."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Of SGD, on kernels alone; None: the HyperRule's, which has none. May be absent."""

    @model_validator(mode="after")
    def _possible(self) -> FinetuneParams:
        for name in ("inits", "examples_per_class", "seeds", "train_on"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds a value twice")
        if self.precrop and self.crop and self.crop > self.precrop:
            raise ValueError(f"crop {self.crop} must not exceed precrop {self.precrop}")
        steps = self.decay_steps or ()
        if any(a >= b for a, b in zip(steps, steps[1:], strict=False)):
            raise ValueError("decay_steps must increase")
        if self.precision == "auto" and self.preset != "quick":
            raise ValueError("precision auto is for preset quick; give float32 or bfloat16")
        return self


class TaskParams(FinetuneParams):
    """One entry of `tasks:` with the values of `finetune:` filled in."""

    name: Name
    dataset: Name


class EvaluateParams(Section):
    """Scoring of fine-tuned checkpoints (section `evaluate`)."""

    batch_size: Positive
    """Images per forward pass."""
    threads: Positive
    device: Literal["auto", "cpu", "cuda"]


class GateRules(Section):
    """What a model version must show before it becomes champion (`register.gates`)."""

    compare: Literal["not_worse", "better"] = "not_worse"
    """With the champion, on the same validation images and seeds."""
    margin: Share = 0.01
    """Of `not_worse`: what the lower end of the 95 % interval may lack."""
    leakage: Literal["clean", "any"] = "clean"
    upstream: Literal["pinned", "any"] = "pinned"
    """Whether the weights that it began with must be ours, or a file whose sha256 is `pinned`."""
    pinned: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = Field((), strict=False)
    """SHA-256 of published files, or of the MANIFEST.json of checkpoints, that somebody checked."""
    calibration: Rate | None = 0.1
    """Most that the lower end of its calibration error may be; null: any."""
    class_floor: bool = True
    """Whether no class's recall may fall by more than its 95 % interval."""
    latency: Rate | None = None
    """Most that one image may take, as a multiple of the champion's time; null: any."""


class RegisterParams(Section):
    """What becomes a registered model, and when it becomes champion (section `register`)."""

    name_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]*$")]
    first: Literal["champion", "challenger"] = "champion"
    """What the first version of a model becomes, if it passes the gates."""
    gates: GateRules = GateRules()
    poll_seconds: Rate = 5.0
    """Between two looks of `bigtransfer watch`."""
    by_hand: Literal["report", "revert"] = "report"
    """What `watch` does about a champion that somebody moved without a gate."""
    records_at: Annotated[str, Field(pattern=r"^s3://[^/]+(/.*)?$")] | None = None
    """Of a second copy of the records of promotions, each object written once."""
    promote: Literal["if_better", "never"] | None = None
    """Not read any more, but that `never` is `first: challenger`: nothing but its first version is
    promoted by itself."""

    @property
    def first_alias(self) -> Literal["champion", "challenger"]:
        """Return what the first version becomes."""
        return "challenger" if self.promote == "never" else self.first


class AuditRules(Section):
    """What becomes of a leak between datasets (section `audit`)."""

    on_leak: Literal["error", "report"]


class AuditParams(AuditRules):
    """The same, with what each task is compared to: derived from `pretrain:`, never typed."""

    upstream: Name | None
    """None: the weights come from elsewhere, and what they have seen is not known."""


class WeightsParams(Section):
    """Weights that a pipeline starts from: given with it, never typed in params.yaml."""

    PLAIN: ClassVar[str | None] = "address"
    address: Annotated[str, Field(min_length=1)]
    """Of a checkpoint folder or a published file: `s3://…`, `https://…`, `mlflow-artifacts:…`, or a
    path that the task sees."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the file, or of the folder's MANIFEST.json; None: whatever lies there."""


class BatchParams(Section):
    """What a model is to look at: given with a pipeline, never typed in params.yaml."""

    model: Annotated[str, Field(min_length=1)]
    """`models:/<name>@<alias>`, or a folder that the task sees."""
    images: Annotated[str, Field(min_length=1)]
    """`s3://…`, or a folder that the task sees."""
    top: Positive = 1
    """Guesses per image."""
    batch_size: Positive = 64
    """Images per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


class SummarizeParams(Section):
    """What the report covers: derived from `datasets:`, `tasks:` and `pretrain:`, never typed."""

    datasets: Annotated[tuple[Name, ...], Field(strict=False)]
    tasks: dict[str, str]
    upstream: Name


@dataclass(frozen=True)
class Params:
    """The whole of `params.yaml`, resolved."""

    materialize: MaterializeParams
    remote: tuple[str, ...]
    audit_rules: AuditRules
    datasets: Mapping[str, DatasetParams]
    pretrain: PretrainParams
    tasks: Mapping[str, TaskParams]
    evaluate: EvaluateParams
    register: RegisterParams
    cluster: ClusterParams

    @property
    def audit(self) -> AuditParams:
        """Return the section of the stage `audit`."""
        return self.audit_of(upstream_known=True)

    def audit_of(self, *, upstream_known: bool) -> AuditParams:
        """Return it where the weights may be given."""
        upstream = self.pretrain.dataset if upstream_known else None
        return AuditParams(on_leak=self.audit_rules.on_leak, upstream=upstream)

    @property
    def summarize(self) -> SummarizeParams:
        """Return the section of the stage `summarize`."""
        return SummarizeParams(
            datasets=tuple(self.datasets),
            tasks={name: task.dataset for name, task in self.tasks.items()},
            upstream=self.pretrain.dataset,
        )

    def launcher_of(self, component: str) -> Literal["job", "trainjob"] | None:
        """Return what a component's pods are launched by; None: it runs in its task's own pod.

        By itself where it can be: its shards and its checkpoints lie in a bucket.
        """
        launcher = self.cluster.launcher
        if component not in LAUNCHED or launcher == "task":
            return None
        if launcher != "auto":
            return launcher
        if self.cluster.nodes_of(component) > 1 or self.can_be_launched:
            return "job"
        return None

    def parts_of(self, component: str, dataset: str) -> int:
        """Return in how many parts a component does a dataset on a cluster; 1: in one task.

        Pods take longer to start than a task takes for a small dataset, so only one that is known
        to be large is parted. Data that are no listing of an address lie in a task, where no other
        pod sees them.
        """
        data, examples = self.datasets[dataset], self.examples_of(dataset) or 0
        if data.source is None or data.mirror or self.cluster.launcher == "task":
            return 1
        return self.cluster.parts_of(component) if examples >= FEWEST_IN_PARTS else 1

    def examples_of(self, dataset: str) -> int | None:
        """Return how many images a dataset has, where the params say so."""
        upstream = self.pretrain.examples if dataset == self.pretrain.dataset else None
        return self.datasets[dataset].examples or upstream

    def datasets_of(self, *, upstream: bool) -> list[str]:
        """Return the datasets that a pipeline needs.

        Args:
            upstream: Whether it trains upstream; else weights are given.
        """
        needed = {task.dataset for task in self.tasks.values()}
        if upstream:
            needed |= {self.pretrain.dataset, self.pretrain.probe.dataset}
        return [name for name in self.datasets if name in needed]

    def launches(self, *, upstream: bool) -> bool:
        """Say whether any task of a pipeline on a cluster launches pods of its own."""
        names = self.datasets_of(upstream=upstream)
        parted = any(self.parts_of(one, name) > 1 for one in IN_PARTS for name in names)
        return parted or (upstream and self.launcher_of("pretrain") is not None)

    @property
    def can_be_launched(self) -> bool:
        """Say whether other pods than its task's can do upstream training."""
        read = (self.pretrain.dataset, self.pretrain.probe.dataset)
        shards = [self.datasets[name].shards_at for name in read]
        return None not in shards and self.pretrain.checkpoint_mirror is not None

    def section(self, name: str) -> Section:
        """Return one section, e.g. `pretrain` or `datasets.upstream`.

        Raises:
            ConfigError: If there is no such section or entry.
        """
        head, _, entry = name.partition(".")
        if head in ("datasets", "tasks"):
            entries: Mapping[str, Section] = getattr(self, head)
            if entry not in entries:
                hint = did_you_mean(entry, entries)
                raise ConfigError(
                    f"section {head!r} has no entry {entry!r}{hint}; it has "
                    f"{', '.join(map(repr, entries))}"
                )
            return entries[entry]
        if entry or head not in SECTION_NAMES:
            raise ConfigError(f"no section {name!r}{did_you_mean(name, SECTION_NAMES)}")
        section: Section = getattr(self, head)
        return section


SIMPLE: dict[str, type[Section]] = {
    "materialize": MaterializeParams,
    "pretrain": PretrainParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
    "audit": AuditRules,
    "cluster": ClusterParams,
}
SECTION_NAMES = (*SIMPLE, "summarize")
FAMILIES: dict[str, tuple[str, type[Section], type[Section]]] = {
    "datasets": ("data", DatasetRules, DatasetParams),
    "tasks": ("finetune", FinetuneParams, TaskParams),
}
