"""What is looked at before a pipeline is submitted: refuse what cannot run, and say what it takes.

A run that cannot end well says so in a cluster late or never: an image that no node can pull waits
for ever, a training of a year is killed after a week.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from bigtransfer.config import (
    FEWEST_IN_PARTS,
    GPU,
    IN_PARTS,
    LAUNCHED,
    PLACED,
    TPU,
    ClusterParams,
    Params,
    WeightsParams,
    from_json,
)
from bigtransfer.errors import ConfigError
from bigtransfer.kubeflow.cluster_check import provider_lines
from bigtransfer.kubeflow.forecast import examples_of, forecast
from bigtransfer.kubeflow.launch_faults import WAITER, launch_faults, parted
from bigtransfer.progress import counted

_BYTES_PER_IMAGE = {"validate": 350, "shard": 800, "audit": 1_500}
"""Memory of a process for each image of a dataset: `benchmarks/validate_memory.py` printed 343 for
`validate`; with 300,000 rows 753 were seen for the plan of `shard`, 1,498 for a whole manifest, as
`audit` reads two of."""
_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_PAUSE_SECONDS = 60
_START_SECONDS = 60
"""Of a pod: to be placed, to pull its image, to fetch its inputs."""
_TRACKING = "MLFLOW_TRACKING_URI"
_NO_MLFLOW = (
    "cluster.tracking_uri is null, so no task would reach MLflow and `register` would fail after "
    "all the work; give cluster.tracking_uri=http://… (with a password: MLFLOW_TRACKING_URI under "
    "cluster.secrets)"
)
_DEVICES = {"pretrain": ("cuda", "tpu"), "finetune": ("cuda",), "evaluate": ("cuda",)}
"""Component -> what it can train or score on, besides the CPU."""


def refuse_impossible(params: Params, components: Collection[str]) -> None:
    """Refuse what cannot run on a cluster, all faults at once.

    Args:
        params: Of the pipeline.
        components: That are in it.

    Raises:
        ConfigError: Names each fault and the way on.
    """
    faults = [*_faults(params, set(components))]
    if faults:
        raise ConfigError("\n".join(faults))


def refuse_too_long(params: Params, components: Collection[str]) -> None:
    """Refuse a training that takes longer than cluster.longest_days.

    Raises:
        ConfigError: Says how long, from which rate, and the way on.
    """
    examples = examples_of(params)
    if "pretrain" not in components or examples is None:
        return
    made, longest = forecast(params, examples), params.cluster.longest_days
    if made.days > longest:
        raise ConfigError(
            f"pretrain would take {made}, more than cluster.longest_days: {longest:g}; give its "
            "pool more accelerators (cluster.pools.<pool>.count), a smaller pretrain.architecture "
            "or fewer pretrain.epochs; --yes submits it all the same"
        )


def said_beforehand(params: Params, tasks_of: Iterable[str], root: str | None) -> Iterator[str]:
    """Say what a run takes of the cluster, and how long a refusal may last.

    Args:
        params: Of the pipeline.
        tasks_of: The component of each of its tasks.
        root: Where artifacts go; None: KFP's own place.
    """
    cluster = params.cluster
    components = Counter(tasks_of)
    pools: Counter[str] = Counter()
    for component, tasks in components.items():
        in_parts = parted(params, component, components)
        waiting = len(in_parts)  # a task each that waits, on the pool of those that do
        pools[_pool_name(cluster, WAITER)] += waiting
        pods = cluster.nodes_of(component) if component in LAUNCHED else 1
        pools[_pool_name(cluster, component)] += (tasks - waiting) * pods
        for name, parts in in_parts.items():
            pools[_pool_name(cluster, component)] += cluster.nodes_of(component)
            yield (
                f"launch   {component}@{name}: a Job of {parts} parts, "
                f"{counted(cluster.nodes_of(component), 'pod')} at once, beside this run; they "
                f"meet at {params.datasets[name].shards_at}"
            )
        if params.launcher_of(component) is not None:
            yield (
                f"launch   {component}: {_launched_as(params, component)}, beside this run "
                "(`bigtransfer cluster list`); checkpoints and results go to "
                f"{params.pretrain.checkpoint_mirror} (pretrain.checkpoint_mirror)"
            )
    pools = +pools  # without those that nothing is placed on
    for name, tasks in sorted(pools.items()):
        pool = cluster.pools[name]
        what = f"{pool.cpu} CPU, {pool.memory}"
        if pool.accelerator is not None:
            what += f", {pool.count} {pool.accelerator}"
        price = f", {pool.price_per_hour:g} an hour each" if pool.price_per_hour else ""
        yield f"pool     {name}: {counted(tasks, 'pod')} of {what}{price}"
    if "pretrain" in components and (examples := examples_of(params)) is not None:
        yield f"pretrain {forecast(params, examples)}"
    most = max((cluster.attempts_of(component) for component in components), default=1)
    minutes = (most * _START_SECONDS + (most - 1) * _PAUSE_SECONDS) / 60
    after = f"retries  wrong input ends a run after {most} attempt{'s' * (most != 1)} at most"
    if _can_leave(cluster, root):
        yield f"{after}, about {minutes:.0f} minutes, where the cluster tries failed tasks again"
    else:
        yield (
            f"{after}, each with all its work, where the cluster tries failed tasks again: tasks "
            "can leave no word beside the artifacts (cluster.secrets: AWS_ACCESS_KEY_ID, …; an "
            "s3:// root, or minio:// and AWS_ENDPOINT_URL)"
        )
    for component, hours in cluster.timeout_hours.items():
        if component in components:
            yield f"limit    {component}: {hours:g} h an attempt (cluster.timeout_hours)"


def _pool_name(cluster: ClusterParams, component: str) -> str:
    pool = cluster.pool_of(component)
    return next(name for name, one in cluster.pools.items() if one is pool)


def _launched_as(params: Params, component: str) -> str:
    kind = "TrainJob" if params.launcher_of(component) == "trainjob" else "Job"
    pods = counted(params.cluster.nodes_of(component), "pod")
    queue = f" in queue {params.cluster.queue}" if params.cluster.queue else ""
    return f"a {kind} of {pods}{queue}"


def _can_leave(cluster: ClusterParams, root: str | None) -> bool:
    """Say whether a refused task can let its next attempt know."""
    names = {*cluster.env, *cluster.secrets}
    endpoint = bool(names & {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"})
    keys = any("AWS_" in name for name in names - {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"})
    reached = endpoint if root is None or root.startswith("minio://") else root.startswith("s3://")
    return reached and (keys or cluster.service_account is not None)


def notes(params: Params, components: Collection[str]) -> Iterator[str]:
    """Say what a run will lack that its params could give."""
    if "pretrain" in components:
        if params.pretrain.checkpoint_mirror is None:
            yield (
                "pretrain.checkpoint_mirror is null, so a training whose node is lost begins anew; "
                "give pretrain.checkpoint_mirror=s3://…"
            )
        upstream = params.datasets[params.pretrain.dataset]
        if examples_of(params) is None and upstream.source is not None:
            yield (
                "how long pretrain takes is not known: give pretrain.examples, or "
                f"datasets.{upstream.name}.examples"
            )
    for component in ("pretrain", "finetune"):
        if component not in components:
            continue
        pool = params.cluster.pool_of(component)
        if pool.accelerator is not None and "cpu" in _asked(params)[component]:
            yield f"{component} is placed on {pool.accelerator}, and its device is cpu"
    for component in IN_PARTS:
        if component in components and params.cluster.parts_of(component) > 1:
            if not parted(params, component, components) and params.cluster.launcher != "task":
                yield (
                    f"cluster.nodes.{component}: no dataset with a source is known to have "
                    f"{FEWEST_IN_PARTS:,} images or more (datasets.<name>.examples), so each is "
                    "done in one task"
                )
    endpoint = params.cluster.env.get("AWS_ENDPOINT_URL", "")
    port = urlsplit(endpoint).port or (443 if endpoint.startswith("https") else 80)
    if params.launches(upstream="pretrain" in components) and endpoint and port != 443:
        yield (
            f"AWS_ENDPOINT_URL is at port {port}: the NetworkPolicy bigtransfer-launched lets "
            "launched pods out to 443 alone; add the port in your overlay"
        )


def notes_on_root(root: str | None, cluster: ClusterParams | None) -> Iterator[str]:
    """Say what a pipeline root of one's own needs of the cluster."""
    if root is not None:
        yield (
            f"artifacts go to {root}: Kubeflow Pipelines without ML Metadata takes them outside of "
            "its own root where ConfigMap kfp-launcher has, under providers:\n"
            + provider_lines([root], {}, cluster)
            + "\n      (`bigtransfer doctor --cluster` looks whether it has)"
        )


