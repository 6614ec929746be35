"""Write the embedded datasets, as folders like a user's own, from what the dependencies carry.

Printed glyphs are rendered from the fonts that matplotlib ships (DejaVu, STIX); the handwritten
digits are the real ones of scikit-learn's `load_digits` (UCI, 1,797 images of 8x8 pixels, 43
writers). All images are 8x8 grey PNGs, so that one network reads both.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigtransfer.progress import tracked
from bigtransfer.storage import new_folder

if TYPE_CHECKING:
    from PIL import Image, ImageFont

SIDE_PIXELS = 8
_CANVAS_PIXELS = 48

# Upstream, letters that no rendering at 8x8 tells apart are left out: lower case that is only a
# smaller capital (c, o, s, …), I and l. Downstream, letters that look like an upstream one are
# left out; 22 Cyrillic lower-case forms stay although some resemble their capitals.
LATIN = tuple("ABCDEFGHJKLMNPQRTUVWXYZabdefghknqrty")
PRINTED_DIGITS = tuple("0123456789")
GREEK = tuple("ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρστφχψω")
CYRILLIC = tuple("БГДЖИЙЛПУФЦЧШЩЪЫЬЭЮЯЄЂЋЉЊЏҐбвгджзийлптфцчшщъыьэюя")

EMBEDDED = ("upstream", "digits", "alphabets")
"""Names of the datasets that `materialize` writes, one folder each."""


def glyph_classes(profile: str, name: str) -> tuple[tuple[str, ...], int]:
    """Return the characters of a glyph dataset and its number of images.

    In the profile `thorough` the upstream set holds Cyrillic too, so the held-out alphabets are
    the Greek ones alone: held out means never seen upstream.
    """
    if profile == "thorough":
        upstream, held_out = LATIN + CYRILLIC + PRINTED_DIGITS, GREEK
    else:
        upstream, held_out = LATIN + PRINTED_DIGITS, GREEK + CYRILLIC
    if name == "upstream":
        return upstream, 16_000 if profile == "thorough" else 8_000
    return held_out, 50 * len(held_out)


def write_glyphs(folder: Path, characters: tuple[str, ...], images: int, seed: int) -> None:
    """Write a folder `<class>/<image>.png` of rendered glyphs, a pure function of its arguments.

    Args:
        folder: Written beside and renamed when complete.
        characters: One class each; the folder's name is the character's Unicode name.
        images: Images in all, dealt to the classes in turn.
        seed: Of fonts, sizes, strokes, affine maps.
    """
    fonts = _Fonts()
    with new_folder(folder, sealed=False) as partial:
        names = [class_name(character) for character in characters]
        for name in names:
            (partial / name).mkdir()
        for i in tracked(range(images), f"render {folder.name}", images, unit="image"):
            which = i % len(characters)
            rng = np.random.Generator(
                np.random.Philox(key=[seed, ord(characters[which])], counter=i)
            )
            image = _glyph(characters[which], fonts, rng)
            image.save(partial / names[which] / f"{i:05d}.png")


def write_handwritten_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 real handwritten digits as `<digit>/<image>.png`."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    with new_folder(folder, sealed=False) as partial:
        for label in range(10):
            (partial / str(label)).mkdir()
        for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            grey = np.round(pixels * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).save(partial / str(label) / f"{i:05d}.png")


def class_name(character: str) -> str:
    """Return a folder name that no file system folds by case, e.g. `greek_small_letter_alpha`."""
    return unicodedata.name(character).lower().replace(" ", "_").replace("-", "_")


class _Fonts:
    """The text fonts that matplotlib ships, opened once per size."""

    def __init__(self) -> None:
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.paths = [path for path in sorted(folder.glob("*.ttf")) if _is_text_font(path.name)]
        self._opened: dict[tuple[int, int], ImageFont.FreeTypeFont] = {}

    def pick(self, rng: np.random.Generator) -> ImageFont.FreeTypeFont:
        from PIL import ImageFont

        key = (int(rng.integers(len(self.paths))), int(rng.integers(20, 30)))
        if key not in self._opened:
            self._opened[key] = ImageFont.truetype(self.paths[key[0]], key[1])
        return self._opened[key]


def _is_text_font(name: str) -> bool:
    # DejaVu's "Display" fonts hold a few symbols only and would draw empty boxes for letters.
    return name.startswith(("DejaVu", "STIXGeneral")) and "Display" not in name


def _glyph(character: str, fonts: _Fonts, rng: np.random.Generator) -> Image.Image:
    from PIL import Image, ImageDraw

    middle = _CANVAS_PIXELS / 2
    image = Image.new("L", (_CANVAS_PIXELS, _CANVAS_PIXELS))
    ImageDraw.Draw(image).text(
        (middle, middle),
        character,
        fill=255,
        font=fonts.pick(rng),
        anchor="mm",
        stroke_width=int(rng.integers(0, 2)),
    )
    image = image.transform(
        image.size, Image.Transform.AFFINE, tuple(_affine(middle, rng)), Image.Resampling.BILINEAR
    )
    return _boxed(image)


def _affine(middle: float, rng: np.random.Generator) -> Iterator[float]:
    """Yield the six numbers of a small random rotation, shear, scale and shift."""
    angle, shear = rng.normal(0, 0.12), rng.normal(0, 0.15)
    scale = np.exp(rng.normal(0, 0.1, 2))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.array([[scale[0], shear], [0, scale[1]]]) @ rotation
    centre = np.array([middle, middle])
    offset = centre - matrix @ (centre + rng.normal(0, 1, 2))
    yield from (*matrix[0], offset[0], *matrix[1], offset[1])


def _boxed(image: Image.Image) -> Image.Image:
    """Cut the glyph out, centre it in a square, average it down to 8x8: as the digits were made."""
    from PIL import Image

    left, top, right, bottom = image.getbbox() or (0, 0, *image.size)
    glyph = image.crop((left - 1, top - 1, right + 1, bottom + 1))
    side = max(glyph.size)
    square = Image.new("L", (side, side))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BOX)
