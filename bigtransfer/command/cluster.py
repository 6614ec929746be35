"""`bigtransfer cluster`: what upstream trainings hold in a cluster, and their end by hand."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = "A training runs in a Job of its own, beside the run that asked for it."
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser(
        "list", allow_abbrev=False, help="what was launched, for which run, since when"
    )
    stopped = actions.add_parser(
        "stop",
        allow_abbrev=False,
        help="end one: its pods get time to save, and the same submission goes on from there",
    )
    stopped.add_argument("which", metavar="RUN|JOB", help="a run's id, or the name of a Job")
    for one in (shown, stopped):
        one.add_argument(
            "--namespace",
            metavar="NS",
            help="of the runs (default: params.yaml: cluster.namespace)",
        )


def run(arguments: argparse.Namespace) -> None:
    """List, or stop.

    Raises:
        ConfigError: If no kubeconfig is at hand, or nothing of that name runs.
        InfrastructureError: If the cluster does not answer.
    """
    from bigtransfer import config
    from bigtransfer.errors import ConfigError
    from bigtransfer.kubeflow import kube, orphans
    from bigtransfer.kubeflow.objects import Objects

    found, why = kube.at_hand()
    if found is None:
        raise ConfigError(f"a kubeconfig is needed ({why})")
    params = Path("params.yaml")
    own = config.load(params).cluster.namespace if params.is_file() else kube.namespace_here()
    objects = Objects(found, arguments.namespace or own)
    if arguments.action == "list":
        rows = orphans.launched(objects)
        for one in rows:
            print(one)
        if not rows:
            print(f"nothing was launched in namespace {objects.namespace!r} ({found.context})")
        return
    for one in orphans.stop(objects, arguments.which):
        print(f"stopped {one}")
