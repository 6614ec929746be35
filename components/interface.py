"""What every component has in common: its declaration, its command line, its exit code.

A component declares itself as data, `COMPONENT = Component(...)`, and has one function
`run(stage, params, **paths)`. From the declaration come the parser, the typed params and the checks
that inputs exist; nothing heavy is imported before they pass.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from bigtransfer.arguments import Parser
from bigtransfer.errors import (
    BigTransferError,
    ConfigError,
    InfrastructureError,
    StorageError,
)

if TYPE_CHECKING:
    from bigtransfer.config import Section
    from bigtransfer.track.journal import Journal
    from components.executor import ExecutorInput

EXECUTOR_INPUT = "--executor-input"
"""The one flag that DVC's lines do not have."""
STAGE = "BIGTRANSFER_STAGE"
"""Environment variable by which a cluster says which stage this is; sections need not know."""
JOB = "BIGTRANSFER_JOB"
"""Environment variable of a pod that a task launched (`components.launch`)."""
CELL = "BIGTRANSFER_CELL"
"""Environment variable of the stages that a cell of a study runs in its task: the cell's stage."""
_INTERRUPTED = 130


@dataclass(frozen=True)
class Component:
    """The declaration of a component: what `--help` shows and what the DAG test compares."""

    name: str
    summary: str
    """What it does, one sentence."""
    params: str
    """Class of its section in `bigtransfer.config`."""
    section: str
    """Section of params.yaml: `pretrain`, or a family with an entry to name: `datasets.<name>`."""
    reads: Mapping[str, str] = field(default_factory=dict)
    """Flag -> what the path must hold."""
    reads_each: Mapping[str, str] = field(default_factory=dict)
    """The same of flags that are given several times, each with a name and a path; `run` gets name
    -> path."""
    writes: Mapping[str, str] = field(default_factory=dict)
    """Flag -> what is written there."""
    addresses: tuple[str, ...] = ()
    """Flags that take an `s3://` address as well as a path."""
    in_place: tuple[str, ...] = ()
    """Flags among `reads` whose folder may be packed in volumes (`storage.volumes`)."""
    kept: tuple[str, ...] = ()
    """Flags among `writes` whose last version stays until the new one is complete, though DVC takes
    it away beforehand."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Optional flag -> what it is for; `run` gets its text, or None."""

    @property
    def params_class(self) -> type[Section]:
        """Return the typed params of this component."""
        from bigtransfer import config

        found: type[Section] = getattr(config, self.params)
        return found


@dataclass(frozen=True)
class Stage:
    """One execution of a component: where it keeps resumable state, whom it tells what happens."""

    name: str
    """As in DVC and KFP, e.g. `finetune@digits`."""
    project: Path
    work: Path
    journal: Journal
    is_task: bool = False
    """Whether Kubeflow Pipelines runs it: what is written here is safe only when its launcher has
    sent it, after our end."""
    told: dict[str, str] = field(default_factory=dict)
    """Facts that Kubeflow Pipelines keeps with every output of this stage."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note points of curves."""
        self.journal.metrics(step, {k: v for k, v in metrics.items() if isinstance(v, int | float)})


Run = Callable[..., None]


def main(component: Component, run: Run, *, tracked: bool = True) -> NoReturn:
    """Run a component from its command line and end the process with its code.

    Args:
        component: Its declaration.
        run: Does it.
        tracked: Whether it is a run in MLflow; not where another process is that.
    """
    arguments = parser(component).parse_args()
    stage = _stage_name(component, arguments)
    try:
        _execute(component, run, arguments, stage, tracked=tracked)
    except BigTransferError as error:
        _fail(stage, error.exit_code, str(error))
    except KeyboardInterrupt:
        _fail(stage, _INTERRUPTED, "interrupted; run the same again to go on")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _fail(stage, 1, "nobody reads the output any more")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("", "bigtransfer", "components"):
            _leave_by_bug(stage, error)
        _fail(
            stage,
            2,
            f"{sys.executable} has no module {error.name!r}, so it is not this project's Python; "
            "activate its environment (`. .venv/bin/activate`), or make it (`make run`)",
        )
    except Exception as error:
        _leave_by_bug(stage, error)
    _leave(0)