def components_of(package: str) -> list[str]:
    """Return the component of each task of a compiled package that runs one of ours."""
    spec, _ = _parsed(package)
    boxes = _ours(spec)
    labels = {name: own.get("executorLabel") for name, own in spec.get("components", {}).items()}
    tasks = spec["root"].get("dag", {}).get("tasks", {}).values()
    used = [str(labels.get(task.get("componentRef", {}).get("name"))) for task in tasks]
    return [_component(boxes[label]) for label in used if label in boxes]


def refuse_package(package: str, values: Mapping[str, Any]) -> None:
    """Refuse a compiled package of ours that cannot run, as far as it says so itself.

    Args:
        package: Its YAML.
        values: What is given for its parameters.

    Raises:
        ConfigError: Names each fault and the way on.
    """
    spec, platform = _parsed(package)
    ours = _ours(spec)
    faults = dict.fromkeys(
        fault
        for box in ours.values()
        if (fault := _image_fault(str(box["image"]).rpartition(":")[0]))
    )
    for label, box in ours.items():
        if _component(box) == "register" and not _names_mlflow(box, platform.get(label, {})):
            faults[_NO_MLFLOW] = None
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    if ours and "pretrained" in inputs:
        text = str(values.get("pretrained", inputs["pretrained"].get("defaultValue", "")))
        address = from_json(text, WeightsParams, "pretrained").address
        if is_local(address):
            faults[f"pretrained is {address!r}, a path of this machine; give pretrained=s3://…"] = (
                None
            )
    if faults:
        raise ConfigError("\n".join(faults))


