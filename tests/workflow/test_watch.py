"""A run tells how far it is, and ends when it is asked to, with all that it started, even where a Ctrl-C is lost."""

import io
import signal
import subprocess
import sys
import time

import psutil
import pytest

from histocrypt.workflow import watch
from histocrypt.workflow.progress import Progress

LOSES_ONE = """
import signal, time
signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.default_int_handler))
print("ready", flush=True)
time.sleep(600)
"""
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = "import time; print('ready', flush=True); time.sleep(600)"
subprocess.run([sys.executable, "-c", child], start_new_session=True)
"""


@pytest.fixture
def started(monkeypatch):
    """Start a program as Snakemake is started, and return it with all below it once it is ready."""
    monkeypatch.setattr(watch, "GRACE_S", 1.0)
    families = []

    def start(program: str) -> tuple[subprocess.Popen, list[psutil.Process]]:
        command = [sys.executable, "-c", program]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout.readline() == "ready\n"
        families.append([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
        return process, families[-1]

    yield start
    for one in (one for family in families for one in family if one.is_running()):
        one.kill()


def test_a_lost_ctrl_c_is_given_again(started):
    process, family = started(LOSES_ONE)
    watch.stop(process)
    assert process.returncode == -signal.SIGINT  # asked, not forced
    assert not psutil.wait_procs(family, timeout=60)[1]


def test_what_does_not_hear_is_ended_by_force_with_all_below_it(started):
    process, family = started(DEAF)
    assert len(family) == 2
    watch.stop(process, asked=2)
    assert not psutil.wait_procs(family, timeout=60)[1]


def test_an_ended_process_is_no_mistake(started):
    process, _ = started("print('ready', flush=True)")
    assert process.wait() == 0
    watch.stop(process)
    assert process.returncode == 0


class Terminal(io.StringIO):
    """What is printed to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_one_line_tells_notebook_cell_share_and_time_left(tmp_path, monkeypatch, terminal):
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    monkeypatch.setattr(watch, "REDRAWN_S", 0.05)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "30_training__stem__final.cell").write_text("5 9 What it learned")
    job = {"event": "job_info", "job": 1, "log": [str(tmp_path / "30_training__stem__final.log")], "resources": {}}
    with watch.Teller(Progress({"30_training__stem__final": 60.0, "72_viewer": 60.0})) as teller:
        teller.take({"event": "run_info", "stats": {"30_training__stem__final": 1, "72_viewer": 1, "total": 2}})
        teller.take(job)
        time.sleep(0.3)
        teller.take({"event": "job_finished", "job": 1})
        teller.say("the end")
    said = sys.stdout.getvalue()
    line = "[00:00] 30_training stem final, cell 5 of 9 (What it learned) | 0 of 2 done | 0% | about 2 min"
    assert (said.count(line) > 1) is terminal, "rewritten in place, or told once a minute"
    assert line in said
    assert ("30_training stem final done in 0 s  (1 of 2)" in said) is not terminal
    assert said.endswith(f"[00:00] the end\n\r{watch.CLEAR}" if terminal else "[00:00] the end\n")
