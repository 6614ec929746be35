"""How encoded images become pixels; travels with a dataset and with the networks made of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bigtransfer.artifacts.base import Part

Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$")]
"""Red, green and blue, two hexadecimal digits each."""


class DecodeSettings(Part):
    """What is done to the pixels of a file before anything else sees them."""

    orientation: Literal["apply", "ignore"] = "apply"
    """Whether the orientation that a camera noted (EXIF) is applied. `ignore` leaves JPEG, PNG,
    WebP and AVIF as stored; decoders turn TIFF and HEIC by themselves."""
    background: Colour | None = "#ffffff"
    """Colour that transparent pixels are laid on; None: transparency is dropped."""

    @property
    def background_rgb(self) -> tuple[int, int, int]:
        """Return the background's red, green and blue, 0 to 255."""
        digits = (self.background or "#000000").removeprefix("#")
        red, green, blue = bytes.fromhex(digits)
        return red, green, blue


AS_STORED = DecodeSettings(orientation="ignore", background=None)
"""What was done before there was a choice: of data and networks that say nothing of it."""


def as_stored_line(what: str, settings: DecodeSettings) -> str | None:
    """Return what is to be said where pixels are used as stored, which a phone's photos are not.

    Args:
        what: The dataset or the network.
        settings: Its own.
    """
    if settings != AS_STORED:
        return None
    return (
        f"{what}: pixels are used as stored, as all were before 2026-11-26: a camera's orientation "
        "is not applied, transparency is dropped"
    )
