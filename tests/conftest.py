"""Fixtures for all tests come from `fixtures/`; nothing is imported from a test module."""

from __future__ import annotations

import os
import signal

import pytest

# One thread per worker: two workers with two threads each are slower than with one each. (Before
# torch is imported; a command that is told its threads, as `make run` is, keeps to that.)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Whoever starts the tests in the background has Ctrl-C ignored in them and all that they start;
# tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# No test looks into a cluster of whoever runs it.
os.environ["KUBECONFIG"] = os.devnull
os.environ.pop("KUBERNETES_SERVICE_HOST", None)
pytest.register_assert_rewrite("fixtures")
pytest_plugins = [
    "fixtures.cluster_api",
    "fixtures.datasets",
    "fixtures.dvc_repository",
    "fixtures.images",
    "fixtures.kfp_api",
    "fixtures.kube_api",
    "fixtures.login",
    "fixtures.models",
    "fixtures.project",
    "fixtures.registered",
    "fixtures.servers",
    "fixtures.tracking",
    "fixtures.training",
    "fixtures.workflow",
    "fixtures.vtab_arrays",
]
_LONGEST_FIRST = (
    "e2e/test_workflow", "e2e/test_several_labels", "e2e/test_kills", "e2e/test_sources",
    "e2e/test_bad_input", "e2e", "containers", "integration", "contract", "golden", "unit",
)  # fmt: skip
_SHARED = {"s3_server": "s3", "empty_database": "mlflow"}
"""Fixture of a session -> group of the tests that share it: they run in one worker."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put tests that share a slow fixture into one group."""
    fixtures = getattr(item, "fixturenames", ())
    for name, group in _SHARED.items():
        if name in fixtures and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that no worker is left alone with it at the end."""
    items.sort(key=_place)
    if "BIGTRANSFER_TEST_TIMES" not in os.environ:
        skip = pytest.mark.skip(reason="minutes long; `make test-long` runs it")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


def _place(item: pytest.Item) -> int:
    path = item.nodeid.removeprefix("tests/")
    return next(n for n, start in enumerate(_LONGEST_FIRST) if path.startswith(start))
