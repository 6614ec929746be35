from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bigtransfer.kubeflow.backend import refusal_of
from bigtransfer.storage.volumes import MOST_FILES
from components.executor import ExecutorInput
from fixtures.executor import given as executor_input
from fixtures.executor import said
from fixtures.stages import dvc_lines
from fixtures.workflow import (
    Finished,
    call,
    edit_params,
    mlflow_client,
    ran,
    run_quietly,
    run_workflow,
)
from pipelines.containers import KINDS

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("e2e-workflow")]


def median(rows: list[dict[str, Any]], task: str, init: str, shots: int) -> float:
    (row,) = [
        r for r in rows
        if (r["task"], r["init"], r["examples_per_class"]) == (task, init, shots)
    ]  # fmt: skip
    return float(row["median"])


def test_default_run_says_what_was_made_and_what_is_next(finished: Finished) -> None:
    tail = finished.output[finished.output.index("Test top-1, median") :]
    for row in finished.rows:
        assert re.search(rf"{row['task']} +{row['examples_per_class']} ", tail)
        assert f"{100 * row['median']:.1f} ± {100 * row['sd']:.1f} %" in tail
    assert finished.champions == {"bigtransfer-alphabets": "1", "bigtransfer-digits": "1"}
    for name in finished.champions:
        assert f"models:/{name}@champion" in tail
    for next_command in ("artifacts/report/index.html", "make ui", "params.yaml"):
        assert next_command in tail[tail.index("\nNext\n") :]


def test_transfer_beats_scratch_on_held_out_alphabets(finished: Finished) -> None:
    transfer = median(finished.rows, "alphabets", "upstream", 5)
    assert transfer - median(finished.rows, "alphabets", "scratch", 5) >= 0.10


def test_handwritten_digits_are_read(finished: Finished) -> None:
    assert median(finished.rows, "digits", "upstream", 5) >= 0.80


def test_report_is_one_page_that_needs_no_network(finished: Finished) -> None:
    page = (finished.project / "artifacts/report/index.html").read_text()
    loaded = re.findall(
        r"""<(?:img|image|script|link|iframe)\b[^>]*?\b(?:src|href)=["']([^"']+)""", page
    )
    assert loaded and all(address.startswith("data:image/") for address in loaded)
    assert not re.search(r"url\((?!#)|@import", page)
    for part in ("Does pretraining pay?", "Which data made it", "Which params made it", "<svg"):
        assert part in page
    for link in re.findall(r'<a href="([^"#]+)"', page):
        assert (finished.project / "artifacts/report" / link).exists(), link


