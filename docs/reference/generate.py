"""Write the pages of this folder from the typed params and the parsers.

`python docs/reference/generate.py` writes them, `--check` says whether they are current. Nothing in
them depends on the width of a terminal or on the version of Python.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, get_args

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT))

from bigtransfer.command import kfp  # noqa: E402
from bigtransfer.command.__main__ import COMMANDS, parser  # noqa: E402
from bigtransfer.config import base, read_yaml, sections  # noqa: E402
from bigtransfer.config import cluster as of_cluster  # noqa: E402
from components import interface  # noqa: E402

_MADE = "<!-- Written by docs/reference/generate.py; change what it reads. -->"
_KINDS = {
    "Positive": "whole number from 1", "NotNegative": "whole number from 0",
    "Rate": "number above 0", "Share": "share, from 0 to below 1",
    "Shots": "whole number from 1, or `full`", "Colour": 'colour, e.g. `"#ffffff"`',
    "Name": "name of ASCII letters, digits, `-`, `_`", "Mirror": "`s3://bucket/prefix`",
    "Cores": 'cores, in quotes, e.g. `"2"`', "Bytes": "bytes, e.g. `8Gi`",
    "Dns": "name as Kubernetes takes it", "Variable": "name of a variable", "str": "text",
    "bool": "true or false", "float": "number", "int": "whole number", "Any": "anything",
    "None": "null",
}  # fmt: skip
"""Annotation -> what a user writes."""
_COMPONENTS = ("materialize", "fetch", "fetch_weights", "validate", "audit", "shard", "pretrain",
               "finetune", "evaluate", "register", "predict", "summarize",
               "study_cell", "study_table", "study_check")  # fmt: skip
_TOP: dict[str, tuple[type[base.Section], str]] = {
    "materialize": (sections.MaterializeParams, ""),
    "data": (sections.DatasetRules, ""),
    "datasets": (
        sections.DatasetParams,
        "`datasets:` maps a dataset's name to its `path` and to whatever differs from `data`. "
        "`remote:` lists the names of those that have a `source`.",
    ),
    "audit": (sections.AuditRules, ""),
    "pretrain": (sections.PretrainParams, ""),
    "finetune": (sections.FinetuneParams, ""),
    "tasks": (
        sections.TaskParams,
        "`tasks:` maps a task's name to its `dataset` and to whatever differs from `finetune`.",
    ),
    "evaluate": (sections.EvaluateParams, ""),
    "register": (sections.RegisterParams, ""),
    "cluster": (of_cluster.ClusterParams, ""),
}


def pages() -> dict[str, str]:
    """Return file name -> text."""
    return {
        "params.md": _params(),
        "commands.md": _commands(),
        "components.md": _components(),
    }


def _params() -> str:
    given = read_yaml(PROJECT / "params.yaml")
    alone = read_yaml(PROJECT / "bigtransfer" / "defaults.yaml")
    said = _comments((PROJECT / "params.yaml").read_text("utf-8"))
    lines = [
        "# Every value of params.yaml",
        _MADE,
        "`bigtransfer check-params` checks the whole file; an unknown or missing key is an error. "
        "Defaults are those of `params.yaml`. Where the commands that need no project "
        "(`bigtransfer data check`, `bigtransfer finetune`, `bigtransfer sweep`) begin with "
        "another value, it stands below the first (`threads`: as many as there are cores). Sizes "
        "of images are pixels.",
    ]
    for name, (model, note) in _TOP.items():
        about = (inspect.getdoc(model) or "").splitlines()[0]
        lines += [f"## {name}", note or about]
        own = given if name in ("datasets", "tasks") else given[name]
        below = model.__base__ if name in ("datasets", "tasks") else None
        rows = _rows(model, own, alone.get(name, {}), said, name, below)
        lines.append(_table(("key", "type", "default", "what it is"), rows))
    return "\n\n".join(lines) + "\n"


def _rows(
    model: type[base.Section],
    given: Any,
    alone: Any,
    said: dict[str, str],
    place: str,
    below: Any = None,
    prefix: str = "",
) -> list[tuple[str, ...]]:
    """Return a row for each key, those of the sections in it after their own."""
    texts, rows = _docstrings(model), []
    for key, field in model.model_fields.items():
        if (below is not None and key in below.model_fields) or (below and key == "name"):
            continue
        annotation = _annotation(model, key)
        shown = _default(given, alone, key, field, known=below is None)
        comment = said.get(f"{place}.{prefix}{key}", "")
        about = _joined(comment, texts.get(key, ""), optional=not field.is_required())
        rows.append((f"`{prefix}{key}`", _kind(annotation), shown, about))
        inner = next((c for c in _classes_in(annotation) if issubclass(c, base.Section)), None)
        if inner is not None:
            many = ".<name>" if "dict" in annotation else "[]" if "tuple" in annotation else ""
            own = {} if many or not isinstance(given, dict) else given.get(key, {})
            rows += _rows(inner, own, {}, said, place, prefix=f"{prefix}{key}{many}.")
    return rows


def _annotation(model: type, key: str) -> str:
    """Return the annotation of a key as it stands in the source."""
    return next(str(c.__annotations__[key]) for c in model.__mro__ if key in c.__annotations__)


def _docstrings(model: type) -> dict[str, str]:
    """Return key -> the text below it in the source, the bases' too."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in model.__mro__ if c.__module__.startswith("bigtransfer")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
        for line, after in zip(body, body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                if isinstance(after.value, ast.Constant):
                    found[line.target.id] = " ".join(str(after.value.value).split())
    return found


def _comments(text: str) -> dict[str, str]:
    """Return `section.key` -> its comment in a YAML file, keys of sections in it too."""
    found: dict[str, str] = {}
    stack: list[str] = []
    for line in text.splitlines():
        match = re.match(r"^((?:  )*)([A-Za-z_]+):(?: .*?)?(?:\s# (.*))?$", line)
        if match:
            spaces, key, comment = match.groups()
            stack = [*stack[: len(spaces) // 2], key]
            if comment:
                found[".".join(stack)] = comment.strip()
    return found


def _joined(comment: str, docstring: str, *, optional: bool) -> str:
    """Return the comment of params.yaml, and the docstring where there is none or it says more."""
    text = _html(docstring.replace("None", "null"))
    if comment:
        named = set(re.findall(r"`(\w+)`", docstring)) - set(re.findall(r"\w+", comment))
        first = _html(comment)
        if not re.match(r"\w+(: |, |://|\.\w)", first):
            first = first[:1].upper() + first[1:]
        text = f"{first}. {text}" if named else first
    if optional and "may be absent" not in text.lower():
        text += f"{'' if not text or text.endswith('.') else '.'} May be absent."
    return text.strip()


def _html(text: str) -> str:
    """Return text in which no browser takes `<name>` for a tag; code stays as it is."""
    parts = text.split("`")
    return "`".join(part if n % 2 else part.replace("<", "&lt;") for n, part in enumerate(parts))


def _classes_in(annotation: str) -> list[type]:
    names = re.findall(r"\w+", annotation)
    found = [getattr(sections, name, None) or getattr(of_cluster, name, None) for name in names]
    return [one for one in found if isinstance(one, type)]


def _kind(annotation: str) -> str:
    """Return an annotation in words."""
    return _of(ast.parse(annotation, mode="eval").body)


def _of(node: ast.expr) -> str:
    match node:
        case ast.BinOp(left=left, right=right):
            return f"{_of(left)}, or {_of(right)}"
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name) if name in _KINDS:
            return _KINDS[name]
        case ast.Name(id=name) if get_args(getattr(sections, name, None)):
            return _choice(get_args(getattr(sections, name)))
        case ast.Name():
            return "keys of its own, below"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            return _choice(ast.literal_eval(inner))
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[first, *_])):
            return _of(first)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[first, *_])):
            return f"list: {_of(first)}"
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
            return f"{_of(key)} → {_of(value)}"
    raise ValueError(f"nobody has said how {ast.unparse(node)!r} is called")


