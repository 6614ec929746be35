"""`kfp run submit FILE.py`, as typed, by the real client against a stand-in of the API."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtransfer import config
from bigtransfer.command import doctor, kfp_script
from bigtransfer.kubeflow.image_tag import source_tag
from fixtures.kfp_api import BIT_S, POSSIBLE, SMALL, Api, submit
from fixtures.project import PROJECT, environment

OWN = """
from kfp import dsl

@dsl.container_component
def say(text: str, times: int):
    return dsl.ContainerSpec(image="busybox", command=["echo", text])

@dsl.pipeline
def mine(text: str, times: int = 2, sure: bool = True):
    say(text=text, times=times)
"""

pytestmark = [pytest.mark.usefixtures("here"), pytest.mark.xdist_group("kfp")]


def own(folder: Path, text: str = OWN) -> Path:
    path = folder / "pipelines" / "own.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def essence(spec: Any) -> Any:
    """Return a spec without what a submission says of itself: images and environment."""
    for executor in spec["deploymentSpec"]["executors"].values():
        executor["container"].pop("image")
        executor["container"].pop("env")
        command = executor["container"]["command"]
        if "--pods" in command:
            at = command.index("--pods") + 1
            pods = json.loads(command[at])
            command[at] = {**pods, "image": "", "env": {}, "told": {}}
    return {key: value for key, value in spec.items() if key != "sdkVersion"}


def golden(name: str) -> tuple[Any, Any]:
    """Return the spec beside a pipeline's source."""
    text = (PROJECT / "pipelines" / f"{name}.kfp.yaml").read_text()
    spec, platform = yaml.load_all(text, yaml.CSafeLoader)
    return spec, platform


