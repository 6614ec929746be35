"""The commands `kfp` and `bigtransfer kfp`: Kubeflow's own, and `kfp run submit|create FILE.py`.

Stock kfp takes compiled packages alone, and builds its client before it reads the command. This
entrance handles a pipeline file; everything else goes to upstream untouched. `kfp_hook` has
upstream's script call it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bigtransfer import extras
from bigtransfer.arguments import Parser
from bigtransfer.errors import BigTransferError, ConfigError

_ACTIONS = ("submit", "create")
_SUFFIXES = (".py", ".yaml", ".yml")
_GLOBAL = ("--endpoint", "-n", "--namespace", "--existing-token", "--iap-client-id", "--output",
           "--other-client-id", "--other-client-secret")  # fmt: skip
_INTERRUPTED = 130


def main() -> NoReturn:
    """Submit a pipeline file, or be upstream's `kfp`."""
    if not is_installed():
        print(
            f"kfp: Kubeflow Pipelines' client is not installed; {extras.install('kfp')}",
            file=sys.stderr,
        )
        sys.exit(ConfigError.exit_code)
    words = ours(sys.argv[1:])
    if words is None:
        sys.path.insert(0, str(Path.cwd()))  # for `kfp dsl compile --py pipelines/bit_l.py`
        from bigtransfer.kubeflow.upstream import main as upstream

        sys.exit(upstream())
    try:
        sys.exit(_submit(parser().parse_intermixed_args(words)))
    except BigTransferError as error:
        print(f"kfp run submit: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def is_installed() -> bool:
    """Return whether Kubeflow's client is here; nothing of it is imported."""
    return extras.is_installed("kfp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line of `bigtransfer kfp`, for its line in the help."""
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="…", help="as `kfp` takes them")


def run(arguments: argparse.Namespace) -> NoReturn:
    """Be `kfp` with these words."""
    sys.argv = ["kfp", *arguments.words]
    main()


def ours(words: Sequence[str]) -> list[str] | None:
    """Return the words of a command line that is ours, global options last; None: upstream's."""
    before: list[str] = []
    rest = list(words)
    while rest and rest[0] != "run":
        taken = 2 if rest[0] in _GLOBAL else 1
        if not rest[0].startswith("-"):
            return None
        before, rest = before + rest[:taken], rest[taken:]
    if len(rest) < 2 or rest[1] not in _ACTIONS:
        return None
    own = rest[2:]
    files = [
        word
        for previous, word in zip(["", *own], own, strict=False)
        if word.endswith(_SUFFIXES)
        and "=" not in word
        and previous not in ("-f", "--package-file", "--params")
    ]
    if files or not own or "--help" in own or "-h" in own or "--local" in own:
        return [*own, *before]
    return None


def parser() -> Parser:
    """Return the command line of `kfp run submit`."""
    result = Parser(
        prog="kfp run submit",
        description="Compile a pipeline file and submit it to Kubeflow Pipelines, or run it on "
        "this machine's Docker. KEY=VALUE is a parameter of the pipeline, or, with a dot in KEY, "
        "a value of params.yaml, e.g. pretrain.epochs=3.",
        epilog="Exit codes: 0 done, 2 yours to mend, 75 try again. Options of upstream's own "
        "`kfp run create -f PACKAGE …` stay what they are.",
    )
    add = result.add_argument
    add("file", type=Path, metavar="FILE", help="pipeline (.py) or package (.yaml)")
    add("values", nargs="*", metavar="KEY=VALUE", help="parameters")
    add(
        "--endpoint",
        metavar="URL",
        help="of the KFP API (default: KFP_ENDPOINT, KF_PIPELINES_ENDPOINT, params.yaml: "
        "cluster.endpoint)",
    )
    add("-n", "--namespace", metavar="NAME", help="(default: params.yaml: cluster.namespace)")
    add("--existing-token", metavar="TOKEN", help="bearer token; KFP_TOKEN keeps it out of sight")
    add("--iap-client-id", metavar="ID", help="of Identity-Aware Proxy (KFP_COOKIES: Dex)")
    add("--other-client-id", metavar="ID", help="of a desktop client, for the same")
    add("--other-client-secret", metavar="TEXT", help="its secret; or KFP_OTHER_CLIENT_SECRET")
    add("-e", "--experiment-name", metavar="NAME", help="(default: the pipeline's name)")
    add("-r", "--run-name", metavar="NAME", help="(default: pipeline and time)")
    add("--pipeline", metavar="NAME", help="which one, where FILE holds several")
    add(
        "--params",
        type=Path,
        metavar="FILE",
        help="YAML laid over params.yaml and the pipeline's own overlay",
    )
    add(
        "-w",
        "--wait",
        action="store_true",
        help="show the tasks until the run ends, and why one failed; exit 3: a gate said no, 75: "
        "tasks were lost, 2: anything else",
    )
    add(
        "--resubmit",
        type=int,
        metavar="N",
        help="with --wait: submit the same again, at most so often, where tasks were lost (a pod "
        "deleted or evicted, a node gone); what is cached is not done again",
    )
    add(
        "--fresh",
        action="store_true",
        help="list the sources, do parts and cells of a study anew, though their addresses are the "
        "same (else cached)",
    )
    add("--no-cache", action="store_true", help="run every task, though its inputs are known")
    add(
        "--pipeline-root",
        metavar="URL",
        help="where its artifacts are kept (default: params.yaml: cluster.pipeline_root)",
    )
    add(
        "--service-account",
        metavar="NAME",
        help="of its pods (default: params.yaml: cluster.service_account)",
    )
    add(
        "-y",
        "--yes",
        action="store_true",
        help="submit though the forecast is above cluster.longest_days",
    )
    add("--local", action="store_true", help="run it here, in Docker, instead of on a cluster")
    return result


def _submit(arguments: argparse.Namespace) -> int:
    project = Path.cwd()
    _check_words(arguments)
    from bigtransfer.kubeflow import submit as kfp_submit

    if arguments.local:
        kfp_submit.run_here(project, arguments)
        return 0
    cluster = kfp_submit.cluster_of(project, arguments)
    endpoint = kfp_submit.endpoint_of(arguments.endpoint, cluster)
    if endpoint is None:
        raise ConfigError(
            "no cluster is named. Say where Kubeflow Pipelines is with --endpoint URL, "
            "KFP_ENDPOINT or cluster.endpoint in params.yaml; or run it here: --local "
            f"(`kfp run submit {arguments.file} --local`) in Docker, or `dvc repro` without"
        )
    kfp_submit.submit(project, endpoint, cluster, arguments)
    return 0


def _check_words(arguments: argparse.Namespace) -> None:
    path: Path = arguments.file
    if not path.is_file():
        raise ConfigError(f"{str(path)!r} does not exist; e.g. pipelines/bit_l.py")
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"{str(path)!r} is neither a pipeline (.py) nor a package (.yaml)")
    for value in arguments.values:
        if "=" not in value:
            raise ConfigError(f"{value!r}: write KEY=VALUE, e.g. pretrain.epochs=3")
    if arguments.local and path.suffix != ".py":
        raise ConfigError("--local takes a pipeline file (.py), not a package")


if __name__ == "__main__":
    main()
