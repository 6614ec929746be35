"""Images that were planted stand high in the list; clean data name no class."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from fixtures.project import PROJECT, environment
from fixtures.workflow import Finished

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def test_planted_images_are_found_where_the_attack_succeeds(finished: Finished) -> None:
    script = str(PROJECT / "benchmarks" / "poison.py")
    upstream = str(finished.project / "artifacts" / "pretrain" / "checkpoint")
    done = subprocess.run(
        [sys.executable, script, "--upstream", upstream], env=environment(),
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(
        r"succeeds in 90 % or more in (\d) of 5 seeds; recall is x([\d.]+) of chance", done.stdout
    )
    assert found, done.stdout
    assert int(found[1]) >= 4
    assert float(found[2]) >= 3
    assert "clean: a class is named in 0 of 5 seeds" in done.stdout
