"""The components as KFP container components: the same command lines that dvc.yaml runs.

`params` is the resolved section as JSON text. A component is named by its module string and not
imported; tests/contract compares the flags with its declaration. One flag is KFP's alone:
`--executor-input`, by which a task is told where to say what its outputs are. (kfp reads the
annotations as objects, so this file does without postponed ones.)
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from bigtransfer.kubeflow.job import out


class Kind(NamedTuple):
    """A component as KFP sees it."""

    summary: str
    target: str
    """Of the Dockerfile: the image that holds what it needs."""
    reads: Mapping[str, Any]
    writes: Mapping[str, Any]
    each: Mapping[str, Any] = {}
    """What it reads several times, each under a name."""


KINDS = {
    "materialize": Kind(
        "Write the embedded datasets.", "demo",
        {}, {"upstream": Dataset, "digits": Dataset, "alphabets": Dataset},
    ),
    "fetch": Kind(
        "List what lies at a remote address, with digests.", "fetch", {}, {"index": Dataset}
    ),
    "fetch_weights": Kind(
        "Bring given weights from an address, and check them.", "data", {}, {"weights": Model}
    ),
    "validate": Kind(
        "Decode every image, hold the rules, write the dataset manifest.", "data",
        {"dataset": Dataset}, {"manifest": Dataset, "validation": Dataset},
    ),
    "shard": Kind(
        "Pack the dataset into tar shards with a Parquet index.", "data",
        {"dataset": Dataset, "manifest": Dataset}, {"shards": Dataset},
    ),
    "audit": Kind(
        "Compare a task's dataset with upstream: it is not tested on what that has seen.", "data",
        {"upstream": Dataset, "dataset": Dataset}, {"audit": Dataset},
    ),
    "pretrain": Kind(
        "Train the upstream network.", "train",
        {"shards": Dataset, "probe": Dataset},
        {"checkpoint": Model, "metrics": Metrics, "history": Dataset},
    ),
    "finetune": Kind(
        "Transfer to a task by the BiT-HyperRule.", "train",
        {"pretrained": Model, "shards": Dataset, "audit": Dataset}, {"checkpoints": Model},
    ),
    "evaluate": Kind(
        "Score every fine-tuned network; write the model to register.", "train",
        {"checkpoints": Model, "shards": Dataset},
        {"report": Dataset, "metrics": Metrics, "cells": Dataset, "predictions": Dataset,
         "page": HTML, "confusion": ClassificationMetrics, "model": Model},
    ),
    "register": Kind(
        "Register the task's model in MLflow.", "registry",
        {"checkpoints": Model, "model": Model, "report": Dataset, "audit": Dataset},
        {"registration": Dataset},
    ),
    "predict": Kind(
        "Say what a registered model sees in images, a row per image.", "train",
        {}, {"answers": Dataset},
    ),
    "study_cell": Kind(
        "Train a cell of a study upstream, and transfer it to every task.", "train",
        {"shards": Dataset, "probe": Dataset}, {"outcome": Dataset},
        {"task_shards": Dataset, "audit": Dataset},
    ),
    "study_table": Kind(
        "Put what the cells of a study have found side by side.", "train",
        {}, {"tables": Dataset, "page": HTML}, {"cell": Dataset},
    ),
    "study_check": Kind(
        "Refuse a study of which a cell failed.", "registry",
        {}, {"verdict": Metrics}, {"cell": Dataset},
    ),
}  # fmt: skip


def input_of(flag: str, number: int) -> str:
    """Return the name of an input that a component reads several times."""
    return f"{flag}_{number}"


def component(
    name: str,
    image: str,
    processes: int = 1,
    launch: str | None = None,
    *,
    options: Sequence[str] = (),
    in_parts: bool = False,
    names: Sequence[str] = (),
) -> Any:
    """Return a component for a pipeline.

    Args:
        name: Of the component.
        image: That holds it.
        processes: On its node, by `torchrun`.
        launch: The pods on which `components.launch` runs it, as JSON; None: its task's own.
        options: Further words of its line.
        in_parts: Whether those pods do it in parts: then the task itself writes nothing, and
            another one joins them.
        names: Of what it reads several times; an input of each is `<flag>_<number>`.
    """
    kind = KINDS[name]
    launcher: list[str] = []
    if launch is not None:
        launcher = ["-m", "components.launch", "--pods", launch, "--", "python"]
    elif processes > 1:
        launcher = [
            "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        ]  # fmt: skip
    annotations: dict[str, Any] = {"params": str}
    annotations |= {flag: Input[artifact] for flag, artifact in kind.reads.items()}
    each = {(flag, name): input_of(flag, n) for flag in kind.each for n, name in enumerate(names)}
    annotations |= {key: Input[kind.each[flag]] for (flag, _), key in each.items()}
    if not in_parts:
        annotations |= {flag: Output[artifact] for flag, artifact in kind.writes.items()}

    def line(*given: Any) -> dsl.ContainerSpec:
        values = dict(zip(annotations, given, strict=True))
        arguments: list[Any] = ["--params-json", values["params"]]
        for flag in (*kind.reads, *kind.writes):
            arguments += [f"--{flag}", values[flag].path if flag in values else out(flag)]
        for (flag, own), key in each.items():
            arguments += [f"--{flag.replace('_', '-')}", own, values[key].path]
        arguments += [*options, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER]
        return dsl.ContainerSpec(
            image=image, command=["python", *launcher, "-m", f"components.{name}"], args=arguments
        )

    # kfp reads name, docstring and signature, and passes everything by position.
    line.__name__ = f"{name}_parts" if in_parts else name
    line.__doc__ = kind.summary
    line.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
            for key, annotation in annotations.items()
        ],
        return_annotation=dsl.ContainerSpec,
    )
    return dsl.container_component(line)