def test_mlflow_has_one_parent_with_all_stages_curves_and_inputs(finished: Finished) -> None:
    client = mlflow_client(finished.project)
    experiment = client.get_experiment_by_name("bigtransfer").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    below = {run.info.run_name: run for run in runs if run is not parent}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in below.values()} == {parent.info.run_id}
    assert {"materialize", "validate@digits", "shard@alphabets", "pretrain", "finetune@digits",
            "evaluate@digits", "register@digits", "summarize"} <= set(below)  # fmt: skip
    pretrain = below["pretrain"]
    assert len(client.get_metric_history(pretrain.info.run_id, "loss")) > 20
    assert any(name.startswith("system/") for name in pretrain.data.metrics)
    assert pretrain.data.params["base_lr"] == "0.1"
    assert [i.dataset.name for i in pretrain.inputs.dataset_inputs] == ["upstream"]
    commit = subprocess.run(["git", "rev-parse", "HEAD~1"], cwd=finished.project,
                            capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    assert pretrain.data.tags["mlflow.source.git.commit"].startswith(commit)


def test_second_run_does_nothing_and_opens_no_run(finished: Finished) -> None:
    before = number_of_runs(finished.project)
    again = run_workflow(finished.project)
    assert (again.returncode, ran(again.stdout)) == (0, set())
    quiet = run_quietly(finished.project)
    assert quiet.returncode == 0, quiet.stderr
    before_tail, tail = quiet.stdout.split("\nTest top-1, median")
    assert again.stdout.endswith(tail)
    assert re.search(r"^  \d+ stages up to date$", before_tail, re.M)
    assert not re.search(r"^  \S+ +\d+ (s|min) ", before_tail, re.M), "no stage ran"
    assert again.stdout.endswith(finished.output[finished.output.index("\nTest top-1, median") :])
    assert number_of_runs(finished.project) == before


def number_of_runs(project: Path) -> int:
    client = mlflow_client(project)
    experiment = client.get_experiment_by_name("bigtransfer").experiment_id
    return len(client.search_runs([experiment]))


def test_dry_run_shows_every_stage(finished: Finished, tmp_path: Path) -> None:
    result = call(finished.project, "dvc", "repro", "--dry", "--force")
    assert result.returncode == 0
    assert {"materialize", "validate@digits", "register@alphabets", "summarize"} <= ran(
        result.stdout
    )


@pytest.mark.long
def test_an_experiment_reruns_only_what_depends_on_it(own_copy: Path) -> None:
    name = "short"
    line = ["dvc", "exp", "run", "--name", name, "-S", "+tasks.digits.total_steps=3",
            "-S", "+tasks.digits.seeds=[0]"]  # fmt: skip
    result = call(own_copy, *line)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == {
        "finetune@digits", "evaluate@digits", "register@digits", "summarize",
    }  # fmt: skip

    shown = call(own_copy, "dvc", "exp", "show", "--json")
    assert shown.returncode == 0
    assert f'"name": "{name}"' in shown.stdout
    changed = json.loads(call(own_copy, "dvc", "metrics", "diff", "--json").stdout)
    assert list(changed) == ["artifacts/evaluate/digits/metrics.json"]
    plots = call(own_copy, "dvc", "plots", "diff", "HEAD")
    assert plots.returncode == 0, plots.stderr
    page = (own_copy / "dvc_plots" / "index.html").read_text()
    assert "artifacts/evaluate/digits/predictions.csv" in page


def test_a_lost_mlflow_database_is_filled_again(own_copy: Path) -> None:
    (own_copy / "mlflow.db").unlink()
    result = run_workflow(own_copy)
    assert result.returncode == 0
    assert ran(result.stdout) == {"register@digits", "register@alphabets", "summarize"}
    assert mlflow_client(own_copy).get_model_version_by_alias("bigtransfer-digits", "champion")


def test_a_failing_stage_is_repeated_last_with_its_own_code(own_copy: Path) -> None:
    broken = own_copy / "data" / "mine"
    for label in ("a", "b"):
        (broken / label).mkdir(parents=True)
        for image in sorted((own_copy / "data/digits/0").glob("*.png"))[:5]:
            (broken / label / image.name).write_bytes(image.read_bytes())
    victim = broken / "b" / image.name
    victim.write_bytes(victim.read_bytes()[:60])
    edit_params(own_copy, "  alphabets: {path", "  mine: {path: data/mine}\n  alphabets: {path")
    result = run_quietly(own_copy, "shard@mine")
    assert result.returncode == 3
    assert "PATH=" not in result.stdout + result.stderr
    assert "failed to reproduce" not in result.stderr
    (log,) = set(re.findall(r"\.work/log/run-[\w-]+\.log", result.stderr))
    assert "PATH=" in (own_copy / log).read_text()
    *_, before_last, last = result.stderr.strip().splitlines()
    assert last == "stage 'validate@mine' stopped with exit code 3"
    assert "then run again" in before_last
    assert f"b/{image.name}" in result.stderr
    assert not (own_copy / "artifacts/datasets/mine/manifest.parquet").exists()
    assert (own_copy / "artifacts/datasets/mine/validation/index.html").exists()


def test_wrong_params_stop_before_dvc_starts(own_copy: Path) -> None:
    edit_params(own_copy, "total_steps: 80", "total_step: 80")
    result = run_workflow(own_copy)
    assert result.returncode == 2
    assert result.stderr == (
        "bigtransfer run: params.yaml: unknown key 'total_step' in section 'finetune'; "
        "did you mean 'total_steps'?\n"
    )
    assert result.stdout == ""


def test_no_output_of_any_component_is_one_that_a_cluster_refuses(own_copy: Path) -> None:
    kinds = {**KINDS}
    # Not in this workflow; none writes figures, but for `study_check`, which says how many cells.
    del kinds["study_check"]
    for name in ("fetch", "fetch_weights", "predict", "study_cell", "study_table"):
        assert not any("Metrics" in kind.schema_title for kind in kinds.pop(name).writes.values())
    seen = set()
    for stage, words in dvc_lines().items():
        component = stage.partition("@")[0]
        if component not in kinds:
            continue
        given = {name: kind.schema_title for name, kind in kinds[component].writes.items()}
        values = dict(zip(words, words[1:], strict=False))
        paths = {name: own_copy / values[f"--{name.replace('_', '-')}"] for name in given}
        place = own_copy / ".work" / stage
        text = executor_input(place, **{n: k.removeprefix("system.") for n, k in given.items()})
        ExecutorInput(text).report(paths, {})
        outputs = said(place)
        assert outputs.keys() == given.keys()
        refusal = refusal_of((given[name], own["metadata"]) for name, own in outputs.items())
        assert refusal is None, f"{stage}: {refusal}"
        for path in filter(Path.is_dir, paths.values()):
            files = sum(1 for own in path.rglob("*") if own.is_file())
            assert files <= MOST_FILES, f"{stage} writes {files} files to {path}"
        seen.add(component)
    assert seen == set(kinds)
    confused = json.loads((own_copy / "artifacts/evaluate/alphabets/confusion.json").read_text())
    names = [own["displayName"] for own in confused["annotationSpecs"]]
    assert len(names) == 30 and re.fullmatch(r"others \(\d+ classes\)", names[-1])
