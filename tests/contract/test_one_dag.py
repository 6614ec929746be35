"""dvc.yaml and each KFP pipeline are one DAG: same stages, components, flags, producers."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from bigtransfer import config
from bigtransfer.config import read_yaml
from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.study.cells import cells_of
from bigtransfer.study.study_file import read_study
from fixtures.project import PROJECT, environment
from fixtures.stages import declaration, stages

pytestmark = pytest.mark.xdist_group("one-dag")

PIPELINES = ("quickstart", "transfer", "bit_s", "bit_m", "bit_l", "vtab")
OF_ONE_TASK = ("predict",)
"""What DVC has no stage for: on one machine it is a command."""
STUDIES = {
    "norms": ("norms", None), "scale": ("scale", None), "large_data": ("large-data", None),
    "norms_cpu": ("norms", "cpu/norms"),
}  # fmt: skip
"""Pipeline -> its study, and what is laid over that."""
GIVEN_WEIGHTS = ("transfer", "vtab")
LOCAL_ONLY = {
    "summarize",  # one page over all tasks; on a cluster each task's report stands in the UI
}
KFP_ONLY = ["--executor-input"]
Edges = dict[str, dict[str, str]]


def overlay_of(name: str) -> Path | None:
    path = PROJECT / "pipelines" / f"{name}.yaml"
    return path if path.is_file() else None


def dvc_project(name: str, folder: Path) -> Path:
    """Return a project whose params.yaml is what a pipeline is built of."""
    overlay = overlay_of(name)
    if overlay is None:
        return PROJECT
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    shutil.copy(PROJECT / "dvc.yaml", folder)
    raw = config.laid_over(read_yaml(PROJECT / "params.yaml"), read_yaml(overlay))
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(raw, file)
    return folder


def dvc_graph(project: Path) -> Edges:
    """Stage -> input flag -> `producing stage.output flag`, or `data@name` for a dataset folder."""
    writers: dict[str, str] = {}
    lines = {name: shlex.split(stage.cmd) for name, stage in stages(project).items()}
    flags = {name: flag_values(line) for name, line in lines.items()}
    for name, values in flags.items():
        for flag in declaration(name.partition("@")[0]).writes:
            writers[values[flag]] = f"{name}.{flag}"
    graph: Edges = {}
    for name, values in flags.items():
        if name not in LOCAL_ONLY:
            reads = declaration(name.partition("@")[0]).reads
            graph[name] = {f: writer_of(values[f], writers) for f in reads}
    return graph


def writer_of(path: str, writers: dict[str, str]) -> str:
    """Return who writes a path; for a folder over all datasets, who writes their manifests."""
    if path in writers:
        return writers[path]
    below = [w for p, w in writers.items() if p.startswith(f"{path}/") and w.endswith(".manifest")]
    return " ".join(sorted(below)) or f"data@{Path(path).name}"


def flag_values(line: list[str]) -> dict[str, str]:
    return {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(line, line[1:], strict=False)
        if flag.startswith("--")
    }


def as_in(pipeline: str, graph: Edges) -> Edges:
    """Return DVC's graph without what a pipeline does not need: unused data, given weights."""
    if pipeline in GIVEN_WEIGHTS:
        del graph["pretrain"]
        for inputs in graph.values():
            for flag, producer in inputs.items():
                if producer == "pretrain.checkpoint":
                    inputs[flag] = "fetch_weights.weights"
        graph["fetch_weights"] = {}  # DVC takes a path
    used = {producer for inputs in graph.values() for producer in inputs.values()}
    if not any(producer.startswith("materialize.") for producer in used):
        graph.pop("materialize", None)
    return graph


def compiled_pipeline(name: str, folder: Path) -> dict[str, Any]:
    from kfp import compiler

    module = importlib.import_module(f"pipelines.{name}")
    path = folder / "pipeline.yaml"
    compiler.Compiler().compile(getattr(module, name), str(path))
    return read_package(path)


def read_package(path: Path) -> dict[str, Any]:
    documents = list(yaml.load_all(path.read_text(), yaml.CSafeLoader))
    return {**documents[0], "platform": documents[1] if len(documents) > 1 else {}}


