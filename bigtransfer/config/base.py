"""What the typed sections of params.yaml are made of: their base class and their kinds of value."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator


class Section(BaseModel):
    """One section of `params.yaml`: frozen, strictly typed, no unknown keys."""

    PLAIN: ClassVar[str | None] = None
    """Key that a text which is no JSON is the value of; None: it must be JSON."""
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _whole(value: Any) -> Any:
    """Let 20.0 be the integer 20 (KFP sends numbers so); leave 20.5 and true to be refused."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shots(value: Any) -> int | str:
    """Let through a number of examples per class, or the word full."""
    number = _whole(value)
    if value == "full":
        return "full"
    if not isinstance(number, int) or isinstance(number, bool):
        raise ValueError("should be a whole number, or full")
    if number < 1:
        raise ValueError("should be greater than 0")
    return number


def _mirror(text: str) -> str:
    """Let through the address of a place in a bucket."""
    if not re.match(r"s3://[^/]", text):
        raise ValueError(f"must be s3://<bucket>/<prefix> or null, got {text!r}")
    return text


Positive = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
"""A whole number from 1."""
NotNegative = Annotated[int, BeforeValidator(_whole), Field(ge=0, lt=2**63)]
"""A whole number from 0 that fits 63 bits, as a seed must."""
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A positive number."""
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
"""A number in [0, 1)."""
Shots = Annotated[int | str, PlainValidator(_shots)]
"""Examples per class: a whole number from 1, or the word full."""
Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
"""Red, green and blue, two hexadecimal digits each, in quotes: YAML takes # for a comment."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Mirror = Annotated[str, AfterValidator(_mirror)]
"""A place in a bucket: `s3://<bucket>/<prefix>`."""