def _choice(values: Any) -> str:
    texts = [values] if isinstance(values, str) else list(values)
    return ", ".join(f"`{text}`" for text in texts)


def _default(given: Any, alone: Any, key: str, field: Any, *, known: bool) -> str:
    if not known or not isinstance(given, dict):
        return "" if field.is_required() else _value(field.default)
    if key not in given:
        return "" if field.is_required() else _value(field.default)
    if isinstance(given[key], dict) and given[key]:
        return ""
    shown = _value(given[key])
    if key in alone and alone[key] != given[key]:
        shown += f"<br>without a project: {_value(alone[key])}"
    return shown


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=list)
    return f"`{text[1:-1] if isinstance(value, str) and text[1:2] != '#' else text}`"


def _commands() -> str:
    whole = parser()
    lines = [
        "# The commands",
        _MADE,
        "What `bigtransfer` takes. In a checkout that make has set up it is called "
        "`.venv/bin/bigtransfer`. Exit codes: 0 done, 2 yours to mend, 3 a gate said no, 4 another "
        "run writes the same output, 75 try again later, 1 our bug.",
    ]
    table = [(f"[{name}](#bigtransfer-{name})", text) for name, text in COMMANDS.items()]
    lines.append(_table(("command", "it does"), table))
    for name, text in COMMANDS.items():
        own = _subparsers(whole)[name]
        if name == "kfp":
            lines += [f"## bigtransfer {name}", _sentence(text), *_described(kfp.parser())]
        else:
            lines += _command(own, text, "##")
    return "\n\n".join(lines) + "\n"