def parser(component: Component) -> argparse.ArgumentParser:
    """Return the command line that the declaration describes."""
    family = component.section.endswith("<name>")
    result = Parser(
        prog=f"python -m components.{component.name}",
        description=component.summary,
        epilog="Exit codes: 0 done, 2 yours to mend, 3 a gate said no, 4 another run writes the "
        "same output, 75 try again, 1 our bug.",
    )
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--params", type=Path, metavar="FILE", help="params.yaml, from which the section is read"
    )
    source.add_argument(
        "--params-json", metavar="TEXT", help="the resolved section itself, as JSON text (KFP)"
    )
    result.add_argument(
        "--overlay", type=Path, metavar="FILE", help="YAML laid over --params: only what differs"
    )
    result.add_argument(
        "--section",
        required=False,
        default=None if family else component.section,
        metavar="NAME",
        help=f"section of --params: {component.section}"
        + ("" if family else " (default: %(default)s)"),
    )
    for verb, flags in (("reads", component.reads), ("writes", component.writes)):
        for flag, text in flags.items():
            result.add_argument(
                _flag(flag),
                type=_place if flag in component.addresses else Path,
                required=True,
                metavar="PATH",
                help=f"{verb}: {text}",
            )
    for flag, text in component.reads_each.items():
        result.add_argument(
            _flag(flag), nargs=2, action="append", required=True, metavar=("NAME", "PATH"),
            help=f"reads: {text}",
        )  # fmt: skip
    for flag, text in component.options.items():
        result.add_argument(_flag(flag), metavar="TEXT", help=text)
    result.add_argument(
        EXECUTOR_INPUT,
        metavar="JSON",
        help="what Kubeflow Pipelines fills in: then outputs are reported to it, and what may work "
        "the next time (75) is tried five times",
    )
    return result


