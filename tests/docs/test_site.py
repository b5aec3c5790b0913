"""The documentation's site, built as ``make docs`` does and opened in Chromium: searched, walked through, looked at.

    venv/bin/python -m pytest -m slow tests/docs/test_site.py --basetemp=/tmp/site

leaves the site and what was seen of it in /tmp/site; DOCS_SITE=outputs/docs looks at one that was built before. The
site needs the extra ``docs``, which the lock does not hold: where this Python lacks it, the test adds it in an
environment of its own.
"""

import os
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.notebooks.browser import CHROMIUM
from tests.notebooks.browser import page as browser

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the site cannot be opened"),
]
OUTSIDE = re.compile(r"(https?:)?//", re.IGNORECASE)
READY = "document.readyState === 'complete'"
LIGHT = """((text) => {
  const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
  return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
})"""


class Links(HTMLParser):
    """What a page points to, what it loads, and what others may point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.anchors |= {about[name] for name in ("id", "name") if about.get(name)}
        if tag == "a" and about.get("href"):
            self.links.append(about["href"])
        elif tag == "link" and about.get("rel") in ("stylesheet", "icon", "preload", "shortcut icon"):
            self.loaded.append(about["href"])
        elif tag in ("script", "img", "iframe", "source", "video") and about.get("src"):
            self.loaded.append(about["src"])


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """A Python that has the extra ``docs``."""
    if all(map(find_spec, ("sphinx", "furo", "myst_nb"))):
        return sys.executable
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "beside.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"]
    command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "-c", ROOT / "requirements.lock", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the extra docs cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def site(request, tmp_path_factory) -> Path:
    """The site, or the folder that the variable DOCS_SITE names, where it was built before."""
    if built := os.environ.get("DOCS_SITE"):
        return Path(built)
    python = request.getfixturevalue("python")
    folder = tmp_path_factory.mktemp("site") / "html"
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "sphinx", "-q", "-j", "auto", ROOT / "docs", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=threads, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Links]:
    files = [path for path in site.rglob("*.html") if "_modules" not in path.parts]
    assert len(files) > 50
    return {path.resolve(): Links(path.read_text(encoding="utf-8")) for path in files}


def test_no_link_is_dead(pages):
    dead = {}
    for path, page in pages.items():
        for link in page.links:
            where, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", where):
                continue
            target = (path.parent / where).resolve() if where else path
            if not target.is_file():
                dead.setdefault(path.name, []).append(link)
            elif anchor and target in pages and anchor not in pages[target].anchors:
                dead.setdefault(path.name, []).append(link)
    assert dead == {}


def test_no_page_loads_anything_from_outside(site, pages):
    loaded = {(path.name, one) for path, page in pages.items() for one in page.loaded}
    assert len(loaded) > len(pages)
    assert {one for one in loaded if OUTSIDE.match(one[1])} == set()
    styles = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    assert {
        path.name for path, text in styles.items() if re.search(r"@import|url\(\s*[\"']?(https?:)?//", text)
    } == set()


def test_the_site_is_searched_walked_and_looked_at(site, pages, tmp_path):
    asked = []
    with browser(tmp_path) as tab:
        note = tab._note

        def listen(event, about):
            if event == "Network.requestWillBeSent":
                asked.append(about["request"]["url"])
            note(event, about)

        tab._note = listen
        tab.open((site / "index.html").as_uri())
        tab.wait(f"{READY} && document.querySelector('.sidebar-tree') !== null")
        tab.screenshot(tmp_path / "start.png")
        captions = tab.ask("[...document.querySelectorAll('.sidebar-tree .caption-text')].map((one) => one.innerText)")
        assert len(captions) >= 4
        firsts = (
            "[...document.querySelectorAll('.sidebar-tree .caption')]"
            ".map((one) => one.nextElementSibling.querySelector('a').href)"
        )
        for first in tab.ask(firsts):
            tab.open(first)
            tab.wait(f"{READY} && location.href === {first!r} && document.querySelector('article h1') !== null")
            assert tab.ask("document.querySelector('.sidebar-tree .current') !== null")

        tab.click(".sidebar-search")
        tab.type("noise ceiling")
        tab.press("Enter")
        tab.wait(
            "location.pathname.endsWith('search.html') && document.querySelectorAll('#search-results li a').length > 3"
        )
        found = tab.ask("[...document.querySelectorAll('#search-results li a')].map((one) => one.getAttribute('href'))")
        assert any(one.startswith("ceiling.html") for one in found[:5])
        tab.screenshot(tmp_path / "search.png")

        told = sorted(path for path in pages if path.parent.name == "notebooks" and "_case_" in path.name)
        assert len(told) >= 3
        pictures = "[...document.querySelectorAll('.cell_output img')].filter((one) => one.naturalWidth > 200).length"
        for notebook in told:
            tab.open(notebook.as_uri())
            tab.wait(f"{READY} && {pictures} > 0")
            tab.screenshot(tmp_path / f"{notebook.stem}.png")

        tab.open((site / "trust.html").as_uri())
        tab.wait(READY)
        ground = f"{LIGHT}(getComputedStyle(document.body).backgroundColor)"
        ink = f"{LIGHT}(getComputedStyle(document.querySelector('article p')).color)"
        assert tab.ask(ground) > 0.9 > 0.4 > tab.ask(ink)
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert tab.ask(ground) < 0.2 < 0.6 < tab.ask(ink)
        tab.screenshot(tmp_path / "dark.png")
        tab.call("Emulation.setEmulatedMedia", features=[])
        tab.call("Emulation.setDeviceMetricsOverride", width=400, height=900, deviceScaleFactor=1, mobile=True)
        for name in ("index", "trust", "commands"):
            tab.open((site / f"{name}.html").as_uri())
            tab.wait(READY)
            assert tab.ask("document.documentElement.scrollWidth") <= 400, name
            tab.screenshot(tmp_path / f"telephone_{name}.png")
        assert tab.complaints == []
    assert len(asked) > 20
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()