def _command(own: argparse.ArgumentParser, summary: str, level: str) -> list[str]:
    lines = [f"{level} {own.prog}", _sentence(summary)]
    inner = _subparsers(own)
    if not inner:
        return [*lines, *_described(own)]
    summaries = {a.dest: a.help or "" for a in _choices_action(own)._choices_actions}
    for name, below in inner.items():
        lines += _command(below, summaries.get(name, ""), level + "#")
    return lines


def _described(own: argparse.ArgumentParser, *more: str) -> list[str]:
    """Return the line to type, with more words at its end, what it does, a row an argument."""
    shown = [a for a in own._actions if a.help != argparse.SUPPRESS and a.dest != "help"]
    rows, line = [], [own.prog]
    for action in shown:
        metavar = _metavar(action)
        if action.option_strings:
            flags = ", ".join(f"`{text}`" for text in action.option_strings)
            rows.append((f"{flags} {_html(metavar)}".strip(), _help(own, action)))
            if action.required:
                line += [action.option_strings[-1], metavar]
        else:
            rows.append((_html(metavar), _help(own, action)))
            if action.required and action.nargs not in ("*", "?"):
                line.append(metavar)
    for group in own._mutually_exclusive_groups:
        if group.required:
            first = group._group_actions[0]
            line[1:1] = [first.option_strings[-1], _metavar(first)]
    lines = [f"`{' '.join([*line, *more])}`"]
    if own.description:
        lines.append(_html(_sentence(own.description)))
    return [*lines, _table(("argument", "what it is"), rows)] if rows else lines


def _help(own: argparse.ArgumentParser, action: argparse.Action) -> str:
    return _html(own._get_formatter()._expand_help(action)) if action.help else ""


def _metavar(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    text = action.metavar or (
        " or ".join(map(str, action.choices)) if action.choices else action.dest.upper()
    )
    return str(text)


def _components() -> str:
    lines = [
        "# The components",
        _MADE,
        "One command line each, as DVC and Kubeflow Pipelines call it: "
        "`python -m components.finetune --help`. A flag reads or writes one file or folder; params "
        "come from `--params`, or as JSON from Kubeflow Pipelines.",
    ]
    for name in _COMPONENTS:
        declared = importlib.import_module(f"components.{name}").COMPONENT
        own = interface.parser(declared)
        entry = declared.section if declared.section.endswith("<name>") else None
        lines += [f"## {name}", *_described(own, *(("--section", entry) if entry else ()))]
    return "\n\n".join(lines) + "\n"


def _subparsers(own: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = _choices_action(own)
    return dict(found.choices) if found is not None else {}


def _choices_action(own: argparse.ArgumentParser) -> Any:
    return next((a for a in own._actions if isinstance(a, argparse._SubParsersAction)), None)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def main() -> None:
    """Write the pages, or compare them."""
    own = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    own.add_argument("--check", action="store_true", help="write nothing; exit 1 if one is stale")
    arguments = own.parse_args()
    stale = [
        name
        for name, text in pages().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text("utf-8") != text
    ]
    for name in stale:
        if arguments.check:
            print(f"docs/reference/{name} is stale; `python docs/reference/generate.py` mends it")
        else:
            (FOLDER / name).write_text(pages()[name], "utf-8")
    sys.exit(bool(stale) and arguments.check)


if __name__ == "__main__":
    main()
