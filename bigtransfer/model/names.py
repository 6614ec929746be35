"""The name rule `R<depth>x<width factor>`: what a name says about the network, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bigtransfer.errors import ConfigError, did_you_mean

# Bottleneck units per stage. 50, 101, 152: arXiv 1912.11370, section 3.1; 14 and 26 extend the
# rule (one and two units per stage) for small images and small machines.
BLOCK_UNITS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
PUBLISHED = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
_PATTERN = re.compile(r"R(\d+)x(\d+(?:\.\d+)?)")
_STAGE_WIDTH = 64
_GROUPS = 32


@dataclass(frozen=True)
class Architecture:
    """What a name such as `R50x1` stands for."""

    depth: int
    width_factor: float
    block_units: tuple[int, ...]

    def width(self, base: int) -> int:
        """Return `base` channels times the width factor."""
        return int(base * self.width_factor)

    @property
    def groups(self) -> int:
        """Groups of every GroupNorm: 32, fewer only where the first stage is under 64 wide."""
        return min(_GROUPS, int(_GROUPS * self.width_factor))


def parse_architecture(name: str) -> Architecture:
    """Return what an architecture name stands for.

    Raises:
        ConfigError: If the name does not follow `R<depth>x<width factor>`, its depth is unknown
            or its channels do not divide into groups.
    """
    match = _PATTERN.fullmatch(name)
    depth = int(match[1]) if match else 0
    if match is None or depth not in BLOCK_UNITS:
        depths = ", ".join(map(str, BLOCK_UNITS))
        raise ConfigError(
            f"unknown architecture {name!r}{did_you_mean(name, PUBLISHED)}; names are "
            f"R<depth>x<width factor> with depth {depths}, e.g. R50x1"
        )
    architecture = Architecture(depth, float(match[2]), BLOCK_UNITS[depth])
    width = _STAGE_WIDTH * architecture.width_factor
    if architecture.groups < 1 or width != int(width) or int(width) % architecture.groups:
        raise ConfigError(
            f"architecture {name!r}: a width factor of {architecture.width_factor:g} leaves "
            f"{width:g} channels, which do not divide into groups; use a multiple of 1/32"
        )
    return architecture
