"""JupyterLab as a person meets it: opened in Chromium, logged in, a notebook run from the menu, the viewer used.

    venv/bin/python -m pytest -m slow tests/notebooks/test_jupyterlab.py --basetemp=/tmp/lab

leaves what was seen in /tmp/lab: login.png, eda.png, viewer.png and so on, below the folder of each test.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from tests.notebooks.browser import CHROMIUM, Page, page
from tests.small_study import environment, histocrypt, write_study
from tests.test_docker import status

from histocrypt import paths

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: JupyterLab cannot be opened"),
]
TOKEN = "a-token-of-the-tests"
IDLE = "document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=idle]') !== null"
ENDS = "one => `${one.src.length} ${one.src.slice(-300, -30)}`"
PICTURES = f"[...document.querySelectorAll('.jp-OutputArea-output img')].map({ENDS})"
SENTENCE = "document.querySelectorAll('.jupyter-widgets [role=status]')[1].textContent"  # that of the search is first
FOUND = "[...document.querySelectorAll('[role=status]')].find(one => one.textContent.includes({!r}))"

# Without a screen, Chromium opens no list of a select: the neighbouring option is picked as the list would.
OTHER_OPTION = """(() => {
  const boxes = [...document.querySelectorAll(".widget-dropdown")];
  const select = boxes.find(one => one.innerText.startsWith(%s)).querySelector("select");
  select.focus();
  select.selectedIndex += %d;
  select.dispatchEvent(new Event("change", { bubbles: true }));
  return select.selectedOptions[0].text;
})()"""


@dataclass
class Lab:
    """A running server: its address, and the folder it was started in."""

    url: str
    folder: Path

    def ran(self, name: str) -> nbformat.NotebookNode:
        """Return a notebook as JupyterLab saved it."""
        return nbformat.read(self.folder / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, demo_tissue) -> Path:
    """A small study as far as a person needs it to look; returns its file, beside its run folder."""
    folder = tmp_path_factory.mktemp("predicted")
    study = write_study(folder, "small", models={"vision_mlp": {"width": 0.25}})
    demo_tissue(folder / "small" / "demo_tissue")
    done = histocrypt("run", study, "--until", "30_training", "--cores", "2", outputs=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return study


@pytest.fixture
def lab(predicted: Path, tmp_path: Path) -> Iterator[Lab]:
    """JupyterLab in a folder with two notebooks, set to a small study with predictions."""
    folder, outputs = tmp_path / "lab", predicted.parent
    (folder / "notebooks").mkdir(parents=True)
    for name in ("10_eda", "72_viewer"):
        source = paths.repository() / "notebooks" / f"{name}.ipynb"
        copy, parameters = folder / "notebooks" / source.name, {"study": str(predicted)}
        papermill.execute_notebook(source, copy, parameters=parameters, prepare_only=True, progress_bar=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "jupyter"), "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    settings = {**environment(outputs), "HOME": str(tmp_path), "JUPYTER_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=settings, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "lab.log").read_text()
            if status(f"http://127.0.0.1:{port}/api") == 200:
                break
            time.sleep(0.1)
        yield Lab(f"http://127.0.0.1:{port}", folder)
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def opened(browser: Page, lab: Lab, name: str, pictures: Path) -> None:
    """Log in with the token and open a notebook; its kernel starts without a question."""
    browser.open(f"{lab.url}/lab/tree/notebooks/{name}.ipynb")
    browser.wait("document.querySelector('#password_input') !== null")
    browser.screenshot(pictures / "login.png")
    browser.click("#password_input")
    browser.type(TOKEN)
    browser.press("Enter")
    # The page calls itself idle before it has a kernel, and would ask which one to take.
    connected = "fetch('/api/kernels').then(it => it.json()).then(all => all.some(one => one.connections > 0))"
    browser.wait(IDLE, seconds=120)
    browser.wait(connected, seconds=120)
    browser.wait(IDLE)
    time.sleep(2)
    assert browser.ask("document.querySelector('.jp-Dialog') === null")
    assert browser.ask("document.title").startswith(name)


def run_all(browser: Page, *, seconds: float) -> None:
    """Run > Run All Cells, and File > Save Notebook when all are done."""
    choose(browser, "Run", "Run All Cells")
    prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(one => one.textContent).join()"
    browser.wait(f"/^\\[1\\]/.test({prompts}) && !{prompts}.includes('*') && {IDLE}", seconds=seconds)
    choose(browser, "File", "Save Notebook")
    browser.wait("document.querySelector('.jp-mod-dirty') === null")


def choose(browser: Page, menu: str, item: str) -> None:
    browser.click(".lm-MenuBar-itemLabel", menu)
    browser.click(".lm-Menu-itemLabel", item)


def assert_clean(notebook: nbformat.NotebookNode) -> None:
    """Every code cell ran, in order, and none raised, warned or flooded the page."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [one for one in outputs if one.output_type == "error" or one.get("name") == "stderr"]
    assert max(one.get("text", "").count("\n") for one in outputs) < 60


