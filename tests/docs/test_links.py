"""Every relative link, anchor and picture of README and documentation exists; so does a way to every page."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")] + sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(
    r"\]\(\s*<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:src|href)=[\"']([^\"']+)[\"']|^\[[^\]]+\]:\s+(\S+)", re.M
)
MADE = re.compile(r"^(outputs|docs/reference)/")  # by a run or by the site, not in the repository


@cache
def prose(page: Path) -> str:
    """Return a page without its code, where brackets mean something else."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(`+)[^`].*?\1", "", text, flags=re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them, and those set by hand."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    seen: Counter[str] = Counter()
    found = set(re.findall(r"(?:id|name)=[\"']([^\"']+)[\"']", text))
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "").lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(page: Path) -> Iterator[str]:
    for groups in LINK.findall(prose(page)):
        link = next(filter(None, groups))
        if not re.match(r"[a-z][a-z0-9+.-]*:", link):
            yield link


def broken(page: Path) -> list[str]:
    """Return what is wrong with the relative links of a page."""
    wrong = []
    for link in links(page):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT):
            wrong.append(f"{link} leaves the repository")
        elif not target.exists():
            if not MADE.match(target.relative_to(ROOT).as_posix()):
                wrong.append(f"{link} does not exist")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            wrong.append(f"{link} names no heading of {target.name}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_anchor_and_picture_exists(page):
    assert not broken(page)


def test_what_is_broken_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "there.md").write_text("# A `word` & more\n\n# Twice\n\n# Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[1](there.md#a-word--more) [2](there.md#twice-1) [3](https://example.org/x) ![4](gone.png)\n"
        "[5](there.md#twice-2) [6](#here) <img src='no.png'> `[7](code.md)`\n\n```\n[8](code.md)\n```\n"
    )
    assert [line.split()[0] for line in broken(page)] == ["gone.png", "there.md#twice-2", "#here", "no.png"]


def test_every_page_can_be_reached_from_the_index():
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", listed, flags=re.DOTALL)
    entries = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    named = [re.sub(r".*<(.+)>", r"\1", line).strip() for line in entries]
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= set(named), f"no toctree of docs/index.md names {sorted(pages - set(named))}"
    assert len(named) == len(set(named))
    assert all(name in pages or name.startswith("reference/") for name in named)


def test_every_picture_of_the_documentation_is_shown():
    shown = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [picture.name for picture in (ROOT / "docs").glob("*.png") if picture.name not in shown] == []
