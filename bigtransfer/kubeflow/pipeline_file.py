"""A pipeline file: load it, find its pipeline, and check what is given for its parameters."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bigtransfer import config
from bigtransfer.config import Params
from bigtransfer.errors import BigTransferError, ConfigError, did_you_mean
from bigtransfer.kubeflow.image_tag import source_tag
from bigtransfer.kubeflow.submission import Submission, submitting

_SHA256 = "pretrained_sha256"
_OURS = str(Path(__file__).parents[1]) + os.sep


class PipelineFile:
    """A pipeline file, loaded with what a submission changes."""

    def __init__(self, project: Path, arguments: argparse.Namespace) -> None:
        """Read what was typed; nothing is loaded yet.

        Args:
            project: Where the command was called.
            arguments: Of `kfp run submit`.

        Raises:
            ConfigError: If a value or the overlay is wrong.
        """
        self._project, self._arguments = project, arguments
        pairs = pairs_of(arguments.values)
        self._values = {key: text for key, text in pairs.items() if "." not in key}
        overlay = config.read_yaml(arguments.params) if arguments.params else {}
        self.changes = config.laid_over(overlay, _nested(pairs), whole=False)
        if not arguments.local:
            self._take_sources()
        self.pipeline: Any = None

    def params(self) -> Params | None:
        """Return the params that its pipelines are built of; None: it is no checkout's pipeline."""
        path = self._project / "params.yaml"
        if not (self._project / "pipelines" / "dag.py").is_file() or not path.is_file():
            return None
        return config.load(path, self._own_overlay(), self.changes)

    @property
    def name(self) -> str:
        """Return the file's name, without its suffix."""
        return str(self._arguments.file.stem)

    @property
    def is_agreed(self) -> bool:
        """Say whether a long training was agreed to."""
        return bool(self._arguments.yes)

    def _own_overlay(self) -> Path | None:
        own: Path = self._arguments.file.with_suffix(".yaml")
        return own if own.is_file() else None

    def _take_sources(self) -> None:
        """Take `uri_<dataset>=s3://…` as a source, as it was before tasks of ours read them."""
        typed = {k: v for k, v in self._values.items() if k.startswith("uri_") and "://" in v}
        if not typed or self.params() is None:
            return
        raw = config.read_yaml(self._project / "params.yaml")
        own = self._own_overlay()
        known = config.laid_over(raw, config.read_yaml(own) if own else {}, self.changes)
        names = {f"uri_{name}".replace("-", "_").lower(): name for name in known["datasets"]}
        for key in typed.keys() & names.keys():
            name, address = names[key], self._values.pop(key)
            changes = {
                "datasets": {name: {"path": f"{config.SOURCES}/{name}", "source": address}},
                "remote": [*known.get("remote", []), name],
            }
            known = config.laid_over(known, changes)
            self.changes = config.laid_over(self.changes, changes, whole=False)

    @contextmanager
    def building(self, told: Mapping[str, str]) -> Iterator[None]:
        """Load the file; within the block its pipelines are built for this submission.

        Args:
            told: Environment of every task.

        Raises:
            ConfigError: If there is no pipeline in it, more than one, or an error.
        """
        for place in (self._project, self._arguments.file.resolve().parents[1]):
            if str(place) not in sys.path:
                sys.path.insert(0, str(place))
        with ExitStack() as held:
            if (self._project / "pipelines" / "dag.py").is_file():
                submission = Submission(
                    source_tag(self._project),
                    self.changes,
                    self._arguments.fresh,
                    told,
                    here=self._arguments.local,
                )
                held.enter_context(submitting(submission))
            elif self.changes:
                raise ConfigError(
                    "values of params.yaml (--params, or KEY with a dot) are for a checkout of "
                    "bigtransfer; this is none"
                )
            self.pipeline = _only_pipeline(_module(self._arguments.file), self._arguments)
            yield

    def compiled(self, package: Path) -> tuple[str, Path, dict[str, Any]]:
        """Compile; return the pipeline's name, the package, and the arguments of the run."""
        from kfp import compiler

        compiler.Compiler().compile(self.pipeline, str(package))
        return str(self.pipeline.name), package, self.arguments()

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that were typed, and DVC versions resolved to their commits.

        Raises:
            ConfigError: If the pipeline has no such parameter, the value is of another type, or one
                that has no default was not given.
        """
        inputs = self.pipeline.pipeline_spec.root.input_definitions.parameters
        found: dict[str, Any] = {}
        values = self._with_weights(inputs)
        for key, text in values.items():
            if key not in inputs:
                raise ConfigError(
                    f"pipeline {self.pipeline.name!r} has no parameter {key!r}"
                    f"{did_you_mean(key, inputs)}; it has {', '.join(sorted(inputs))}"
                )
            found[key] = _typed(key, text, inputs[key].parameter_type)
        missing = [
            key
            for key, one in inputs.items()
            if key not in found and not one.is_optional and not one.HasField("default_value")
        ]
        if missing:
            raise ConfigError(
                f"pipeline {self.pipeline.name!r} wants {', '.join(sorted(missing))}; give "
                f"{missing[0]}=…"
            )
        for key in inputs:
            given = found.get(key, inputs[key].default_value.string_value)
            if isinstance(given, str) and '"source":"dvc://' in given:
                found[key] = _pinned(given)
        return found

    def _with_weights(self, inputs: Mapping[str, Any]) -> dict[str, str]:
        """Return what was typed, with the address of weights as the section that a task takes."""
        values = dict(self._values)
        default = _address(inputs)
        if default is None or not values.keys() & {"pretrained", _SHA256}:
            return values
        address = values.get("pretrained", default)
        if address.startswith("{"):
            return values
        if address.startswith("models:/"):
            from bigtransfer.track.versions import checkpoint_uri

            address = checkpoint_uri(self._project, address)
        given = {"address": address, "sha256": values.pop(_SHA256, None)}
        section = config.from_json(json.dumps(given), config.WeightsParams, "pretrained")
        return {**values, "pretrained": section.model_dump_json()}

    def places(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the addresses that tasks would read: parameter -> address."""
        inputs = self.pipeline.pipeline_spec.root.input_definitions.parameters
        given = {key: values.get(key, inputs[key].default_value.string_value) for key in inputs}
        found = {key: text for key, text in given.items() if key in self._folders()}
        if _address(inputs) is not None:
            found["pretrained"] = json.loads(given["pretrained"])["address"]
        return found

    def _folders(self) -> set[str]:
        """Return the parameters that say where a dataset's folder is."""
        params = self.params()
        names = params.datasets if params is not None else ()
        return {f"uri_{name}".replace("-", "_").lower() for name in names}

    def at(self, key: str, place: Path) -> str:
        """Return the value of a parameter that says where something lies on this machine."""
        if key != "pretrained":
            return str(place)
        inputs = self.pipeline.pipeline_spec.root.input_definitions.parameters
        default = inputs[key].default_value.string_value
        typed = self._with_weights(inputs).get(key, default)
        return json.dumps({**json.loads(typed), "address": str(place)})


