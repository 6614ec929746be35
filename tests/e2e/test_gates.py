"""Real trainings at the gates: what is worse is refused with a reason, what is better passes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fixtures.workflow import call, edit_params, mlflow_client, run_workflow

pytestmark = [pytest.mark.xdist_group("e2e-workflow"), pytest.mark.e2e, pytest.mark.long]
MODEL = "bigtransfer-digits"
GRID = "  examples_per_class: [1, 5]"
INITS = "  inits: [upstream, scratch]"


def aliases(project: Path) -> dict[str, str]:
    found = mlflow_client(project).get_registered_model(MODEL).aliases
    return {alias: str(version) for alias, version in found.items()}


def promote(project: Path, *words: str) -> tuple[int, str]:
    done = call(project, "bigtransfer.command", "promote", MODEL, *words)
    print(done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def trained(project: Path) -> None:
    """Fine-tune and register what params.yaml says by now; no alias but challenger moves."""
    before = aliases(project)["champion"]
    done = run_workflow(project, "register@digits")
    assert done.returncode == 0, done.stdout + done.stderr
    assert aliases(project)["champion"] == before


def scratch(project: Path) -> None:
    edit_params(project, INITS, "  inits: [scratch]")


def two_steps(project: Path) -> None:
    edit_params(project, INITS, "  inits: [upstream]")
    edit_params(project, "  total_steps: 80 ", "  total_steps: 2 ")


def permuted(project: Path) -> None:
    """Exchange the labels of training images among each other; all other images stay.

    Classes have other sizes then, and so other splits: it cannot be compared at all.
    """
    edit_params(project, INITS, "  inits: [upstream]")
    rows = pq.read_table(project / "artifacts/datasets/digits/manifest.parquet").to_pylist()
    shutil.copytree(project / "data" / "digits", project / "data" / "permuted")
    own = [Path(row["path"]) for row in rows if row["split"] == "train"]
    order = np.random.default_rng(0).permutation(len(own))
    held = project / "data" / "held"
    held.mkdir()
    for number, path in enumerate(own):
        shutil.move(project / "data" / "permuted" / path, held / str(number))
    for number, other in enumerate(order):
        label = own[other].parent
        target = project / "data" / "permuted" / label / f"moved-{number}{own[number].suffix}"
        shutil.move(held / str(number), target)
    edit_params(project, "path: data/digits", "path: data/permuted")


@pytest.mark.parametrize("spoil", [scratch, two_steps, permuted])
def test_what_is_worse_is_refused(spoil: Any, own_copy: Path) -> None:
    edit_params(own_copy, GRID, "  examples_per_class: [5]")
    spoil(own_copy)
    trained(own_copy)
    before = aliases(own_copy)
    code, said = promote(own_copy)
    assert code == 3, said
    assert "points of v1" in said or "validation images are not those of v1" in said
    assert aliases(own_copy) == before
    tags = mlflow_client(own_copy).get_model_version(MODEL, before["challenger"]).tags
    assert tags["gates"].startswith("refused: ") and tags["gate.compare"].startswith(
        ("fail", "cannot be said")
    )


def test_more_data_passes_better_and_equal_data_does_not(own_copy: Path) -> None:
    edit_params(own_copy, "    compare: not_worse ", "    compare: better ")
    edit_params(own_copy, INITS, "  inits: [upstream]")
    edit_params(own_copy, GRID, "  examples_per_class: [1]")
    trained(own_copy)
    one = aliases(own_copy)["challenger"]
    assert promote(own_copy)[0] == 3
    # The champion with 1 image per class, as if there had been no other; then 5, then all.
    mlflow_client(own_copy).set_registered_model_alias(MODEL, "champion", one)
    code, said = promote_version(own_copy, "1")
    assert code == 0, said
    edit_params(own_copy, "  examples_per_class: [1]", "  examples_per_class: [full]")
    trained(own_copy)
    full = aliases(own_copy)["challenger"]
    code, said = promote(own_copy)
    assert (code, aliases(own_copy)["champion"]) == (0, full), said
    back = call(own_copy, "bigtransfer.command", "rollback", MODEL)
    assert (back.returncode, aliases(own_copy)["champion"]) == (0, "1"), back.stderr
    trained(own_copy)  # known by now: nothing moves
    assert aliases(own_copy)["champion"] == "1"


def promote_version(project: Path, version: str) -> tuple[int, str]:
    done = call(project, "bigtransfer.command", "promote", f"{MODEL}/{version}")
    print(done.stdout, done.stderr)
    return done.returncode, done.stdout + done.stderr
