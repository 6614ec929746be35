"""Options that several commands share, and what was typed behind them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bigtransfer.api.transfer import LONGEST_HOURS
from bigtransfer.errors import ConfigError

if TYPE_CHECKING:
    from bigtransfer.errors import TooLongError

_NOT_SET = ("name", "dataset")
"""Keys of a task that its folder gives."""
_EXAMPLE = "--set total_steps=100 --set batch_size=64"


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Declare `--set`, `--quick` and `--yes`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a value of section `finetune` of params.yaml in place of the HyperRule's, e.g. "
        f"{_EXAMPLE}; or of section `data`, e.g. --set data.layout=folders",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="minutes on a laptop: the network stays as it is, and a linear head is fitted to its "
        "features (a linear probe, not the paper's protocol)",
    )
    parser.add_argument(
        "--yes",
        action="store_true",
        help=f"begin although it takes more than {LONGEST_HOURS} hour on a CPU",
    )


@dataclass(frozen=True)
class Typed:
    """What was typed behind `--set`, by section."""

    data: Mapping[str, object]
    finetune: Mapping[str, object]


def settings_in(texts: list[str]) -> Typed:
    """Return what was typed behind `--set`: of section `finetune`, or with `data.` before it.

    Raises:
        ConfigError: If one is not KEY=VALUE.
    """
    from bigtransfer import config

    data: dict[str, object] = {}
    finetune: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: write KEY=VALUE, e.g. {_EXAMPLE}")
        if not key or key in _NOT_SET:
            raise ConfigError(
                f"--set {text!r}: {key!r} is no value of section `finetune`; write KEY=VALUE, e.g. "
                f"{_EXAMPLE}"
            )
        head, dot, rest = key.partition(".")
        section = data if dot and head == "data" else finetune
        section[rest if section is data else key] = config.typed_value(value)
    return Typed(data, finetune)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=("auto", "cpu", "cuda"),
        help="auto: a GPU where there is one (default: %(default)s)",
    )


def with_ways_out(error: TooLongError, line: str) -> ConfigError:
    """Return the refusal of what takes too long, with the commands that are ready to be typed.

    Args:
        error: Says how long it takes, and which smaller rule does not.
        line: What was typed, as a shell reads it.
    """
    smaller = " ".join(f"--set {name}={value}" for name, value in error.smaller.items())
    return ConfigError(
        f"{error}. Nothing was trained. Choose:\n"
        f"  {line} --quick\n      a linear probe of the network as it is: minutes\n"
        f"  {line} {smaller}\n      a smaller HyperRule: {error.smaller_takes}\n"
        f"  {line} --yes\n      all of it"
    )
