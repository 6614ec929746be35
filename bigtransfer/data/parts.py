"""Parts of a dataset that many machines write, each its own: how they are numbered."""

from __future__ import annotations

from bigtransfer.errors import ConfigError


def parse_part(text: str) -> tuple[int, int]:
    """Return number (from 0) and count of `N/M`.

    Raises:
        ConfigError: If it is not of that form.
    """
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ConfigError(f"part {text!r}: write N/M with N from 1 to M, e.g. 3/1000")
    return int(number) - 1, int(parts)


def parse_parts(text: str) -> int:
    """Return how many parts are to be joined.

    Raises:
        ConfigError: If it is no number from 1.
    """
    if not (text.isdecimal() and int(text) >= 1):
        raise ConfigError(f"join {text!r}: write how many parts there are, e.g. 1000")
    return int(text)


def range_of(count: int, number: int, parts: int) -> range:
    """Return which of so many things a part has, counted from 0."""
    return range(number * count // parts, (number + 1) * count // parts)
