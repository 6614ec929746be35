"""Run a component's unchanged line on pods of its own, and wait for it: a task of Kubeflow's.

    python -m components.launch --pods JSON -- python -m components.pretrain --params-json …

What follows `--` is what the task would run itself. Its inputs are addresses, or small folders that
stand for one; what it writes is brought here from the bucket, checked, when all pods are done.

Where the pods do the work in parts (`validate`, `shard`), its inputs are sent to the bucket for
them, and what they leave there is joined by another task.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bigtransfer.arguments import Parser
from bigtransfer.config import DatasetParams, LaunchParams, PretrainParams, from_json, parts_at
from bigtransfer.errors import BigTransferError, ConfigError, InfrastructureError, StorageError
from bigtransfer.kubeflow.job import Launch, out
from components.interface import Component, Stage, main

if TYPE_CHECKING:
    from bigtransfer.kubeflow.objects import Objects
    from bigtransfer.storage.places import Target


_TOLD = "BIGTRANSFER_KFP_"
"""Beginning of the variables by which a task knows its run."""


def launch_line(argv: Sequence[str]) -> NoReturn:
    """Do what the command line says, and end with the component's own code."""
    pods, module, rest = _parsed(argv)
    component: Component = import_module(module).COMPONENT
    sys.argv = [module, *rest]
    main(component, partial(_run, pods, component), tracked=False)


def _parsed(argv: Sequence[str]) -> tuple[LaunchParams, str, list[str]]:
    at = argv.index("--") if "--" in argv else len(argv)
    own, line = list(argv[:at]), list(argv[at + 1 :])
    parser = Parser(
        prog="python -m components.launch",
        description="Run a component on pods of its own and wait for it.",
        epilog="After --, the component's own line.",
    )
    parser.add_argument(
        "--pods", required=True, metavar="JSON", help="what they take; from cluster:"
    )
    arguments = parser.parse_args(own)
    if len(line) < 3 or line[1] != "-m" or not line[2].startswith("components."):
        parser.error("-- python -m components.<name> … is missing")
    try:
        pods = from_json(arguments.pods, LaunchParams, "--pods")
        told = {key: text for key, text in os.environ.items() if key.startswith(_TOLD)}
        pods = pods.model_copy(update={"told": {**pods.told, **told}})
    except BigTransferError as error:
        parser.error(str(error))
    if line[2] != f"components.{pods.component}":
        parser.error(f"--pods are for {pods.component}, the line is {line[2]}")
    return pods, line[2], line[3:]


def _run(pods: LaunchParams, component: Component, stage: Stage, params: Any, **paths: Any) -> None:
    """Launch it and wait."""
    if pods.parts is None:
        _run_together(pods, component, stage, params, paths)
    else:
        _run_in_parts(pods, component, stage, params, paths)


def _run_together(
    pods: LaunchParams,
    component: Component,
    stage: Stage,
    params: PretrainParams,
    paths: Mapping[str, Any],
) -> None:
    """Launch it, wait, and bring here what it wrote."""
    from bigtransfer.kubeflow.launcher import clear, launch
    from bigtransfer.kubeflow.node import is_sent
    from bigtransfer.storage.copying import copy_here
    from bigtransfer.storage.places import target_at
    from bigtransfer.storage.s3 import S3Path

    if params.checkpoint_mirror is None:
        raise ConfigError(
            f"{component.name}.checkpoint_mirror is null, and pods that may be lost keep nothing; "
            "give s3://…"
        )
    what = launch_of(pods, component, params, paths, params.checkpoint_mirror)
    objects, say = _cluster(), _sayer(stage)
    results = target_at(S3Path.parse(what.results))
    uid = ""
    if is_sent(results):  # a waiter before was lost with it in its hands: no pod is asked for
        say(f"it was done before: {what.results}")
    else:
        uid = launch(objects, what, say, is_done=lambda _: is_sent(results))
    scratch = stage.work / "launched" / what.name
    digest = copy_here(what.results, scratch)
    for flag in component.writes:
        _place(scratch / flag, paths[flag])
    clear(objects, what, uid, say)
    checkpoint = f"{what.results}/checkpoint"
    stage.told.update(job=what.name, address=checkpoint, sent_digest=digest)
    print(f"{component.name}: {checkpoint}, sha256 of all that it wrote {digest[:16]}")


def _run_in_parts(
    pods: LaunchParams,
    component: Component,
    stage: Stage,
    params: DatasetParams,
    paths: Mapping[str, Any],
) -> None:
    """Send what the pods read, launch them and wait; what they leave is joined by another task."""
    from bigtransfer.kubeflow.launcher import clear, launch
    from bigtransfer.storage.places import target_at
    from bigtransfer.storage.s3 import S3Path

    if params.shards_at is None:
        raise ConfigError(
            f"parts of {component.name} meet in a bucket, and datasets.{params.name}.shards_at is "
            "null; give data.shards_at=s3://…"
        )
    what = parts_of(pods, component, params, paths, params.shards_at)
    objects, say = _cluster(), _sayer(stage)
    sent = target_at(S3Path.parse(what.results) / what.name)
    for flag in component.reads:
        _send(paths[flag], flag, sent)
    uid = launch(objects, what, say, is_done=lambda uid: sent.get(_done(uid)) is not None)
    sent.put_bytes(_done(uid), b"")  # for who waits for the same Job, and finds it removed
    clear(objects, what, uid, say)
    stage.told.update(job=what.name)
    print(f"{component.name}: {pods.parts} parts of dataset {params.name!r} are done")


