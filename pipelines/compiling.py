"""Compile a pipeline beside its source: `python -m pipelines.bit_l` writes bit_l.kfp.yaml."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from bigtransfer import config
from bigtransfer.errors import BigTransferError
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.kubeflow.submission import Submission, submitting
from pipelines.dag import PROJECT, build

Maker = Callable[[str, Path | None], Any]
"""Builds a pipeline: its name, and the overlay beside its source if there is one."""


def compile_beside(
    name: str, file: str, *, pretrained: str | None = None, maker: Maker | None = None
) -> None:
    """Write the compiled package of a pipeline, as the command line says.

    Its images are named by the digest of the sources that they are built of, so that a package
    never means two programs.

    Args:
        name: Of the pipeline.
        file: Its source, e.g. pipelines/bit_l.py; an overlay of the same name is laid over.
        pretrained: Address of given weights.
        maker: What builds it; None: the DAG of params.yaml.
    """
    if maker is None:
        maker = partial(build, pretrained=pretrained)
    arguments = _parser(Path(file).name).parse_args()
    try:
        written = _compile(name, Path(file), maker, arguments)
    except BigTransferError as error:
        print(f"{Path(file).name}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(written)


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"Compile {name}.", allow_abbrev=False)
    add = parser.add_argument
    add("--overlay", type=Path, metavar="FILE", help="YAML laid over params.yaml and its own")
    add(
        "--image",
        metavar="NAME",
        help="registry and name of the images, e.g. registry.example/me/bigtransfer (default: "
        "params.yaml: cluster.image)",
    )
    add("--tag", metavar="TAG", help="of the images (default: the digest of these sources)")
    add("--to", type=Path, metavar="FILE", help="(default: beside the source, .kfp.yaml)")
    add(
        "--kubernetes",
        metavar="NAMESPACE",
        help="write custom resources for `kubectl apply` instead (KFP in Kubernetes-native mode): "
        ".k8s.yaml",
    )
    return parser


def _compile(name: str, file: Path, maker: Maker, arguments: argparse.Namespace) -> Path:
    changes = config.read_yaml(arguments.overlay) if arguments.overlay else {}
    if arguments.image:
        changes = config.laid_over(changes, {"cluster": {"image": arguments.image}}, whole=False)
    tag = arguments.tag or source_tag(PROJECT)
    own = file.with_suffix(".yaml")
    with submitting(Submission(tag, changes)):
        pipeline: Any = maker(name, own if own.is_file() else None)
    namespace = arguments.kubernetes
    suffix = ".kfp.yaml" if namespace is None else ".k8s.yaml"
    target: Path = arguments.to or file.with_suffix(suffix)
    compiler.Compiler().compile(
        pipeline,
        str(target),
        kubernetes_manifest_format=namespace is not None,
        kubernetes_manifest_options=None
        if namespace is None
        else KubernetesManifestOptions(
            pipeline_name=pipeline.name,
            pipeline_version_name=f"{pipeline.name}-{tag}",
            namespace=namespace,
            include_pipeline_manifest=True,
        ),
    )
    return target
