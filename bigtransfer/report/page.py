"""How our one-page reports look: self-contained HTML, readable offline, light and dark."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Shown = Mapping[str, object]
"""What a template is given of one thing that it shows."""
_LOSSLESS_PIXELS = 32
"""Larger pictures are JPEG: a page of a thousand classes stays small."""
_WIDE = 4
"""Columns from which a table is too wide for a narrow page."""
_TABLE = re.compile(r"<table>(.*?)</table>", re.DOTALL)
_ROW = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
_HEAD = re.compile(r"<th\b[^>]*>(.*?)</th>", re.DOTALL)
_CELL = re.compile(r"<td\b")
_TAG = re.compile(r"<[^>]+>")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #5b6577; --paper: #ffffff; --soft: #f3f5f9;
  --line: #dde2ea; --blue: #2563a8; --orange: #c2610c; --good: #18794e; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #9aa5b8; --paper: #14181f;
  --soft: #1d232d; --line: #313a48; --blue: #7ab3f0; --orange: #f2a35c; --good: #5fc794; --bad: #f58a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 21px; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 22px 0 6px; }
p, li { max-width: 76ch; } .lead { color: var(--dim); margin: 0 0 22px; }
.dim { color: var(--dim); } .small { font-size: 13px; } .good { color: var(--good); } .bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin: 20px 0; }
.card { background: var(--soft); border-radius: 10px; padding: 12px 18px; }
.card b { display: block; font-size: 24px; line-height: 1.25; } .card span { color: var(--dim); font-size: 13px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--dim); } td.n, th.n { text-align: right; }
tr.head td { font-weight: 600; } .scroll { overflow-x: auto; max-width: 100%; }
code, pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: var(--soft); padding: 14px 16px; border-radius: 8px; overflow-x: auto; }
.px { image-rendering: pixelated; background: #000; border-radius: 4px; }
.grid { display: flex; flex-wrap: wrap; gap: 14px; }
figure { margin: 0; } figcaption { font-size: 12px; line-height: 1.35; color: var(--dim); }
.charts { display: flex; flex-wrap: wrap; gap: 26px; } .charts svg { max-width: 100%; height: auto; }
.bar { display: inline-block; height: 9px; border-radius: 3px; background: var(--blue); vertical-align: middle; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink); } svg .tick { fill: var(--dim); }
@media (max-width: 520px) { main { padding: 16px 14px 48px; } h1 { font-size: 24px; }
  .stack, .stack tbody, .stack tr, .stack td { display: block; } .stack tr:first-child { display: none; }
  .stack tr { padding: 8px 0; border-bottom: 1px solid var(--line); }
  .stack td { display: flex; justify-content: space-between; gap: 16px; padding: 2px 0; border: 0; text-align: right; overflow-wrap: anywhere; }
  .stack td::before { content: attr(data-label); color: var(--dim); text-align: left; flex: none; } .stack td:empty { display: none; } }
svg .grid { stroke: var(--line); } details { margin: 10px 0; } summary { cursor: pointer; color: var(--blue); }
"""


def render(template: Path, **values: Any) -> str:
    """Return the page of a Jinja template beside the calling module.

    Args:
        template: Path of the template; it gets `style`, and the filters `percent` and `thousands`.
        values: What the template names.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    page = environment.get_template(template.name).render(style=_STYLE, **values)
    return _TABLE.sub(lambda found: _stacking(found[1]), page)


def _stacking(rows: str) -> str:
    """Return a table that a narrow page (Kubeflow's panel is 375 pixels wide) shows row by row.

    Each cell then stands beside the name of its column.
    """
    header, *others = _ROW.findall(rows) or [""]
    names = [_TAG.sub("", name).strip() for name in _HEAD.findall(header)]
    if len(names) < _WIDE or any(row.count("<td") != len(names) for row in others):
        return f"<table>{rows}</table>"
    labels = iter(names * len(others))
    marked = _CELL.sub(lambda _: f'<td data-label="{next(labels)}"', rows)
    return f'<table class="stack">{marked}</table>'


def picture(pixels: NDArray[np.uint8], longest: int = 96) -> str:
    """Return an image as a `data:` URI, made smaller (never larger) to `longest` pixels.

    Args:
        pixels: RGB, (H, W, 3).
        longest: Of its sides, pixels.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest))
    kind = "PNG" if max(image.size) <= _LOSSLESS_PIXELS else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