@pytest.fixture(scope="module", params=PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def compiled(name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compiled_pipeline(name, tmp_path_factory.mktemp("kfp"))


def kfp_graph(compiled: dict[str, Any]) -> Edges:
    tasks = compiled["root"]["dag"]["tasks"]
    shown = {key: task["taskInfo"]["name"] for key, task in tasks.items()}
    graph: Edges = {}
    for key, task in tasks.items():
        if is_import(shown[key]):
            continue
        graph[shown[key]] = {}
        for flag, source in task.get("inputs", {}).get("artifacts", {}).items():
            producer = source["taskOutputArtifact"]
            name = shown[producer["producerTask"]]
            output = "" if is_import(name) else f".{producer['outputArtifactKey']}"
            flag = re.sub(r"_\d+$", "", flag)  # one input per dataset, one flag for all
            known = graph[shown[key]].get(flag, "").split()
            graph[shown[key]][flag] = " ".join(sorted([*known, name + output]))
    return graph


def is_import(stage: str) -> bool:
    return stage.startswith("data@")


def test_same_stages_and_same_producer_for_every_input(
    name: str, compiled: dict[str, Any], tmp_path: Path
) -> None:
    assert kfp_graph(compiled) == as_in(name, dvc_graph(dvc_project(name, tmp_path)))


def test_a_miswired_edge_is_seen(tmp_path: Path) -> None:
    graph = dvc_graph(PROJECT)
    wrong = {**graph, "evaluate@digits": {**graph["evaluate@digits"]}}
    wrong["evaluate@digits"]["shards"] = "shard@alphabets.shards"
    assert kfp_graph(compiled_pipeline("quickstart", tmp_path)) != wrong


def test_container_runs_the_declared_line(name: str, compiled: dict[str, Any]) -> None:
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
        expected = [f"--{f}" for f in (*declared.reads, *declared.writes)]
        assert flags[1:] == expected + KFP_ONLY, key
        assert container["args"][-1] == "{{$}}"
        assert container["image"].endswith(f":{source_tag(PROJECT)}")
    needed = {stage.partition("@")[0] for stage in kfp_graph(compiled)}
    assert seen == needed


def test_pipeline_defaults_are_the_resolved_sections(name: str, compiled: dict[str, Any]) -> None:
    inputs = compiled["root"]["inputDefinitions"]["parameters"]
    params = config.load(PROJECT / "params.yaml", overlay_of(name))
    for task, section in params.tasks.items():
        given = inputs[f"task_{task}"]["defaultValue"]
        paced = {"checkpoint_seconds": 300, "stop_seconds": 0}  # what its pool asks for
        assert config.from_json(given, config.TaskParams) == section.model_copy(update=paced)
    assert ("pretrain" in inputs) == (name not in GIVEN_WEIGHTS)


def test_compiled_pipeline_is_the_golden_one_beside_it(name: str, compiled: dict[str, Any]) -> None:
    path = PROJECT / "pipelines" / f"{name}.kfp.yaml"
    golden = read_package(path)
    assert without_images(golden) == without_images(compiled), (
        f"compile it anew: python -m pipelines.{name}"
    )


def without_images(package: dict[str, Any]) -> dict[str, Any]:
    """Return a package without what changes with every line of the sources."""
    copy = json.loads(json.dumps(package))
    copy.pop("sdkVersion", None)
    for executor in copy["deploymentSpec"]["executors"].values():
        container = executor["container"]
        own = {"name": "BIGTRANSFER_IMAGE", "value": container.pop("image")}
        assert own in container["env"]
        container["env"].remove(own)
        of_image = re.compile(rf":(?:{source_tag(PROJECT)}|[0-9a-f]{{12}})\b")
        container["command"] = [of_image.sub(":TAG", text) for text in container["command"]]
    return copy


def test_every_pipeline_is_compared() -> None:
    found = {path.name.removesuffix(".kfp.yaml") for path in PROJECT.glob("pipelines/*.kfp.yaml")}
    assert found == {*PIPELINES, *OF_ONE_TASK, *STUDIES}


def test_the_pipeline_of_one_task_is_its_component(tmp_path: Path) -> None:
    package = compiled_pipeline("predict", tmp_path)
    golden = read_package(PROJECT / "pipelines" / "predict.kfp.yaml")
    assert without_images(golden) == without_images(package), "python -m pipelines.predict"
    (executor,) = package["deploymentSpec"]["executors"].values()
    flags = [text for text in executor["container"]["args"] if text.startswith("--")]
    assert flags == ["--params-json", *(f"--{f}" for f in declaration("predict").writes), *KFP_ONLY]
    (task,) = package["root"]["dag"]["tasks"].values()
    assert task["cachingOptions"] == {}, "an alias moves"


@pytest.fixture(scope="module", params=STUDIES)
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A compiled study, and its cells as the command finds them."""
    name = request.param
    file, overlay = STUDIES[name]
    folder = PROJECT / "studies"
    read = read_study(folder / f"{file}.yaml", overlay and folder / f"{overlay}.yaml")
    own = overlay_of(name)
    raw = config.laid_over(read_yaml(PROJECT / "params.yaml"), read_yaml(own) if own else {})
    return name, compiled_pipeline(name, tmp_path_factory.mktemp("kfp")), cells_of(read, raw)


def test_a_study_has_the_cells_of_its_plan_and_all_go_into_its_table(study: Any) -> None:
    name, package, cells = study
    golden = read_package(PROJECT / "pipelines" / f"{name}.kfp.yaml")
    assert without_images(golden) == without_images(package), f"python -m pipelines.{name}"
    tasks = package["root"]["dag"]["tasks"]
    shown = {key: task["taskInfo"]["name"] for key, task in tasks.items()}
    made = {}
    for key, task in tasks.items():
        if not shown[key].startswith("study_cell@"):
            continue
        text = task["inputs"]["parameters"]["params"]["runtimeValue"]["constant"]
        section = config.from_json(text, config.StudyCellParams)
        made[shown[key].partition("@")[2]] = section
        used = task["inputs"]["artifacts"]
        read = {
            flag: shown[one["taskOutputArtifact"]["producerTask"]] for flag, one in used.items()
        }
        wanted = {"shards": f"shard@{section.pretrain.dataset}",
                  "probe": f"shard@{section.pretrain.probe.dataset}"}  # fmt: skip
        for number, own in enumerate(section.tasks):
            wanted |= {f"task_shards_{number}": f"shard@{own.dataset}",
                       f"audit_{number}": f"audit@{own.name}"}  # fmt: skip
        assert read == wanted, key
    assert [*made] and sorted(made) == sorted(cell.name for cell in cells)
    for cell in cells:
        section = made[cell.name]
        paced = {"checkpoint_seconds": 300, "stop_seconds": 0}  # what its pool asks for
        assert section.pretrain == cell.params.pretrain.model_copy(update=paced)
        assert [task.name for task in section.tasks] == list(cell.tasks)
        assert section.name == cell.name and section.labels == cell.labels
    assert "study-table" in tasks["study-check"]["dependentTasks"], "it may fail"
    for last in ("study-table", "study-check"):
        read = tasks[last]["inputs"]["artifacts"].values()
        keys = {one["taskOutputArtifact"]["producerTask"] for one in read}
        assert sorted(shown[key] for key in keys) == sorted(f"study_cell@{name}" for name in made)


def test_cells_of_one_upstream_training_run_one_after_the_other(tmp_path: Path) -> None:
    package = compiled_pipeline("scale", tmp_path)
    keys = [key for key in package["root"]["dag"]["tasks"] if key.startswith("study-cell")]
    after = [package["root"]["dag"]["tasks"][key].get("dependentTasks", ()) for key in keys]
    assert not any(set(one) & set(keys) for one in after), "all of them train another network"
    from pipelines.study import build_study

    study = tmp_path / "one.yaml"
    study.write_text(json.dumps({
        "about": "x", "axes": {"finetune.weight_decay": [0.0, 0.1]},
        "plot": {"x": "finetune.weight_decay"}, "downstream": {"tasks": ["digits"]},
    }))  # fmt: skip
    made = build_study("one", file=study).pipeline_spec.root.dag.tasks
    assert "study-cell" in made["study-cell-2"].dependent_tasks
    overlay = tmp_path / "nodes.yaml"
    overlay.write_text("cluster: {nodes: {pretrain: 2}}\n")
    with pytest.raises(ConfigError, match="a cell of a study is one pod"):
        build_study("one", overlay, file=study)
    overlay.write_text("pretrain: {device: cuda}\n")
    with pytest.raises(ConfigError, match="pretrain.device is 'cuda', but cluster.placement"):
        build_study("one", overlay, file=study)
    overlay.write_text(
        "finetune: {checkpoint_mirror: null}\ncluster: {pools: {cpu: {spot: true}}}\n"
    )
    with pytest.raises(ConfigError, match="placed on spot nodes, and pretrain.checkpoint_mirror"):
        build_study("one", overlay, file=study)


def test_vtab_on_a_cluster_has_the_catalogues_exceptions() -> None:
    catalogue = read_yaml(PROJECT / "bigtransfer" / "vtab.yaml")
    params = config.load(PROJECT / "params.yaml", overlay_of("vtab"))
    assert list(params.tasks) == list(catalogue["tasks"])
    for name, entry in catalogue["tasks"].items():
        task = params.tasks[name].model_dump()
        shared = {k: v for k, v in catalogue["finetune"].items()}
        for key, value in {**shared, **entry.get("finetune", {})}.items():
            assert task[key] == (tuple(value) if isinstance(value, list) else value), (name, key)


def compile_by_hand(*words: str, code: int = 0) -> str:
    """Call `python -m pipelines.…` as people do; return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=PROJECT, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_a_package_is_of_given_images_and_overlay(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("finetune: {total_steps: 7}\n")
    package = tmp_path / "out.yaml"
    words = ["--overlay", str(overlay), "--image", "registry.example/me/bt", "--to", str(package)]
    assert str(package) in compile_by_hand("pipelines.quickstart", *words)
    spec = next(iter(yaml.load_all(package.read_text(), yaml.CSafeLoader)))
    images = {e["container"]["image"] for e in spec["deploymentSpec"]["executors"].values()}
    assert f"registry.example/me/bt-train-cpu:{source_tag(PROJECT)}" in images
    task = spec["root"]["inputDefinitions"]["parameters"]["task_digits"]["defaultValue"]
    assert json.loads(task)["total_steps"] == 7
    overlay.write_text("datasets: {digits: {path: data/mine}}\n")
    said = compile_by_hand("pipelines.quickstart", *words, code=2)
    assert said.startswith("quickstart.py: dataset 'digits' lies at 'data/mine', a path of this")


def test_custom_resources_on_request(tmp_path: Path) -> None:
    target = tmp_path / "bit_s.k8s.yaml"
    compile_by_hand("pipelines.bit_s", "--kubernetes", "kubeflow", "--to", str(target))
    text = target.read_text()
    kinds = {d["kind"]: d for d in yaml.load_all(text, yaml.CSafeLoader)}
    assert set(kinds) == {"Pipeline", "PipelineVersion"}
    assert {d["metadata"]["namespace"] for d in kinds.values()} == {"kubeflow"}
    spec = kinds["PipelineVersion"]["spec"]["pipelineSpec"]
    assert spec["root"] == read_package(PROJECT / "pipelines" / "bit_s.kfp.yaml")["root"]


def test_which_submission_it_is_stands_in_no_line(tmp_path: Path) -> None:
    """A line is part of a task's cache key: else no launched task would come from the cache."""
    from bigtransfer.kubeflow.submission import Submission, submitting
    from pipelines.dag import build

    overlay = read_yaml(PROJECT / "manifests" / "overlays" / "eks" / "params.yaml")
    lines = []
    for name in ("first", "second"):
        told = {"BIGTRANSFER_KFP_RUN": name}
        with submitting(Submission(changes=overlay, told=told)):
            made = build("bit-l", PROJECT / "pipelines" / "bit_l.yaml")
        path = tmp_path / f"{name}.yaml"
        from kfp import compiler

        compiler.Compiler().compile(made, str(path))
        boxes = read_package(path)["deploymentSpec"]["executors"]
        known = {key: box["container"] for key, box in boxes.items()}
        assert {"name": "BIGTRANSFER_KFP_RUN", "value": name} in known["exec-pretrain"]["env"]
        lines.append({key: (box["command"], box["args"]) for key, box in known.items()})
    assert "exec-validate-parts" in lines[0]
    assert lines[0] == lines[1]
    nowhere = config.laid_over(overlay, {"data": {"shards_at": None}}, whole=False)
    with (
        submitting(Submission(changes=nowhere)),
        pytest.raises(ConfigError, match="validate of dataset 'upstream' is done in parts"),
    ):
        build("bit-l", PROJECT / "pipelines" / "bit_l.yaml")