def is_local(address: str) -> bool:
    """Say whether an address is a path of this machine, which no node of a cluster sees."""
    handed_out = address.startswith(("mlflow-artifacts:", "runs:"))
    return ("://" not in address and not handed_out) or address.startswith("file://")


def _names_mlflow(container: Mapping[str, Any], platform: Mapping[str, Any]) -> bool:
    known = {str(pair.get("name")) for pair in container.get("env", [])}
    for secret in platform.get("secretAsEnv", []):
        known |= {str(pair.get("envVar")) for pair in secret.get("keyToEnv", [])}
    return _TRACKING in known


def _ours(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the containers that run a component of ours, whatever its task is called."""
    executors = spec.get("deploymentSpec", {}).get("executors", {})
    boxes = {label: own["container"] for label, own in executors.items() if "container" in own}
    return {label: box for label, box in boxes.items() if _component(box)}


def _component(container: Mapping[str, Any]) -> str:
    """Return the component that a container runs; empty, where it is none of ours."""
    name = str((container.get("command") or [""])[-1])
    short = name.removeprefix("components.")
    return short if short != name and short in PLACED else ""


def _parsed(package: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a package's spec, and what of its executors only Kubernetes knows."""
    import yaml  # kfp's own, in C: a package is long

    try:
        documents = list(yaml.load_all(package, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ConfigError(f"the package is no YAML: {str(error).splitlines()[0]}") from error
    if not documents or not isinstance(documents[0], dict) or "root" not in documents[0]:
        raise ConfigError("the package is no compiled pipeline; compile its source anew")
    platform = documents[1] if len(documents) > 1 and isinstance(documents[1], dict) else {}
    known = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
    return documents[0], known.get("executors", {})


def _image_fault(image: str) -> str | None:
    registry, slash, _ = image.partition("/")
    if slash and (set(".:") & set(registry) or registry == "localhost"):
        return None
    return (
        f"the images are called {image!r}, which names no registry, so no node could pull them and "
        "the run would wait for ever; push them and give "
        "cluster.image=registry.example/me/bigtransfer (where they are loaded onto the nodes: "
        "cluster.image=docker.io/library/bigtransfer)"
    )


def _faults(params: Params, components: set[str]) -> Iterator[str]:
    cluster = params.cluster
    if fault := _image_fault(cluster.image):
        yield fault
    named = cluster.tracking_uri or _TRACKING in {*cluster.env, *cluster.secrets}
    if "register" in components and not named:
        yield _NO_MLFLOW
    yield from training_faults(params, components)
    yield from _size_faults(params, components)
    yield from launch_faults(params, components)


def training_faults(params: Params, components: set[str]) -> Iterator[str]:
    """Yield why the pools of components that train or score cannot do that.

    Args:
        params: Of the pipeline.
        components: That are in it.
    """
    yield from _device_faults(params, components)
    yield from _spot_faults(params, components)


def _device_faults(params: Params, components: set[str]) -> Iterator[str]:
    asked = _asked(params)
    for component, possible in _DEVICES.items():
        if component not in components:
            continue
        pool = params.cluster.pool_of(component)
        name = params.cluster.placement[component]
        has = {None: "cpu", TPU: "tpu"}.get(pool.accelerator, "cuda")
        if has == "tpu" and "tpu" not in possible:
            yield (
                f"cluster.placement.{component} is {name!r}, a pool of TPUs, which {component} "
                f"does not use; give it a pool of CPUs or of {GPU}"
            )
            continue
        for device in sorted(asked[component] - {"auto", "cpu", has}):
            key = "tasks' finetune.device" if component == "finetune" else f"{component}.device"
            yield (
                f"{key} is {device!r}, but cluster.placement.{component} is {name!r}, a pool "
                + ("without accelerators" if has == "cpu" else f"of {pool.accelerator}")
                + "; change one of the two"
            )


def _asked(params: Params) -> dict[str, set[str]]:
    """Return the devices that components are told to use."""
    return {
        "pretrain": {params.pretrain.device},
        "finetune": {task.device for task in params.tasks.values()},
        "evaluate": {params.evaluate.device},
    }


def _spot_faults(params: Params, components: set[str]) -> Iterator[str]:
    mirrors = {
        "pretrain": [("pretrain", params.pretrain.checkpoint_mirror)],
        "finetune": [
            (f"tasks.{name}", task.checkpoint_mirror) for name, task in params.tasks.items()
        ],
    }
    for component, listed in mirrors.items():
        lacking = [key for key, mirror in listed if mirror is None]
        if component in components and params.cluster.pool_of(component).spot and lacking:
            key = "finetune" if component == "finetune" else lacking[0]
            yield (
                f"{component} is placed on spot nodes, and {lacking[0]}.checkpoint_mirror is null: "
                f"every lost node would begin it anew; give {key}.checkpoint_mirror=s3://…"
            )


def _size_faults(params: Params, components: set[str]) -> Iterator[str]:
    for name, dataset in params.datasets.items():
        examples = params.examples_of(name) if "pretrain" in components else dataset.examples
        if examples is None:
            continue
        for component, each in _BYTES_PER_IMAGE.items():
            memory = params.cluster.pool_of(component).memory
            if component in components and examples * each > _bytes(memory):
                yield (
                    f"dataset {name!r} has {examples:,} images, too many for {component} in "
                    f"{memory}: it takes about {examples * each / 1e9:,.0f} GB; give it a pool "
                    f"with that much (cluster.placement.{component}=…; "
                    "docs/guide/odd-data.md#large-sets)"
                )


def _bytes(text: str) -> float:
    """Return a quantity as Kubernetes writes it, e.g. 8Gi."""
    number = text.rstrip("EPTGMKi")
    unit = text[len(number) :]
    if not unit:
        return float(number)
    power = "KMGTPE".index(unit[0]) + 1
    return float(number) * (1024.0**power if unit.endswith("i") else _UNITS[unit[0]])
