"""A job forked from the preloaded process is one like any other, and neither outlives who asked for it."""

import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from histocrypt.workflow import preloaded
from histocrypt.workflow.preloaded import ONE_THREAD, VARIABLE, Preloaded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


@pytest.fixture(scope="module")
def ready():
    """The process, and the environment of who may ask it."""
    with Preloaded() as process:
        process.start()
        if process.pid is None:
            pytest.skip("there is a GPU")
        yield process, {**os.environ, **process.environment, **ONE_THREAD}


@pytest.fixture
def start(ready, tmp_path):
    """Start a notebook of these cells as a job; its log is ``logs/some.log``."""

    def begin(*cells, **environment):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(notebook, tmp_path / "in.ipynb")
        (tmp_path / "logs").mkdir(exist_ok=True)
        log = tmp_path / "logs" / "some.log"
        command = [sys.executable, "-m", "histocrypt.workflow.measure", str(log), "papermill", "in.ipynb", "out.ipynb"]
        with log.open("w") as output:
            return subprocess.Popen(
                [*command, "--log-output", "--no-progress-bar", "-k", "python3"],
                env=ready[1] | environment,
                cwd=tmp_path,
                stdout=output,
                stderr=output,
            )

    return begin


def test_a_forked_job_has_the_environment_and_output_of_who_asked(start, ready, tmp_path):
    cells = (
        "import os, sys, matplotlib.pyplot as plt, numpy as np\nprint('torch' in sys.modules, os.environ['OURS'])",
        "print(os.getcwd(), np.random.random())\nplt.plot([1, 2])",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass",
    )
    assert start(*cells, OURS="ours").wait(timeout=600) == 0
    outputs = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.outputs]
    assert outputs[0].text == "True ours\n"
    assert outputs[1].text.split()[0] == str(tmp_path)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert "it/s" not in str(outputs), "no progress bar stays"
    assert "True ours" in (tmp_path / "logs" / "some.log").read_text()
    record = json.loads((tmp_path / "logs" / "stages" / "some.json").read_text())
    assert record["outcome"] == "finished"
    left = psutil.Process(ready[0].pid).children(recursive=True)
    assert not psutil.wait_procs(left, timeout=60)[1], "nothing is left"


def test_a_job_that_fails_has_its_exit_code(start, tmp_path):
    assert start("1 / 0").wait(timeout=600) == 1
    assert "ZeroDivisionError" in (tmp_path / "logs" / "some.log").read_text()


def test_random_streams_of_two_jobs_differ(start, tmp_path):
    code = "import random, numpy as np\nprint(random.random(), np.random.random())"
    assert start(code).wait(timeout=600) == 0
    first = (tmp_path / "out.ipynb").read_text()
    assert start(code).wait(timeout=600) == 0
    said = [nbformat.reads(text, 4).cells[0].outputs[0].text for text in (first, (tmp_path / "out.ipynb").read_text())]
    assert not {*said[0].split()} & {*said[1].split()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_job_ends_with_who_asked_for_it(start, ready, tmp_path, number):
    asked = start(f"open({str(tmp_path / 'begun')!r}, 'w').close()\nimport time\ntime.sleep(600)")
    until = time.monotonic() + 600
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    family = psutil.Process(ready[0].pid).children(recursive=True)
    assert len(family) == 2, "the job and its kernel"
    asked.send_signal(number)
    assert asked.wait(timeout=300) != 0
    assert not psutil.wait_procs(family, timeout=60)[1]


def test_several_threads_or_no_process_mean_no_fork(monkeypatch):
    monkeypatch.setenv(VARIABLE, "/nowhere/socket")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert preloaded.ask("histocrypt.workflow.measure", []) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert preloaded.ask("histocrypt.workflow.measure", []) is None
    monkeypatch.delenv(VARIABLE)
    assert preloaded.ask("histocrypt.workflow.measure", []) is None