def test_a_notebook_runs_by_clicking(lab, tmp_path):
    with page(tmp_path) as browser:
        opened(browser, lab, "10_eda", tmp_path)
        run_all(browser, seconds=600)
        browser.screenshot(tmp_path / "eda.png")
        widths = browser.ask("[...document.querySelectorAll('.jp-OutputArea-output img')].map(one => one.clientWidth)")
        assert not browser.complaints
    assert len(widths) >= 7
    assert all(300 < width < 1100 for width in widths), widths
    assert_clean(lab.ran("10_eda"))


def test_the_viewer_follows_its_controls(lab, predicted, tmp_path):
    with page(tmp_path) as browser:
        opened(browser, lab, "72_viewer", tmp_path)
        run_all(browser, seconds=300)
        assert_clean(lab.ran("72_viewer"))
        shown = [browser.ask(PICTURES)]
        assert len(shown[0]) == 1

        def seen(says: str, name: str) -> None:
            browser.wait(
                f"{SENTENCE}.toLowerCase().includes({says.lower()!r}) && {PICTURES}[0] !== {shown[-1][0]!r}",
                seconds=120,
            )
            shown.append(browser.ask(PICTURES))
            browser.ask("document.querySelector('.jp-OutputArea-output img').scrollIntoView({ block: 'end' })")
            browser.screenshot(tmp_path / f"{name}.png")

        for label, step in (("Model", -1), ("Section", 1)):
            chosen = browser.ask(OTHER_OPTION % (json.dumps(label), step))
            seen(chosen.replace("\xa0", " "), label.lower())

        listed = "[...document.querySelectorAll('.widget-select option')].map(one => one.textContent)"
        everything = browser.ask(listed)
        typed(browser, everything[-1][:3].lower())
        browser.wait(f"{listed}.length < {len(everything)}")
        narrowed = browser.ask(listed)
        assert narrowed == [label for label in everything if everything[-1][:3] in label.split()[0]]
        at_first = browser.ask(SENTENCE).split()[0]
        other = next(label.split()[0] for label in narrowed if label.split()[0] != at_first and "(" not in label)
        typed(browser, other)
        seen(other, "viewer")
        typed(browser, "NOSUCHGENE")
        browser.wait(f"{listed}.length === 0")
        assert browser.ask(FOUND.format("NOSUCHGENE") + " !== undefined")
        assert browser.ask(PICTURES) == shown[-1]

        browser.ask("document.querySelectorAll('.widget-slider .noUi-handle')[1].focus()")
        browser.press("ArrowLeft")
        seen(other, "faded")

        drawn_around(browser, [(0.32, 0.3), (0.4, 0.3), (0.4, 0.7), (0.32, 0.7)])
        seen(other, "lasso")
        inside = int(browser.wait(FOUND.format("Inside the lasso: ") + "?.textContent.match(/\\d+/)[0]"))
        assert int(browser.ask("document.querySelector('.histocrypt-spots td').textContent")) == inside > 2
        browser.click("button.jupyter-button")
        path = Path(browser.wait(FOUND.format("Written: ") + "?.querySelector('code').textContent"))
        assert path.parent.parent == predicted.parent / "small"
        written = pd.read_csv(path)
        assert len(written) == inside
        assert set(written["symbol"]) == {other}
        assert len({pictures[0] for pictures in shown}) == len(shown) == 6
        assert not browser.complaints


def drawn_around(browser: Page, corners: list[tuple[float, float]]) -> None:
    """Draw a lasso through shares of the picture's width and height."""
    place = "(({ x, y, width, height }) => [x, y, width, height])"
    left, top, width, height = browser.ask(
        f"{place}(document.querySelector('.jp-RenderedImage img').getBoundingClientRect())"
    )
    browser.drag([(left + width * x, top + height * y) for x, y in corners])


def typed(browser: Page, text: str) -> None:
    browser.click(".widget-text input", count=3)
    browser.type(text)
