"""Command lines: what is wrong with one is said on one line, with what was meant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from bigtransfer.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and ends with one line and exit code 2."""

    def __init__(self, *positional: Any, **settings: Any) -> None:
        super().__init__(*positional, **{**settings, "allow_abbrev": False})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse unknown options first: else a misspelt one is reported as a missing one."""
        words = sys.argv[1:] if args is None else list(args)
        own = words
        if self._subparsers is not None:  # what comes after a command is the command's
            own = list(takewhile(lambda word: word.startswith("-"), words))
        if unknown := list(self._unknown(own)):
            hint = did_you_mean(unknown[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        result: tuple[argparse.Namespace, list[str]] = super().parse_known_args(words, namespace)
        return result

    def error(self, message: str) -> NoReturn:
        """Say on one line what is wrong, and end."""
        print(f"{self.prog}: {message} (`{self.prog} --help`)", file=sys.stderr)
        sys.exit(ConfigError.exit_code)

    def _unknown(self, words: Iterable[str]) -> Iterable[str]:
        for word in words:
            if word == "--":
                return
            name, _, _ = word.partition("=")
            # With a space in it argparse takes a word for a value.
            if name.startswith("--") and name not in self._option_string_actions:
                if " " not in word:
                    yield name

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        hint = did_you_mean(str(value), action.choices)
        known = "" if hint else f"; one of {', '.join(map(str, action.choices))}"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}{known}")