def test_what_is_uploaded_is_the_golden_file(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(BIT_S, *POSSIBLE, "--endpoint", api.url, "-r", "the first") == 0
    said = capsys.readouterr()
    assert "launch   pretrain: a Job of 1 pod, beside this run" in said.out
    assert f"look     {api.url}/#/runs/details/r0" in said.out
    (run,) = api.runs
    spec, platform = golden("bit_s")
    sent = run["pipeline_spec"]["pipeline_spec"]
    boxes = [e["container"] for e in sent["deploymentSpec"]["executors"].values()]
    images = {box["image"] for box in boxes}
    assert {image.rpartition(":")[2] for image in images} == {source_tag(PROJECT)}
    for box in boxes:
        told = {pair["name"]: pair["value"] for pair in box["env"]}
        assert told["BIGTRANSFER_KFP_RUN"] == "the first"
        assert told["BIGTRANSFER_KFP_URL"] == api.url
    assert essence(sent) == essence(spec)
    assert run["pipeline_spec"]["platform_spec"] == platform
    assert [e["display_name"] for e in api.experiments] == ["bit-s"]
    assert run["experiment_id"] == "e0"


def test_eight_nodes_of_eight_gpus_are_accepted_and_waited_for(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = PROJECT / "manifests" / "overlays" / "gke" / "params.yaml"
    line = [PROJECT / "pipelines" / "bit_l.py", "--params", overlay, "--endpoint", api.url]
    assert submit(*line) == 0
    said = capsys.readouterr().out
    assert "launch   pretrain: a Job of 8 pods in queue trainings, beside this run" in said
    assert "pool     h100: 8 pods of 192 CPU, 1200Gi, 8 nvidia.com/gpu" in said
    parted = "launch   shard@upstream: a Job of 256 parts, 16 pods at once, beside this run"
    assert f"{parted}; they meet at s3://bigtransfer/shards" in said
    assert "pool     data: 42 pods of 16 CPU, 244Gi" in said
    spec = api.runs[0]["pipeline_spec"]["pipeline_spec"]
    box = spec["deploymentSpec"]["executors"]["exec-pretrain"]["container"]
    assert box["image"].endswith(f"-launch:{source_tag(PROJECT)}")
    assert "accelerator" not in box["resources"], "who waits takes no GPU"
    command = box["command"]
    assert command[:3] == ["python", "-m", "components.launch"]
    assert command[-4:] == ["--", "python", "-m", "components.pretrain"]
    pods = json.loads(command[command.index("--pods") + 1])
    assert (pods["nodes"], pods["processes"], pods["queue"]) == (8, 8, "trainings")
    assert pods["image"].endswith(f"-train-gpu:{source_tag(PROJECT)}")
    assert not any("secret" in str(value).lower() for value in pods["env"].values())
    after = {
        task["taskInfo"]["name"]
        for task in spec["root"]["dag"]["tasks"].values()
        if "pretrain" in task.get("dependentTasks", [])
    }
    assert after == {"finetune@cifar10", "finetune@cifar100", "finetune@flowers", "finetune@pets"}
    for component in ("validate", "shard"):
        waits, joins = (
            next(
                (key, spec["deploymentSpec"]["executors"][f"exec-{key}"]["container"], task)
                for key, task in spec["root"]["dag"]["tasks"].items()
                if task["taskInfo"]["name"] == name
            )
            for name in (f"{component}-parts@upstream", f"{component}@upstream")
        )
        pods = json.loads(waits[1]["command"][waits[1]["command"].index("--pods") + 1])
        assert (pods["parts"], pods["nodes"], pods["queue"]) == (256, 16, None)
        assert pods["image"].endswith(f"-data:{source_tag(PROJECT)}")
        assert waits[1]["resources"]["memoryLimit"] < joins[1]["resources"]["memoryLimit"]
        assert "outputDefinitions" not in spec["components"][waits[2]["componentRef"]["name"]]
        assert waits[0] in joins[2]["dependentTasks"]
        assert "--join" in joins[1]["args"] and "256" in joins[1]["args"]
    small = {task["taskInfo"]["name"] for task in spec["root"]["dag"]["tasks"].values()}
    assert "validate@pets" in small and "validate-parts@pets" not in small


def test_without_a_mirror_a_note_says_what_is_lost(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (*POSSIBLE, "pretrain.checkpoint_mirror=null")
    assert submit(BIT_S, *given, "--endpoint", api.url) == 0
    said = capsys.readouterr()
    assert "note: pretrain.checkpoint_mirror is null" in said.err
    assert "launch" not in said.out, "in its task's own pod, as ever"


def test_values_of_params_yaml_reach_the_spec(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("cluster: {image: registry.example/me/bt, tracking_uri: 'http://ml:5000'}\n")
    words = ["pretrain.epochs=99", "datasets.upstream.source=s3://photos/all", "-e", "trial"]
    assert submit(BIT_S, *words, "--params", overlay, "--endpoint", api.url) == 0
    assert "tracking_uri" not in capsys.readouterr().err
    spec = api.runs[0]["pipeline_spec"]["pipeline_spec"]
    given = spec["root"]["inputDefinitions"]["parameters"]
    assert json.loads(given["pretrain"]["defaultValue"])["epochs"] == 99
    assert json.loads(given["dataset_upstream"]["defaultValue"])["source"] == "s3://photos/all"
    containers = [e["container"] for e in spec["deploymentSpec"]["executors"].values()]
    assert {c["image"].rpartition("-")[0].partition("-")[0] for c in containers} <= {
        "registry.example/me/bt"
    }
    assert all({"name": "MLFLOW_TRACKING_URI", "value": "http://ml:5000"} in c["env"]
               for c in containers)  # fmt: skip
    assert api.experiments[0]["display_name"] == "trial"


def test_a_file_of_ones_own(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KFP_ENDPOINT", api.url)
    assert submit(own(tmp_path), "text=hello", "times=3", "sure=false") == 0
    parameters = api.runs[0]["runtime_config"]["parameters"]
    assert parameters == {"text": "hello", "times": 3, "sure": False}


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"token": "abc"}, 2, "refuses us (401 no token); set KFP_TOKEN to a bearer token"),
        ({"prefix": "/apis/v1beta1"}, 2, "has no API v2beta1 (404): it is another address, or"),
        ({"page": True}, 2, "answers with a page, not as Kubeflow Pipelines (a login page?)"),
        ({"status": 400}, 2, "answers 400 the pipeline spec is invalid"),
        ({"status": 503}, 75, "answers 503 the pipeline spec is invalid; submit again later"),
    ],
)
def test_a_server_that_refuses_is_one_line(
    change: dict[str, Any], code: int, message: str, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    vars(api).update(change)
    assert submit(*SMALL, "--endpoint", api.url) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_package_takes_no_values_of_params_yaml(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = PROJECT / "pipelines" / "bit_s.kfp.yaml"
    assert submit(package, "pretrain.epochs=50", "--endpoint", api.url) == 2
    assert "a package is compiled already" in capsys.readouterr().err
    assert submit(package, "--endpoint", api.url) == 2
    said = capsys.readouterr().err
    assert "names no registry" in said and "cluster.tracking_uri is null" in said
    good = tmp_path / "bit_s.yaml"
    good.write_text(
        package.read_text()
        .replace("image: bigtransfer-", "image: registry.example/me/bigtransfer-")
        .replace("name: BIGTRANSFER_STAGE", "name: MLFLOW_TRACKING_URI")
    )
    assert submit(good, "--endpoint", api.url) == 0
    assert api.runs[0]["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "bit-s"


def test_more_gpus_are_more_processes_and_secrets_are_named(api: Api) -> None:
    secrets = '{"AWS_SECRET_ACCESS_KEY": {"secret": "s3", "key": "secret"}}'
    words = ["cluster.pools.gpu.count=8", f"cluster.secrets={secrets}", "--fresh",
             "cluster.launcher=task"]  # fmt: skip
    assert submit(BIT_S, *POSSIBLE, *words, "--endpoint", api.url) == 0
    spec = api.runs[0]["pipeline_spec"]["pipeline_spec"]
    lines = {
        executor["container"]["command"][-1]: executor["container"]["command"]
        for executor in spec["deploymentSpec"]["executors"].values()
    }
    assert lines["components.pretrain"][2:6] == [
        "torch.distributed.run", "--standalone", "--nproc-per-node", "8",
    ]  # fmt: skip
    assert lines["components.finetune"] == ["python", "-m", "components.finetune"]
    tasks = {task["taskInfo"]["name"]: task for task in spec["root"]["dag"]["tasks"].values()}
    assert not tasks["fetch@upstream"]["cachingOptions"].get("enableCache")
    assert tasks["pretrain"]["cachingOptions"]["enableCache"]
    assert tasks["pretrain"]["retryPolicy"]["backoffMaxDuration"] == "7776000s"


def test_in_a_cluster_of_several_users_a_run_has_a_namespace(api: Api) -> None:
    api.several_users = True
    assert submit(*SMALL, "-n", "team-a", "--endpoint", api.url) == 0
    assert api.experiments[0]["namespace"] == "team-a"


def test_a_token_opens(api: Api) -> None:
    api.token = "abc"
    assert submit(*SMALL, "--endpoint", api.url, "--existing-token", "abc") == 0


def test_a_server_that_is_down_is_to_be_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(BIT_S, *POSSIBLE, "--endpoint", "127.0.0.1:9") == 75
    assert "http://127.0.0.1:9 does not answer" in capsys.readouterr().err


TWO = OWN + "\n@dsl.pipeline\ndef other(text: str):\n    say(text=text, times=1)\n"


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("x = 1\n", [], "holds no pipeline; make one with @kfp.dsl.pipeline"),
        (TWO, [], "holds 2 pipelines: mine, other; say which one with --pipeline NAME"),
        (TWO, ["--pipeline", "othr"], "holds no pipeline 'othr'; did you mean 'other'?"),
        ("def f(:\n", [], "own.py, line 1: invalid syntax"),
        ("\n1 / 0\n", [], "own.py, line 2: ZeroDivisionError: division by zero"),
        (OWN, ["txt=a"], "pipeline 'mine' has no parameter 'txt'; did you mean 'text'?"),
        (OWN, ["text=a", "times=two"], "parameter 'times' is 'two', but it should be a whole num"),
        (OWN, ["text=a", "sure=1"], "parameter 'sure' is '1', but it should be true or false"),
        (OWN, ["text"], "'text': write KEY=VALUE"),
        (OWN, ["text=AKIAABCDEFGHIJKLMNOP"], "parameter 'text' looks like a secret"),
        (OWN, ["a.b=1"], "are for a checkout of bigtransfer; this is none"),
    ],
    ids=["none", "two", "misnamed", "syntax", "error", "parameter", "whole number", "truth",
         "no value", "secret", "no checkout"],
)  # fmt: skip
def test_a_wrong_file_or_value_is_one_line(
    text: str, words: list[str], message: str, api: Api, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert submit(own(tmp_path, text), *words, "--endpoint", api.url) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert api.runs == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain.epoch=3"], "unknown key 'epoch' in section 'pretrain'; did you mean 'epochs'?"),
        (["pretrain.epochs=many"], "'pretrain.epochs' is 'many', but it should be a valid number"),
        (["cluster.placement.pretrain=gpus"], "placement.pretrain is 'gpus', which 'pools' does"),
        (['cluster.env={"AWS_SECRET_ACCESS_KEY": "x"}'], "AWS_SECRET_ACCESS_KEY looks like a sec"),
        (["datasets.upstream.source=s3://key:word@host/b"], "looks like a secret"),
        (["pretrain.epochs=50", "pretrain.epochs.x=4"], "'epochs' is given a value of its own"),
        (["cluster.pools.cpu.memory=1.5Gi"], "'cluster.pools.cpu.memory' is '1.5Gi', but it"),
        (["datasets.pets=null"], "'tasks.pets.dataset' is 'pets', which 'datasets' does not name"),
    ],
)
def test_a_wrong_value_of_params_yaml_is_one_line(
    words: list[str], message: str, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(BIT_S, *POSSIBLE, *words, "--endpoint", api.url) == 2
    assert message in capsys.readouterr().err
    assert api.runs == []


def test_paths_of_this_machine_are_not_sent_to_a_cluster(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    transfer = PROJECT / "pipelines" / "transfer.py"
    assert submit(transfer, *POSSIBLE, "--endpoint", api.url) == 2
    said = capsys.readouterr().err
    assert "pretrained is 'artifacts/pretrain/checkpoint', a path of this machine" in said
    weights = ["pretrained=s3://b/BiT-M-R50x1.npz", f"pretrained_sha256={'a' * 64}"]
    assert submit(transfer, *POSSIBLE, *weights, "--endpoint", api.url) == 0
    sent = json.loads(api.runs[0]["runtime_config"]["parameters"]["pretrained"])
    assert sent == {"address": "s3://b/BiT-M-R50x1.npz", "sha256": "a" * 64}
    weights[1] = "pretrained_sha256=abc"
    assert submit(transfer, *POSSIBLE, *weights, "--endpoint", api.url) == 2
    assert "pretrained: 'sha256' is 'abc'" in capsys.readouterr().err


def test_a_folder_of_images_is_no_source_on_a_cluster(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [PROJECT / "pipelines" / "transfer.py", *POSSIBLE, "pretrained=s3://b/w.npz"]
    words += ["datasets.digits.path=data/my-digits", "--endpoint", api.url]
    assert submit(*words) == 2
    assert "'data/my-digits', a path of this machine" in capsys.readouterr().err
    assert submit(*words, "uri_digits=s3://b/digits") == 0
    spec = api.runs[0]["pipeline_spec"]["pipeline_spec"]
    tasks = {task["taskInfo"]["name"] for task in spec["root"]["dag"]["tasks"].values()}
    assert {"fetch@digits", "fetch_weights"} <= tasks
    given = spec["root"]["inputDefinitions"]["parameters"]["dataset_digits"]["defaultValue"]
    assert json.loads(given)["source"] == "s3://b/digits"
    assert not [e for e in spec["deploymentSpec"]["executors"].values() if "importer" in e]


def test_the_address_may_stand_in_an_overlay(api: Api, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(f"cluster: {{endpoint: '{api.url}'}}\n")
    assert submit(*SMALL, "--params", overlay) == 0
    assert submit(*SMALL, f"cluster.endpoint={api.url}") == 0
    assert len(api.runs) == 2


def test_flags_reach_the_run(api: Api) -> None:
    words = ["--pipeline-root", "s3://own/root", "--service-account", "trainer", "--no-cache"]
    assert submit(*SMALL, *words, "--endpoint", api.url) == 0
    (run,) = api.runs
    assert run["runtime_config"]["pipeline_root"] == "s3://own/root"
    assert run["service_account"] == "trainer"
    tasks = run["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"].values()
    assert not any(task["cachingOptions"].get("enableCache") for task in tasks)


OTHERS = OWN.replace("def say(", "def evaluate(").replace("    say(", "    evaluate(")
OTHERS = OTHERS.replace("sure: bool = True", "uri_model: str = 's3://b/m', pretrained: str = 'x'")


def test_somebody_elses_tasks_may_be_called_as_ours(api: Api, tmp_path: Path) -> None:
    path = own(tmp_path, OTHERS)
    words = ["text=a", "uri_model=s3://b/other", "--endpoint", api.url]
    assert submit(path, *words) == 0
    assert submit(path, *words, "pretrained=mine") == 0
    sent = api.runs[1]["runtime_config"]["parameters"]
    assert sent == {"text": "a", "uri_model": "s3://b/other", "pretrained": "mine"}


def test_names_that_kfp_takes_for_one_are_refused(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["datasets.a-b.path=data/digits", "datasets.a_b.path=data/alphabets",
             "tasks.one.dataset=a-b", "tasks.two.dataset=a_b"]  # fmt: skip
    quickstart = PROJECT / "pipelines" / "quickstart.py"
    assert submit(quickstart, *POSSIBLE, *words, "--endpoint", api.url) == 2
    assert "datasets 'a-b' and 'a_b' differ by '-', '_' or case alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pipeline-root", "nonsense"], "--pipeline-root 'nonsense': write s3://bucket/prefix"),
        (["--pipeline-root", "file:///x"], "--pipeline-root 'file:///x'"),
        (["--service-account", "Bad Name"], "--service-account 'Bad Name': small letters"),
    ],
)
def test_a_wrong_flag_is_one_line(
    words: list[str], message: str, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(BIT_S, *POSSIBLE, *words, "--endpoint", api.url) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


def test_a_dvc_version_is_sent_as_its_commit(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "photos"
    (repository / "data").mkdir(parents=True)
    (repository / "data" / "a.txt").write_text("a")
    commit_line = "git -c user.name=a -c user.email=a@b commit -qm first"
    dvc_line = f"{sys.executable} -m dvc init -q"
    for line in ("git init -q", dvc_line, "git add .", commit_line, "git tag v1"):
        subprocess.run(line.split(), cwd=repository, env=environment(), check=True)
    commit = subprocess.run(["git", "rev-parse", "v1"], cwd=repository, capture_output=True,
                            text=True, check=True).stdout.strip()  # fmt: skip
    overlay = tmp_path / "mine.yaml"
    entry = f"{{path: artifacts/sources/digits, source: 'dvc://{repository}@v1/data'}}"
    text = f"remote: [digits]\ndatasets: {{digits: {entry}}}\n"
    overlay.write_text(text)
    assert submit(*SMALL, "--params", overlay, "--endpoint", api.url) == 0
    sent = json.loads(api.runs[0]["runtime_config"]["parameters"]["dataset_digits"])
    assert sent["source"] == f"dvc://{repository}@{commit}/data"
    overlay.write_text(text.replace("@v1", "@v9"))
    assert submit(*SMALL, "--params", overlay, "--endpoint", api.url) == 2
    assert "there is no such revision" in capsys.readouterr().err


def test_batch_prediction_is_given_a_model_and_images(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    file = PROJECT / "pipelines" / "predict.py"
    server = ["cluster.tracking_uri=http://mlflow:5000", "cluster.image=registry.example/me/big"]
    words = ["model=models:/bigtransfer-digits@champion", "images=s3://bucket/new"]
    assert submit(file, *server, *words, "--endpoint", api.url) == 0, capsys.readouterr().err
    (run,) = api.runs
    given = run["runtime_config"]["parameters"]
    assert given == {"model": words[0].partition("=")[2], "images": "s3://bucket/new"}
    (task,) = run["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"].values()
    text = task["inputs"]["parameters"]["params"]["runtimeValue"]["constant"]
    for name, value in {**given, "top": "2"}.items():
        text = text.replace(f"{{{{$.inputs.parameters['pipelinechannel--{name}']}}}}", value)
    params = config.from_json(text, config.BatchParams)
    assert (params.model, params.images, params.top) == (*given.values(), 2)
    assert submit(file, *server, words[0], "--endpoint", api.url) == 2
    assert "pipeline 'predict' wants images; give images=…" in capsys.readouterr().err


def test_the_script_is_ours_and_upstreams_compiler_takes_our_files(tmp_path: Path) -> None:
    assert doctor.kfp_script().good, doctor.kfp_script().text
    script = kfp_script.path()
    assert (
        script is not None and "bigtransfer" not in script.read_text("utf-8").split("import", 1)[1]
    )
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("kfp 2.")
    out = tmp_path / "bit_s.yaml"
    subprocess.run(
        [script, "dsl", "compile", "--py", "pipelines/bit_s.py", "--output", str(out)],
        cwd=PROJECT, env=environment(), check=True, capture_output=True,
    )  # fmt: skip
    golden_file = PROJECT / "pipelines" / "bit_s.kfp.yaml"
    assert without_images(out.read_text()) == without_images(golden_file.read_text())


def without_images(package: str) -> str:
    package = re.sub(r"(BIGTRANSFER_IMAGE\n *value:) \S+", r"\1", package)
    package = re.sub(r'("(?:image|BIGTRANSFER_IMAGE)":"[^":]+):[^"]+"', r'\1"', package)
    return re.sub(r"image: \S+|# PIPELINE DEFINITION|sdkVersion: \S+", "", package)


def test_a_bug_of_the_library_keeps_its_traceback(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "from bigtransfer.config import looks_secret\nlooks_secret(None, None)\n"
    with pytest.raises(TypeError):
        submit(own(tmp_path, text), "--endpoint", api.url)
