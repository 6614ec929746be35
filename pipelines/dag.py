"""The DAG, wired once: a plain factory over the datasets and tasks of params.yaml.

Every pipeline parameter is text: an address, or a resolved section as JSON (a KFP dictionary would
turn 20 into 20.0). Tasks carry DVC's stage names, so both engines show the same graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kfp import dsl

from bigtransfer import config
from bigtransfer.config import Params, Section, WeightsParams
from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.kubeflow.submission import Submission, current
from pipelines import containers
from pipelines.placement import (
    image_of,
    launch_of,
    launcher_image,
    let_long_tasks_be_retried,
    paced,
    parts_of,
    place,
    processes_of,
)

PROJECT = Path(__file__).parents[1]
EMBEDDED = {f"data/{name}": name for name in containers.KINDS["materialize"].writes}
"""Path of a dataset -> output of `materialize`, which makes it on the spot."""


def build(name: str, overlay: Path | None = None, *, pretrained: str | None = None) -> Any:
    """Return the KFP pipeline of params.yaml with an overlay laid over it.

    Args:
        name: Of the pipeline.
        overlay: YAML file that holds only what differs.
        pretrained: Address of the weights to start from; None: they are trained in the pipeline.

    Raises:
        ConfigError: If the params do not fit the schema.
    """
    submission = current()
    params = config.load(PROJECT / "params.yaml", overlay, submission.changes)
    if submission.here:
        params = without_launcher(params)
    tag = submission.tag or source_tag(PROJECT)
    doc = "Images to registered models: validate, shard, pretrain, finetune, …"
    return pipeline_of(name, Wiring(params, submission, tag, pretrained), doc)


def without_launcher(params: Params) -> Params:
    """Return params by which every task does its work itself: where no cluster launches pods."""
    alone = params.cluster.model_copy(update={"launcher": "task", "nodes": {}, "parts": {}})
    return replace(params, cluster=alone)


def pipeline_of(name: str, wiring: Wiring, doc: str) -> Any:
    """Return the KFP pipeline of a wiring.

    Args:
        name: Of the pipeline.
        wiring: Its tasks.
        doc: What it says of itself.
    """

    def pipeline(*arguments: Any) -> None:
        wiring.wire(dict(zip(wiring.defaults, arguments, strict=True)))

    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by kfp
        [
            inspect.Parameter(
                key, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=str
            )
            for key, default in wiring.defaults.items()
        ]
    )
    pipeline.__doc__ = doc
    made = dsl.pipeline(name=name)(pipeline)
    let_long_tasks_be_retried(made)
    return made


class Wiring:
    """The tasks of one pipeline, and what goes from one to the other."""

    def __init__(
        self, params: Params, submission: Submission, tag: str, pretrained: str | None
    ) -> None:
        self._params, self._pretrained = params, pretrained
        self._submission, self._tag = submission, tag
        needed = params.datasets_of(upstream=pretrained is None)
        self._datasets = {name: params.datasets[name] for name in needed}
        self._embedded = {
            name: EMBEDDED[d.path]
            for name, d in self._datasets.items()
            if d.source is None and d.path in EMBEDDED
        }
        self._given = {
            name: d.path
            for name, d in self._datasets.items()
            if d.source is None and d.path not in EMBEDDED
        }
        self.defaults = self._defaults()

    def _defaults(self) -> dict[str, str]:
        """Return the pipeline's parameters: addresses and sections, in one flat namespace.

        Raises:
            ConfigError: If two of them would have one name.
        """
        params = self._params
        sections: dict[str, Section] = {}
        if self._pretrained is None:
            launched = params.launcher_of("pretrain") is not None
            pool = params.cluster.pool_of("pretrain")
            sections["pretrain"] = paced(params.pretrain, pool, launched=launched)
        else:
            sections["pretrained"] = WeightsParams(address=self._pretrained)
        sections |= {"evaluate": params.evaluate, "register": params.register}
        _require_own_names("task", params.tasks)
        pool = params.cluster.pool_of("finetune")
        sections |= {_key("task", name): paced(task, pool) for name, task in params.tasks.items()}
        return self._defaults_of_data() | as_texts(sections)

    def _defaults_of_data(self) -> dict[str, str]:
        """Return the parameters of the tasks up to shards and audits."""
        _require_own_names("dataset", self._datasets)
        sections: dict[str, Section] = {}
        if self._embedded:
            sections["materialize"] = self._params.materialize
        sections["audit"] = self._params.audit_of(upstream_known=self._pretrained is None)
        sections |= {_key("dataset", name): dataset for name, dataset in self._datasets.items()}
        addresses = {_key("uri", name): path for name, path in self._given.items()}
        return addresses | as_texts(sections)

    def wire(self, arguments: dict[str, Any]) -> None:
        """Make the tasks, within a pipeline function."""
        params = self._params
        shards, audits = self.wire_data(arguments)
        if self._pretrained is None:
            upstream = self._task(
                "pretrain",
                params=arguments["pretrain"],
                shards=shards[params.pretrain.dataset],
                probe=shards[params.pretrain.probe.dataset],
            ).outputs["checkpoint"]
        else:
            brought = self._task("fetch_weights", params=arguments["pretrained"])
            brought.set_caching_options(not self._submission.fresh)
            upstream = brought.outputs["weights"]
        for name, task in params.tasks.items():
            audited = audits[name]
            checkpoints = self._task(
                f"finetune@{name}",
                params=arguments[_key("task", name)],
                pretrained=upstream,
                shards=shards[task.dataset],
                audit=audited,
            ).outputs["checkpoints"]
            evaluated = self._task(
                f"evaluate@{name}",
                params=arguments["evaluate"],
                checkpoints=checkpoints,
                shards=shards[task.dataset],
            )
            registered = self._task(
                f"register@{name}",
                params=arguments["register"],
                checkpoints=checkpoints,
                model=evaluated.outputs["model"],
                report=evaluated.outputs["report"],
                audit=audited,
            )
            registered.set_caching_options(False)  # it speaks of MLflow, not of its inputs alone

    def wire_data(self, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Make the tasks of the data; return shards by dataset, and audits by task."""
        params = self._params
        made = (
            self._task("materialize", params=arguments["materialize"]) if self._embedded else None
        )
        shards, manifests = {}, {}
        for name, dataset in self._datasets.items():
            section = arguments[_key("dataset", name)]
            if name in self._embedded:
                assert made is not None
                source = made.outputs[self._embedded[name]]
            elif dataset.source is not None:
                fetched = self._task(f"fetch@{name}", params=section)
                # The same address is taken for the same data, or all after it would run again.
                fetched.set_caching_options(not self._submission.fresh)
                source = fetched.outputs["index"]
            else:
                source = self._folder(name, arguments[_key("uri", name)])
            validated = self._in_parts("validate", name, params=section, dataset=source)
            manifests[name] = validated.outputs["manifest"]
            shards[name] = self._in_parts(
                "shard", name, params=section, dataset=source, manifest=manifests[name]
            ).outputs["shards"]
        audits = {}
        for name, task in params.tasks.items():
            own = manifests[task.dataset]
            audits[name] = self._task(
                f"audit@{name}",
                params=arguments["audit"],
                # Of given weights it is not known what they have seen, and nothing is compared.
                upstream=manifests.get(params.pretrain.dataset, own),
                dataset=own,
            ).outputs["audit"]
        return shards, audits

    def _in_parts(self, component: str, name: str, **inputs: Any) -> Any:
        """Return the task of a component; where its work is done in parts, the one that joins them.

        The parts are pods of a Job, for which another task waits: their work costs it nothing.
        """
        stage, parts = f"{component}@{name}", self._params.parts_of(component, name)
        if parts == 1:
            return self._task(stage, **inputs)
        bucket = self._params.datasets[name].shards_at
        if bucket is None:
            raise ConfigError(
                f"{component} of dataset {name!r} is done in parts, which meet in a bucket; give "
                "data.shards_at=s3://…"
            )
        cluster, told = self._params.cluster, self._submission.told
        own = f"{component}-parts@{name}"
        pods = parts_of(component, own, cluster, self._tag, parts)
        image = launcher_image(cluster, self._tag)
        made = containers.component(component, image, launch=pods.model_dump_json(), in_parts=True)(
            **inputs
        )
        made.set_display_name(own)
        place(made, component, own, cluster, told, waits=True)
        # What it left may be gone from the bucket, though KFP remembers that it was done.
        made.set_caching_options(not self._submission.fresh)
        options = ["--join", str(parts)]
        if component == "validate":
            options += ["--parts", config.parts_at(bucket)]
        return self._task(stage, options, **inputs).after(made)

    def _task(
        self, stage: str, options: Sequence[str] = (), names: Sequence[str] = (), **inputs: Any
    ) -> Any:
        name = stage.partition("@")[0]
        cluster, told = self._params.cluster, self._submission.told
        pods = launch_of(name, stage, self._params, self._tag)
        if pods is None:
            image = image_of(name, cluster, self._tag)
            # A cell of a study starts the processes of its upstream training itself.
            together = 1 if name == "study_cell" else processes_of(name, cluster)
            made = containers.component(name, image, together, options=options, names=names)
        else:
            image = launcher_image(cluster, self._tag)
            made = containers.component(name, image, launch=pods.model_dump_json())
        task = made(**inputs)
        task.set_display_name(stage)
        place(task, name, stage, cluster, told, waits=pods is not None)
        return task

    def _folder(self, name: str, path: Any) -> Any:
        """Return a dataset that lies in a folder of this machine.

        A cluster's backend may refuse an address that is not below its own root, and its launcher
        would copy an image at a time: there, sources are read by tasks of our own.
        """
        if not self._submission.here:
            raise ConfigError(
                f"dataset {name!r} lies at {self._given[name]!r}, a path of this machine, which no "
                f"node of a cluster sees; give datasets.{name}.path={config.SOURCES}/{name} "
                f"datasets.{name}.source=s3://… and {name!r} in remote=[…], or run it here: --local"
            )
        imported = dsl.importer(artifact_uri=path, artifact_class=dsl.Dataset, reimport=False)
        imported.set_display_name(f"data@{name}")
        return imported.output


def _require_own_names(kind: str, names: Iterable[str]) -> None:
    known: dict[str, str] = {}
    for name in names:
        if (other := known.setdefault(_key(kind, name), name)) != name:
            raise ConfigError(
                f"{kind}s {other!r} and {name!r} differ by '-', '_' or case alone, and Kubeflow "
                "Pipelines would take one for the other; rename one"
            )


def as_texts(sections: Mapping[str, Section]) -> dict[str, str]:
    """Return sections as the texts that tasks take."""
    return {key: section.model_dump_json() for key, section in sections.items()}


def _key(kind: str, name: str) -> str:
    return f"{kind}_{name}".replace("-", "_").lower()
