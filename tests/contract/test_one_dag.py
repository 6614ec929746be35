"""dvc.yaml and the KFP pipeline are one DAG: same stages, same component, same producers."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import PROJECT

import bigtransfer
from bigtransfer import config
from bigtransfer.config import read_yaml
from contract.test_command_lines import declaration, stages
from pipelines import containers, quickstart

LOCAL_ONLY = {
    "materialize",  # writes the embedded data; on a cluster the data are the user's
    "fetch",  # DVC depends on local paths only; on a cluster the importer takes the address
    "summarize",  # one page over all tasks; on a cluster each task's report stands in the UI
}
Edges = dict[str, dict[str, str]]


def dvc_graph() -> Edges:
    """Stage -> input flag -> `producing stage.output flag`, or `data@name` for a dataset folder."""
    writers: dict[str, str] = {}
    lines = {name: shlex.split(stage.cmd) for name, stage in stages().items()}
    flags = {name: flag_values(line) for name, line in lines.items()}
    for name, values in flags.items():
        for flag in declaration(name.partition("@")[0]).writes:
            writers[values[flag]] = f"{name}.{flag}"
    params = config.load(PROJECT / "params.yaml")
    sources = {dataset.path: f"data@{name}" for name, dataset in params.datasets.items()}
    graph: Edges = {}
    for name, values in flags.items():
        if name not in LOCAL_ONLY:
            reads = declaration(name.partition("@")[0]).reads
            graph[name] = {
                f: sources.get(values[f]) or writer_of(values[f], writers) for f in reads
            }
    return graph


def writer_of(path: str, writers: dict[str, str]) -> str:
    """Return who writes a path; for a folder over all datasets, who writes their manifests."""
    if path in writers:
        return writers[path]
    below = [w for p, w in writers.items() if p.startswith(f"{path}/") and w.endswith(".manifest")]
    return " ".join(sorted(below))


def flag_values(line: list[str]) -> dict[str, str]:
    return {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(line, line[1:], strict=False)
        if flag.startswith("--")
    }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from kfp import compiler

    path = tmp_path_factory.mktemp("kfp") / "pipeline.yaml"
    compiler.Compiler().compile(quickstart.quickstart, str(path))
    return read_yaml(path)


def kfp_graph(compiled: dict[str, Any]) -> Edges:
    tasks = compiled["root"]["dag"]["tasks"]
    shown = {key: task["taskInfo"]["name"] for key, task in tasks.items()}
    graph: Edges = {}
    for key, task in tasks.items():
        if shown[key].startswith("data@"):
            continue
        graph[shown[key]] = {}
        for flag, source in task["inputs"].get("artifacts", {}).items():
            producer = source["taskOutputArtifact"]
            name = shown[producer["producerTask"]]
            output = "" if name.startswith("data@") else f".{producer['outputArtifactKey']}"
            flag = re.sub(r"_\d+$", "", flag)  # one input per dataset, one flag for all
            known = graph[shown[key]].get(flag, "").split()
            graph[shown[key]][flag] = " ".join(sorted([*known, name + output]))
    return graph


def test_same_stages_and_same_producer_for_every_input(compiled: dict[str, Any]) -> None:
    assert kfp_graph(compiled) == dvc_graph()


def test_container_runs_the_declared_line(compiled: dict[str, Any]) -> None:
    executors = compiled["deploymentSpec"]["executors"]
    seen = set()
    for key, executor in executors.items():
        if "container" not in executor:
            continue  # the importer
        container = executor["container"]
        component = container["command"][-1].removeprefix("components.")
        seen.add(component)
        declared = declaration(component)
        flags = [text for text in container["args"] if text.startswith("--")]
        assert flags[0] == "--params-json", key
        assert flags[1:] == [f"--{f}" for f in (*declared.reads, *declared.writes)], key
        assert container["image"] == containers.IMAGE == f"bigtransfer:{bigtransfer.__version__}"
    assert seen == {name.partition("@")[0] for name in stages()} - LOCAL_ONLY


def test_pipeline_defaults_are_the_resolved_sections(compiled: dict[str, Any]) -> None:
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    params = config.load(PROJECT / "params.yaml")
    given = inputs["task_digits"]["defaultValue"]
    assert config.from_json(given, config.TaskParams) == params.tasks["digits"]
    assert inputs["uri_upstream"]["defaultValue"] == params.datasets["upstream"].path


def test_compiled_pipeline_is_the_golden_one_beside_it(compiled: dict[str, Any]) -> None:
    golden = read_yaml(Path(quickstart.__file__).with_suffix(".yaml"))
    hint = "the pipeline changed; look at the difference, then `python -m pipelines.quickstart`"
    for spec in (golden, compiled):
        spec.pop("sdkVersion")
    assert compiled == golden, hint
