"""The DAG, wired once: a plain factory over the datasets and tasks of params.yaml.

Every pipeline parameter is text: a dataset's URI, or a resolved section as JSON (a KFP dictionary
would turn 20 into 20.0). Tasks carry DVC's stage names, so both engines show the same graph.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from kfp import dsl

from bigtransfer import config
from bigtransfer.config import Params, Section
from pipelines import containers

PROJECT = Path(__file__).parents[1]


def build(name: str, overlay: Path | None = None) -> Any:
    """Return the KFP pipeline of params.yaml with an overlay laid over it.

    Args:
        name: Of the pipeline.
        overlay: YAML file that holds only what differs.

    Raises:
        ConfigError: If the params do not fit the schema.
    """
    params = config.load(PROJECT / "params.yaml", overlay)
    defaults = _defaults(params)

    def pipeline(*arguments: Any) -> None:
        _wire(params, dict(zip(defaults, arguments, strict=True)))

    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by kfp
        [
            inspect.Parameter(
                key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=str
            )
            for key, default in defaults.items()
        ]
    )
    pipeline.__doc__ = "Images to registered models: validate, shard, pretrain, finetune, …"
    return dsl.pipeline(name=name)(pipeline)


def _defaults(params: Params) -> dict[str, str]:
    """Return the pipeline's parameters: dataset URIs and sections, in one flat namespace."""
    sections: dict[str, Section] = {
        "pretrain": params.pretrain,
        "evaluate": params.evaluate,
        "register": params.register,
        "audit": params.audit,
    }
    sections |= {_key("dataset", name): dataset for name, dataset in params.datasets.items()}
    sections |= {_key("task", name): task for name, task in params.tasks.items()}
    uris = {_key("uri", name): dataset.path for name, dataset in params.datasets.items()}
    return {**uris, **{key: section.model_dump_json() for key, section in sections.items()}}


def _key(kind: str, name: str) -> str:
    return f"{kind}_{name}".replace("-", "_").lower()


def _wire(params: Params, arguments: dict[str, Any]) -> None:
    shards, manifests = {}, []
    for name in params.datasets:
        section = arguments[_key("dataset", name)]
        source = dsl.importer(
            artifact_uri=arguments[_key("uri", name)], artifact_class=dsl.Dataset, reimport=False
        )
        source.set_display_name(f"data@{name}")
        manifest = _task(
            f"validate@{name}", containers.validate, params=section, dataset=source.output
        )
        manifests.append(manifest.outputs["manifest"])
        shards[name] = _task(
            f"shard@{name}",
            containers.shard,
            params=section,
            dataset=source.output,
            manifest=manifest.outputs["manifest"],
        ).output
    audited = _task(
        "audit",
        containers.audit(len(manifests)),
        params=arguments["audit"],
        **{f"datasets_{number}": found for number, found in enumerate(manifests)},
    ).output
    upstream = _task(
        "pretrain",
        containers.pretrain,
        params=arguments["pretrain"],
        shards=shards[params.pretrain.dataset],
        probe=shards[params.pretrain.probe.dataset],
    ).outputs["checkpoint"]
    for name, task in params.tasks.items():
        checkpoints = _task(
            f"finetune@{name}",
            containers.finetune,
            params=arguments[_key("task", name)],
            pretrained=upstream,
            shards=shards[task.dataset],
            audit=audited,
        ).output
        report = _task(
            f"evaluate@{name}",
            containers.evaluate,
            params=arguments["evaluate"],
            checkpoints=checkpoints,
            shards=shards[task.dataset],
        ).outputs["report"]
        _task(
            f"register@{name}",
            containers.register,
            params=arguments["register"],
            checkpoints=checkpoints,
            report=report,
        )


def _task(stage: str, component: Any, **inputs: Any) -> Any:
    task = component(**inputs)
    task.set_display_name(stage)
    return task
