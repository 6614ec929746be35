"""What the pages of this project point to is there: files, folders, headings; without network."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.project import PROJECT

_BLOCKS = re.compile(r"^```.*?^```", re.M | re.S)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_PICTURE = re.compile(r"<img [^>]*src=\"([^\"]+)\"")
_MENTION = re.compile(r"\bdocs/[\w/.-]*\w")
_TEXTS = {".md", ".py", ".yaml", ".toml", ".ipynb", ".html", ""}


def listed() -> list[Path]:
    """Return the files of the project, those not committed yet among them."""
    line = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    return [path for name in names.splitlines() if (path := PROJECT / name).is_file()]


FILES = listed()
PAGES = [path for path in FILES if path.suffix == ".md"]


def name_of(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def links_of(text: str) -> Iterator[str]:
    """Yield the targets of a page's links and pictures, code aside."""
    text = re.sub(r"`[^`\n]*`", "", _BLOCKS.sub("", text))
    for pattern in (_LINK, _PICTURE):
        yield from pattern.findall(text)


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as they are made where such pages are shown."""
    seen: Counter[str] = Counter()
    result = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", _BLOCKS.sub("", text), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        result.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return result


def broken(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    text, result = page.read_text("utf-8"), []
    for target in links_of(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name) if name else page
        if not place.exists():
            result.append(target)
        elif anchor and anchor not in anchors_of(place.read_text("utf-8")):
            result.append(target)
    return result


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("folder", ["docs", "docs/guide", "docs/reference"])
def test_every_page_for_users_is_linked_to(folder: str) -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in links_of(page.read_text("utf-8"))
        if not re.match(r"[a-z]+:", target)
    }
    assert {page for page in PAGES if page.parent == PROJECT / folder} <= linked


def test_pages_that_are_named_in_passing_are_there() -> None:
    """`docs/decisions/0028` stands for the file that begins so."""
    wrong = []
    for path in FILES:
        if path.suffix not in _TEXTS or path == Path(__file__):
            continue
        for name in _MENTION.findall(path.read_text("utf-8", errors="ignore")):
            place = PROJECT / name
            if not place.exists() and not list(place.parent.glob(f"{place.name}-*.md")):
                wrong.append(f"{name_of(path)}: {name}")
    assert not wrong


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text(
        "# One `thing`, twice\n\n## Again\n\n## Again\n\n```\n# no\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md#one-thing-twice) [b](other.md#again-1) [c](#here) `[d](no.md)`\n"
        "[e](https://example.org/x) [f](none.md) [g](other.md#no) [h](#gone) ![i](none.png)\n"
        '<img alt="j" src="none.jpg">\n'
    )
    assert broken(page) == ["none.md", "other.md#no", "#gone", "none.png", "none.jpg"]
