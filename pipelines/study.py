"""A study as a pipeline: its data once, a task for each cell, then its table.

A cell is one task, and not a loop of several: the UI shows each under what sets it apart, and one
that fails takes no other along (`components.study_cell`). DVC's cells of the same study have the
same names and params: both come from `bigtransfer.study.cells`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.config import (
    Params,
    StudyCellParams,
    StudyCheckParams,
    StudyTableParams,
)
from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.kubeflow.preflight import training_faults
from bigtransfer.kubeflow.submission import Submission, current
from bigtransfer.study.cells import StudyCell, cells_of
from bigtransfer.study.study_file import Study, read_study
from pipelines.containers import input_of
from pipelines.dag import PROJECT, Wiring, pipeline_of, without_launcher
from pipelines.placement import paced, processes_of

STUDIES = PROJECT / "studies"
_STAGES = ("pretrain", "finetune", "evaluate")
"""That a cell runs in its task."""


def build_study(
    name: str, overlay: Path | None = None, *, file: Path, study_overlay: Path | None = None
) -> Any:
    """Return the KFP pipeline of a study.

    Args:
        name: Of the pipeline.
        overlay: YAML file laid over params.yaml, e.g. where a cluster finds the data.
        file: The study.
        study_overlay: YAML laid over that: another size of it.

    Raises:
        ConfigError: If the study or the params are wrong, or a cell would need several pods.
    """
    submission = current()
    raw = config.laid_over(
        config.read_yaml(PROJECT / "params.yaml"),
        config.read_yaml(overlay) if overlay else {},
        submission.changes,
    )
    study = read_study(file, study_overlay)
    cells = cells_of(study, raw)
    tag = submission.tag or source_tag(PROJECT)
    return pipeline_of(name, _StudyWiring(study, cells, raw, submission, tag), study.about)


class _StudyWiring(Wiring):
    """The tasks of a study."""

    def __init__(
        self,
        study: Study,
        cells: list[StudyCell],
        raw: dict[str, Any],
        submission: Submission,
        tag: str,
    ) -> None:
        self._study, self._cells, self._raw = study, cells, raw
        params = _params_of(cells)
        if submission.here:
            params = without_launcher(params)
        super().__init__(params, submission, tag, None)
        if self._params.cluster.nodes_of("pretrain") > 1:
            raise ConfigError(
                f"{study.name}: a cell of a study is one pod, and cluster.nodes.pretrain is "
                f"{self._params.cluster.nodes_of('pretrain')}; say cluster.nodes.pretrain=1"
            )
        if not submission.here:
            _refuse_impossible(cells)

    def _defaults(self) -> dict[str, str]:
        return self._defaults_of_data()

    def wire(self, arguments: dict[str, Any]) -> None:
        """Make the tasks, within a pipeline function."""
        shards, audits = self.wire_data(arguments)
        tasks = self._cells[0].tasks
        outcomes = {}
        before: dict[str, Any] = {}
        for cell in self._cells:
            recipe, inputs = cell.params.pretrain, {}
            for number, name in enumerate(tasks):
                dataset = cell.params.tasks[name].dataset
                inputs[input_of("task_shards", number)] = shards[dataset]
                inputs[input_of("audit", number)] = audits[name]
            made = self._task(
                f"study_cell@{cell.name}",
                names=tasks,
                params=self._section(cell).model_dump_json(),
                shards=shards[recipe.dataset],
                probe=shards[recipe.probe.dataset],
                **inputs,
            )
            # A failure is an outcome, and comes from the cache like any other.
            made.set_caching_options(not self._submission.fresh)
            # Two that train the same network upstream would write the same checkpoints.
            if cell.upstream in before:
                made.after(before[cell.upstream])
            before[cell.upstream] = made
            outcomes[cell.name] = made.outputs["outcome"]
        read = {input_of("cell", n): outcome for n, outcome in enumerate(outcomes.values())}
        study = self._study.model_dump(mode="json")
        table = StudyTableParams(study=study, params=self._raw)
        last = self._task("study_table", names=[*outcomes], params=table.model_dump_json(), **read)
        check = StudyCheckParams(study=self._study.name)
        made = self._task("study_check", names=[*outcomes], params=check.model_dump_json(), **read)
        made.after(last)  # it may fail, and then nothing is begun any more

    def _section(self, cell: StudyCell) -> StudyCellParams:
        cluster = self._params.cluster
        pool = cluster.pool_of("study_cell")
        return StudyCellParams(
            name=cell.name,
            title=cell.title,
            labels=dict(cell.labels),
            seed=cell.seed,
            processes=processes_of("study_cell", cluster),
            pretrain=paced(cell.params.pretrain, pool),
            tasks=tuple(paced(cell.params.tasks[name], pool) for name in cell.tasks),
            evaluate=cell.params.evaluate,
        )


def _refuse_impossible(cells: list[StudyCell]) -> None:
    """Refuse cells that the pool of cells cannot run, as their stages are refused as tasks.

    Raises:
        ConfigError: Names each fault and the way on.
    """
    cluster = cells[0].params.cluster
    pool = cluster.placement.get("study_cell", cluster.placement["pretrain"])
    placement = {**cluster.placement, **dict.fromkeys(_STAGES, pool)}
    alone = {"launcher": "task", "nodes": {}, "parts": {}, "placement": placement}
    faults: list[str] = []
    for cell in cells:
        params = replace(cell.params, cluster=cluster.model_copy(update=alone))
        tasks = {name: params.tasks[name] for name in cell.tasks}
        faults += training_faults(replace(params, tasks=tasks), {*_STAGES})
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _params_of(cells: list[StudyCell]) -> Params:
    """Return the params of the tasks that all cells share: the datasets that they need, no other.

    Raises:
        ConfigError: If cells train on datasets of their own: then not all of them are known here.
    """
    params = cells[0].params
    own = {cell.params.pretrain.dataset for cell in cells}
    own |= {cell.params.pretrain.probe.dataset for cell in cells}
    upstream = {params.pretrain.dataset, params.pretrain.probe.dataset}
    if own != upstream:
        raise ConfigError(
            f"a study on a cluster has one upstream dataset, this one has {', '.join(sorted(own))}"
        )
    tasks = {name: params.tasks[name] for name in cells[0].tasks}
    return replace(params, tasks=tasks)
