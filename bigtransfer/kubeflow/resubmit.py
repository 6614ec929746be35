"""Submit, watch, and submit the same again where a run ended by no fault of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow import kube
from bigtransfer.kubeflow.reasons import raise_for
from bigtransfer.kubeflow.refusals import Refusal
from bigtransfer.kubeflow.run_api import RunApi
from bigtransfer.kubeflow.watch import watch


@dataclass(frozen=True)
class Run:
    """A run that was started."""

    client: Any
    """The kfp.client.Client that started it."""
    endpoint: str
    run_id: str
    namespace: str
    """Of its pods."""
    refusals: Callable[[], Mapping[str, Refusal]] = dict
    """What its stages left where its results lie, by stage."""


def check_words(resubmissions: int | None, wait: bool) -> None:
    """Refuse `--resubmit` where nobody would see that it is needed.

    Raises:
        ConfigError: If it is not a count, or without `--wait`.
    """
    if resubmissions is None:
        return
    if resubmissions < 1:
        raise ConfigError(f"--resubmit {resubmissions}: give how often, 1 or more")
    if not wait:
        raise ConfigError(
            "--resubmit needs --wait: a run that nobody watches is not submitted again"
        )


def name_of(run_name: str, number: int) -> str:
    """Return the name of the run that is submitted for the n-th time."""
    return run_name if number == 1 else f"{run_name} ({number})"


def watched(start: Callable[[str | None], Run], resubmissions: int = 0) -> str:
    """Submit, watch, and submit again while tasks are lost and it is allowed.

    What is cached and what is mirrored goes on where it was.

    Args:
        start: Submits; it is given the id of the run before, if there was one.
        resubmissions: How often at most it is submitted again.

    Returns:
        The id of the run that succeeded.

    Raises:
        GateError: If gates said no.
        InfrastructureError: If tasks were lost once too often, or the API stays away.
        BigTransferError: If a run failed otherwise.
    """
    cluster, _ = kube.at_hand()
    links: list[str] = []
    previous: str | None = None
    while True:
        run = start(previous)
        api = RunApi(run.client, run.endpoint, run.run_id, run.namespace)
        links.append(api.link)
        ending = watch(api, refusals=run.refusals, cluster=cluster)
        left = resubmissions - len(links) + 1
        if not ending.lost or left <= 0:
            break
        lost = ", ".join(f"{failure.stage} ({failure.reason})" for failure in ending.failures)
        print(
            f"again    submission {len(links) + 1} of {resubmissions + 1}: lost {lost}; before: "
            f"{api.link}",
            flush=True,
        )
        previous = run.run_id
    if len(links) > 1:
        print("\n".join(f"run {n:<4} {link}" for n, link in enumerate(links, 1)), flush=True)
    raise_for(ending, links[-1], len(links))
    return run.run_id
