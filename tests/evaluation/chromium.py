"""A page as a browser makes it: opened in headless Chromium, used by a script, read back as HTML."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


def opened(page: Path, folder: Path, *, address: str = "", script: str = "") -> str:
    """Return the page's HTML after ``script`` ran in it; the test is skipped where there is no browser."""
    if not BROWSER:
        pytest.skip("no Chromium here: the page cannot be opened")
    copy = folder / "page.html"
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += [f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"{copy.as_uri()}{address}"], capture_output=True, text=True, check=True, timeout=600
    )
    return done.stdout


def text_of(dom: str, name: str) -> str:
    """Return the text of the element with an id."""
    return html.unescape(re.search(rf'id="{name}"[^>]*>([^<]*)<', dom)[1])