def _place(text: str) -> Any:
    """Return a path, or the place in a bucket that an address names."""
    from bigtransfer.storage.places import place_at

    try:
        return place_at(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _stage_name(component: Component, arguments: argparse.Namespace) -> str:
    entry = (arguments.section or "").partition(".")[2]
    if not entry and arguments.params_json:
        try:
            entry = json.loads(arguments.params_json).get("name", "")
        except (ValueError, AttributeError):
            entry = ""
    given = os.environ.get("DVC_STAGE") or os.environ.get(STAGE)
    return given or (f"{component.name}@{entry}" if entry else component.name)


def _execute(
    component: Component,
    run: Run,
    arguments: argparse.Namespace,
    stage_name: str,
    *,
    tracked: bool,
) -> None:
    from bigtransfer.storage import lock, sha256_json

    if _leads():
        _put_back([getattr(arguments, name) for name in component.kept])
    executor = _executor(arguments)
    params = _params(component, arguments)
    reads = {name: getattr(arguments, name) for name in component.reads}
    writes = {name: getattr(arguments, name) for name in component.writes}
    each = {flag: _by_name(flag, getattr(arguments, flag)) for flag in component.reads_each}
    _check_inputs({**reads, **_one_by_one(each)})
    options = {name: getattr(arguments, name) for name in component.options}
    outputs = sorted(
        str(path.resolve()) if isinstance(path, Path) else str(path) for path in writes.values()
    )
    part = options.get("part")  # parts of one output may run at once
    with ExitStack() as held:
        if _leads():
            name = sha256_json([*outputs, *([part] if part else [])])[:16]
            lock_file = Path(".work") / "locks" / f"{component.name}-{name}.lock"
            held.enter_context(lock(lock_file, f"the output of {stage_name} ({outputs[0]})"))
        paths = {**reads, **each, **writes, **options}
        if executor is None:
            # The join of the parts is the run in MLflow; a thousand pods are none.
            is_run = tracked and not (part and JOB in os.environ)
            _run_tracked(component, run, params, paths, stage_name, tracked=is_run)
        else:
            _run_for(executor, component, run, params, paths, stage_name, tracked=tracked)


def _executor(arguments: argparse.Namespace) -> ExecutorInput | None:
    if not arguments.executor_input:
        return None
    from components.executor import ExecutorInput

    return ExecutorInput(arguments.executor_input)


def _run_for(
    executor: ExecutorInput,
    component: Component,
    run: Run,
    params: Section,
    paths: dict[str, Any],
    name: str,
    *,
    tracked: bool,
) -> None:
    """Run as a task of Kubeflow Pipelines."""
    from bigtransfer.retry import run_again
    from components.executor import refusing_once, unpacked

    say = partial(print, f"{name}:", file=sys.stderr, flush=True)
    told: dict[str, str] = {}

    def attempt() -> None:
        reads = {flag: paths[flag] for flag in component.reads}
        found = {**paths, **unpacked(reads, component.in_place, _work())}
        found |= {
            flag: unpacked(paths[flag], component.in_place, _work())
            for flag in component.reads_each
        }
        told.update(_run_tracked(component, run, params, found, name, tracked=tracked))

    with ExitStack() as held:
        if _leads():
            text = params.model_dump_json()
            held.enter_context(refusing_once(executor, name, text, say))
        if "RANK" in os.environ:  # `torchrun` starts its processes together
            attempt()
        else:
            run_again(attempt, say)
        if _leads():
            executor.report({flag: paths[flag] for flag in component.writes}, told)


def _by_name(flag: str, given: Sequence[Sequence[str]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in given:
        if name in found:
            raise ConfigError(f"{_flag(flag)} is given twice for {name!r}; once is wanted")
        found[name] = Path(path)
    return found


def _one_by_one(each: Mapping[str, Mapping[str, Path]]) -> dict[str, Path]:
    return {f"{flag} {name}": path for flag, own in each.items() for name, path in own.items()}


def _put_back(outputs: list[Path]) -> None:
    """Put back what DVC took away, so that a run that is stopped leaves what was there before."""
    from bigtransfer.storage.dvc_cache import put_back

    if "DVC_STAGE" in os.environ:
        for path in outputs:
            put_back(path, Path.cwd())


def _run_tracked(
    component: Component,
    run: Run,
    params: Section,
    paths: dict[str, Any],
    name: str,
    *,
    tracked: bool,
) -> Mapping[str, str]:
    """Run, and tell MLflow; return what the stage says of its outputs, and its run there."""
    from bigtransfer.track.journal import Journal, SilentJournal

    project = Path.cwd()
    journal = Journal(project, name) if tracked and _leads() else SilentJournal()
    journal.ship()
    status = "FAILED"
    try:
        journal.params(params.model_dump(mode="json"))
        stage = Stage(name, project, _work() / component.name, journal, is_task=_is_task())
        run(stage, params, **paths)
        status = "FINISHED"
    except (KeyboardInterrupt, InfrastructureError):
        status = "KILLED"  # it will go on
        raise
    finally:
        journal.close(status)
    url = journal.run_url
    return {**stage.told, **({"mlflow_run": url} if url else {})}


def _work() -> Path:
    from bigtransfer.storage.home import work_of

    return work_of(Path.cwd())


def _leads() -> bool:
    """Say whether this process is the one that writes, among those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def _params(component: Component, arguments: argparse.Namespace) -> Section:
    from bigtransfer import config

    if arguments.params_json is not None:
        if arguments.overlay is not None:
            raise ConfigError("--overlay is laid over --params; --params-json is whole as it is")
        return config.from_json(arguments.params_json, component.params_class)
    if arguments.section is None:
        raise ConfigError(f"--section is missing; say which entry, e.g. {component.section}")
    return config.load(arguments.params, arguments.overlay).section(arguments.section)


def _check_inputs(reads: Mapping[str, Any]) -> None:
    missing = [
        f"{_flag(name)} {str(path)!r}"
        for name, path in reads.items()
        if isinstance(path, Path) and not path.exists()
    ]
    if missing:
        raise StorageError(
            f"{' and '.join(missing)} does not exist; run the stage that writes it (`dvc repro`), "
            "or correct the path"
        )


def _fail(stage: str, code: int, message: str) -> NoReturn:
    who = stage if _leads() else f"{stage}, process {os.environ['RANK']}"
    said = " ".join(message.split()) + f" [exit {code}]" if _is_task() else message
    print(f"{who}: {said}", file=sys.stderr, flush=True)
    _keep(stage, code, message)
    _leave(code)


def _keep(stage: str, code: int, message: str) -> None:
    """Keep why this stage failed, for those who ran it."""
    from bigtransfer.storage import as_json, write_text
    from bigtransfer.storage.home import experiment_name, failure_file

    if not _leads():
        return
    facts = {"stage": stage, "exit_code": code, "message": message}
    with suppress(BigTransferError):  # what was printed counts; a read-only folder must not hide it
        project = Path.cwd()
        write_text(failure_file(project, experiment_name(project)), as_json(facts))


def _leave_by_bug(stage: str, error: Exception) -> NoReturn:
    traceback.print_exc()
    _keep(stage, 1, f"a bug of bigtransfer, {type(error).__name__}: {error}")
    if _is_task():
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"{stage}: a bug of bigtransfer, {line} [exit 1]", file=sys.stderr, flush=True)
    _leave(1)


def _is_task() -> bool:
    """Say whether Kubeflow Pipelines runs this, a pod that a task of it launched, or such a task.

    Its launcher ends with 1 whatever the exit code was: the log's last line is all that says it.
    """
    return EXECUTOR_INPUT in sys.argv or JOB in os.environ or CELL in os.environ


def _leave(code: int) -> NoReturn:
    """End the process without taking its modules apart.

    For torch and MLflow that takes one to two seconds, a stage's tenth; and a process of several
    would wait in it, sometimes for ever, for peers that are gone.
    """
    if "RANK" not in os.environ:
        atexit._run_exitfuncs()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