def _done(uid: str) -> str:
    """Return the name of what lies beside the inputs of parts when a Job has done them."""
    return f"done-{uid}"


def _cluster() -> Objects:
    from bigtransfer.kubeflow import kube
    from bigtransfer.kubeflow.objects import Objects

    found, why = kube.at_hand()
    if found is None:
        raise InfrastructureError(f"Kubernetes cannot be reached: {why}")
    return Objects(found, kube.namespace_here())


def _sayer(stage: Stage) -> Callable[[str], None]:
    return partial(print, f"{stage.name}:", file=sys.stderr, flush=True)


def parts_of(
    pods: LaunchParams,
    component: Component,
    params: DatasetParams,
    paths: Mapping[str, Any],
    bucket: str,
) -> Launch:
    """Return what is launched to do a dataset in parts, under the fingerprint of the work.

    Args:
        pods: That do it.
        component: Whose line each runs.
        params: Of the dataset.
        paths: Of its inputs, here.
        bucket: Prefix at which the dataset's shards lie.
    """
    from bigtransfer.kubeflow.job import brought
    from bigtransfer.storage import sha256_json
    from bigtransfer.storage.copying import digest_when_copied

    seen = {flag: digest_when_copied(paths[flag]) for flag in component.reads}
    key = {"params": params.model_dump(mode="json"), "data": seen, "code": pods.image,
           "parts": pods.parts}  # fmt: skip
    name = f"{component.name}-{sha256_json(key)[:16]}"
    place = f"{bucket.rstrip('/')}/launched"
    line = ["-m", f"components.{component.name}", "--params-json", params.model_dump_json()]
    brings = {}
    for flag in component.reads:
        below = "" if paths[flag].is_dir() else f"/{paths[flag].name}"
        brings[brought(flag)] = (seen[flag], f"{place}/{name}/{flag}{below}")
        line += [f"--{flag}", brought(flag) + below]
    for flag in component.writes:
        line += [f"--{flag}", out(flag)]
    if "parts" in component.options:
        line += ["--parts", parts_at(bucket)]
    return Launch(name, pods, tuple(line), place, _run_id(), brings)


def _send(path: Path, flag: str, place: Target) -> None:
    """Send an input, a file or a folder, to where the pods bring it from."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    for one in files:
        own = one.name if one == path else one.relative_to(path).as_posix()
        place.put(f"{flag}/{own}", one)


def launch_of(
    pods: LaunchParams,
    component: Component,
    params: PretrainParams,
    paths: Mapping[str, Any],
    mirror: str,
) -> Launch:
    """Return what is launched, under the fingerprint of the training.

    Raises:
        ConfigError: If an input is no address that every pod can read.
    """
    from bigtransfer.storage import sha256_json

    line = ["-m", f"components.{component.name}", "--params-json", params.model_dump_json()]
    seen = {}
    for flag in component.reads:
        address, seen[flag] = _address(flag, paths[flag])
        line += [f"--{flag}", address]
    for flag in component.writes:
        line += [f"--{flag}", out(flag)]
    recipe = params.recipe | {key: getattr(params, key) for key in params.SCHEDULE}
    code = None if params.resume == "any_code" else pods.image
    name = f"{component.name}-{sha256_json({'recipe': recipe, 'data': seen, 'code': code})[:16]}"
    how = sha256_json({"pods": pods.identity(), "line": line})[:16]
    results = f"{mirror.rstrip('/')}/launched/{name}/{how}"
    return Launch(name, pods, tuple(line), results, _run_id())


def _run_id() -> str:
    return os.environ.get("KFP_RUN_ID", "").strip()


def _address(flag: str, given: Any) -> tuple[str, str]:
    """Return the address of an input, and what says that it is the same data."""
    from bigtransfer.storage.pointer import pointed_to

    if not isinstance(given, Path):
        return str(given), str(given)
    found = pointed_to(given)
    if found is None:
        raise ConfigError(
            f"--{flag} {str(given)!r} are shards themselves, which no other pod sees; give "
            "data.shards_at=s3://…, or cluster.launcher=task"
        )
    return found


def _place(came: Path, path: Path) -> None:
    """Move what came to where the task is asked to leave it; a folder with its manifest."""
    if not came.exists():
        raise StorageError(f"{came.name!r} is not among what the pods wrote; submit again")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)  # of an attempt before, in this very pod
    shutil.move(came, path)


if __name__ == "__main__":
    launch_line(sys.argv[1:])
