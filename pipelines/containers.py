"""The components as KFP container components: the same command lines that dvc.yaml runs.

`params` is the resolved section as JSON text. A component is named by its module string and not
imported; tests/contract compares the flags with its declaration. (kfp reads the annotations as
objects, so this file does without postponed ones.)
"""

import inspect
from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

IMAGE = "bigtransfer:0.1.0"
"""Image that holds the components; its tag is the package's version (held by a test)."""


def _line(component: str, params: str, **paths: str) -> dsl.ContainerSpec:
    flags = [text for name, path in paths.items() for text in (f"--{name}", path)]
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["python", "-m", f"components.{component}"],
        args=["--params-json", params, *flags],
    )


@dsl.container_component
def validate(
    params: str, dataset: Input[Dataset], manifest: Output[Dataset], validation: Output[Dataset]
) -> dsl.ContainerSpec:
    """Decode every image, hold the rules, write the dataset manifest."""
    return _line(
        "validate",
        params,
        dataset=dataset.path,
        manifest=manifest.path,
        validation=validation.path,
    )


@dsl.container_component
def shard(
    params: str, dataset: Input[Dataset], manifest: Input[Dataset], shards: Output[Dataset]
) -> dsl.ContainerSpec:
    """Pack the dataset into tar shards with a Parquet index."""
    return _line("shard", params, dataset=dataset.path, manifest=manifest.path, shards=shards.path)


def audit(datasets: int) -> Any:
    """Return the component that compares so many datasets; it takes one manifest of each."""
    manifests = [f"datasets_{number}" for number in range(datasets)]

    def audit(*given: Any) -> dsl.ContainerSpec:
        """Compare the datasets with each other: no task is tested on what upstream has seen."""
        params, *paths, output = given
        line = _line("audit", params, datasets="", audit=output.path)
        at = line.args.index("--datasets") + 1
        line.args[at : at + 1] = [manifest.path for manifest in paths]
        return line

    # kfp reads the signature and passes everything by position: one named input per dataset.
    kinds = {"params": str, **dict.fromkeys(manifests, Input[Dataset]), "audit": Output[Dataset]}
    audit.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for name, kind in kinds.items()
        ],
        return_annotation=dsl.ContainerSpec,
    )
    return dsl.container_component(audit)


@dsl.container_component
def pretrain(
    params: str,
    shards: Input[Dataset],
    probe: Input[Dataset],
    checkpoint: Output[Model],
    metrics: Output[Metrics],
    history: Output[Dataset],
) -> dsl.ContainerSpec:
    """Train the upstream network."""
    return _line(
        "pretrain",
        params,
        shards=shards.path,
        probe=probe.path,
        checkpoint=checkpoint.path,
        metrics=metrics.path,
        history=history.path,
    )


@dsl.container_component
def finetune(
    params: str,
    pretrained: Input[Model],
    shards: Input[Dataset],
    audit: Input[Dataset],
    checkpoints: Output[Model],
) -> dsl.ContainerSpec:
    """Transfer to a task by the BiT-HyperRule."""
    return _line(
        "finetune",
        params,
        pretrained=pretrained.path,
        shards=shards.path,
        audit=audit.path,
        checkpoints=checkpoints.path,
    )


@dsl.container_component
def evaluate(
    params: str,
    checkpoints: Input[Model],
    shards: Input[Dataset],
    report: Output[Dataset],
    metrics: Output[Metrics],
    cells: Output[Dataset],
    predictions: Output[Dataset],
) -> dsl.ContainerSpec:
    """Score every fine-tuned network."""
    return _line(
        "evaluate",
        params,
        checkpoints=checkpoints.path,
        shards=shards.path,
        report=report.path,
        metrics=metrics.path,
        cells=cells.path,
        predictions=predictions.path,
    )


@dsl.container_component
def register(
    params: str, checkpoints: Input[Model], report: Input[Dataset], registration: Output[Dataset]
) -> dsl.ContainerSpec:
    """Register the task's model in MLflow."""
    return _line(
        "register",
        params,
        checkpoints=checkpoints.path,
        report=report.path,
        registration=registration.path,
    )
