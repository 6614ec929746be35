"""Sections of a study's tasks on a cluster: derived from a study's file, never typed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from bigtransfer.config.base import NotNegative, Positive, Section
from bigtransfer.config.sections import EvaluateParams, PretrainParams, TaskParams


class StudyCellParams(Section):
    """A cell of a study: an upstream training and its transfer to every task."""

    name: str
    """`<study>-<digest>`."""
    title: str
    """What sets it apart, for people."""
    labels: dict[str, str]
    """Axis -> value."""
    seed: NotNegative
    """Of upstream training."""
    processes: Positive
    """Of upstream training, by `torchrun`: one for each GPU."""
    pretrain: PretrainParams
    tasks: Annotated[tuple[TaskParams, ...], Field(strict=False, min_length=1)]
    evaluate: EvaluateParams


class StudyTableParams(Section):
    """A study and the params that it is laid over: of these its cells are made."""

    study: dict[str, Any]
    params: dict[str, Any]


class StudyCheckParams(Section):
    """The last word on a study: whether all its cells are finished."""

    study: str
    """Its name."""
