"""A run that is asked to stop ends, with all that it started, even where the first Ctrl-C is lost."""

import signal
import subprocess
import sys

import psutil
import pytest

from histocrypt.workflow import watch

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
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_what_does_not_hear_is_ended_by_force_with_all_below_it(started):
    process, family = started(DEAF)
    assert len(family) == 2
    watch.stop(process, asked=2)
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_an_ended_process_is_no_mistake(started):
    process, _ = started("print('ready', flush=True)")
    assert process.wait() == 0
    watch.stop(process)
    assert process.returncode == 0