def _address(inputs: Mapping[str, Any]) -> str | None:
    """Return the address of weights that a pipeline of ours starts from; None: it has none."""
    if "pretrained" not in inputs:
        return None
    try:
        return str(json.loads(inputs["pretrained"].default_value.string_value)["address"])
    except (ValueError, KeyError, TypeError):
        return None


def pairs_of(texts: list[str]) -> dict[str, str]:
    """Return KEY=VALUE as a mapping."""
    return {key: value for key, _, value in (text.partition("=") for text in texts)}


def _nested(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Return `{"a.b": "3"}` as `{"a": {"b": 3}}`, the keys without a dot left out."""
    result: dict[str, Any] = {}
    for key, text in pairs.items():
        *path, last = key.split(".")
        if not path:
            continue
        inner = result
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key!r}: {part!r} is given a value of its own as well")
        inner[last] = config.typed_value(text)
    return result


def _module(path: Path) -> Any:
    """Load a file by its path, and name the line of an error in it."""
    spec = importlib.util.spec_from_file_location(f"_submitted_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BigTransferError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever the user's file does wrong is the user's to mend …
        frames = traceback.extract_tb(error.__traceback__)
        if frames[-1].filename.startswith(_OURS):
            raise  # … but what our library does wrong is our bug
        here = [frame for frame in frames if frame.filename == str(path)] or frames[-1:]
        raise ConfigError(
            f"{path}, line {here[-1].lineno}: {type(error).__name__}: {error}"
        ) from error
    return module


def _only_pipeline(module: Any, arguments: argparse.Namespace) -> Any:
    from kfp.dsl.graph_component import GraphComponent

    unique = {id(v): v for v in vars(module).values() if isinstance(v, GraphComponent)}
    found = {str(value.name): value for value in unique.values()}
    if not found:
        raise ConfigError(
            f"{str(arguments.file)!r} holds no pipeline; make one with @kfp.dsl.pipeline, or with "
            "pipelines.dag.build"
        )
    if arguments.pipeline is not None:
        if arguments.pipeline not in found:
            raise ConfigError(
                f"{str(arguments.file)!r} holds no pipeline {arguments.pipeline!r}"
                f"{did_you_mean(arguments.pipeline, found)}; it holds {', '.join(found)}"
            )
        return found[arguments.pipeline]
    if len(found) > 1:
        raise ConfigError(
            f"{str(arguments.file)!r} holds {len(found)} pipelines: {', '.join(found)}; say which "
            "one with --pipeline NAME"
        )
    return next(iter(found.values()))


def _typed(key: str, text: str, kind: int) -> Any:
    """Return a value of a parameter's type, as the pipeline spec numbers them."""
    from kfp.pipeline_spec import pipeline_spec_pb2 as spec

    names = spec.ParameterType.ParameterTypeEnum
    if kind == names.STRING:
        return text
    wanted: dict[int, tuple[str, tuple[type, ...]]] = {
        names.NUMBER_INTEGER: ("a whole number", (int,)),
        names.NUMBER_DOUBLE: ("a number", (int, float)),
        names.BOOLEAN: ("true or false", (bool,)),
        names.LIST: ("a JSON list", (list,)),
        names.STRUCT: ("a JSON object", (dict,)),
    }
    what, types = wanted[kind]
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ConfigError(f"parameter {key!r} is {text!r}, but it should be {what}")
    return value


def _pinned(section: str) -> str:
    """Return a dataset's section with its DVC revision as the commit it names now."""
    from bigtransfer.storage.dvc_version import DvcTree

    values = json.loads(section)
    values["source"] = DvcTree.at(values["source"]).address
    print(f"{values['name']}: {values['source']}", flush=True)
    return json.dumps(values, separators=(",", ":"))
