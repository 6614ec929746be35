"""Fixtures for all tests come from `fixtures/`; nothing is imported from a test module."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("fixtures")
pytest_plugins = [
    "fixtures.datasets",
    "fixtures.dvc_repository",
    "fixtures.images",
    "fixtures.kfp_api",
    "fixtures.models",
    "fixtures.project",
    "fixtures.servers",
    "fixtures.tracking",
    "fixtures.training",
    "fixtures.workflow",
]
