"""What a job took is written down, whether it ends well or not."""

import json
import os
import subprocess
import sys
import textwrap

import nbformat
import pytest


@pytest.fixture
def measured(tmp_path):
    """Return the function that runs a module's code as a job: (exit code, record)."""

    def run(code, *arguments):
        (tmp_path / "job.py").write_text(textwrap.dedent(code))
        log = tmp_path / "logs" / "30_training__m__fold_1.log"
        command = [sys.executable, "-m", "histocrypt.workflow.measure", str(log), "job", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False).returncode
        return code, json.loads((tmp_path / "logs" / "stages" / "30_training__m__fold_1.json").read_text())

    return run


def test_the_peak_of_a_child_is_exact_however_short(measured):
    code, record = measured(
        """
        import subprocess, sys
        subprocess.run([sys.executable, "-c", "b = bytearray(b'x') * (400 << 20)"])
        """
    )
    assert code == 0
    assert 0.39 < record["largest_process_gib"] < 0.5
    assert record["peak_gib"] >= record["largest_process_gib"]


def test_processes_at_the_same_time_are_added_up(measured):
    _, record = measured(
        """
        import subprocess, sys
        hold = "import time; b = bytearray(b'x') * (200 << 20); time.sleep(4)"
        both = [subprocess.Popen([sys.executable, "-c", hold]) for _ in range(2)]
        print([one.wait() for one in both])
        """
    )
    assert record["processes"] == 3
    assert record["largest_process_gib"] < 0.3
    assert 0.39 < record["peak_gib"] < 0.6


def test_time_of_children_and_what_the_job_was_of(measured):
    code, record = measured(
        """
        import subprocess, sys
        subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 1: pass"])
        """,
        "in.ipynb", "out.ipynb", "-p", "study", "s.yaml", "-p", "model", "m", "-p", "fold", "fold_1",
    )  # fmt: skip
    assert code == 0
    assert record["cpu_seconds"] >= 1 <= record["seconds"] + 0.01
    assert (record["notebook"], record["section"], record["model"], record["fold"]) == (
        "30_training",
        None,
        "m",
        "fold_1",
    )
    assert (record["outcome"], record["threads"]) == ("finished", 1)


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise ValueError('no')"])
def test_a_job_that_fails_is_recorded_and_fails(measured, code):
    status, record = measured(code)
    assert status == (3 if "3" in code else 1)
    assert record["outcome"] == "failed"
    assert record["peak_gib"] > 0


def test_a_job_that_is_killed_stays_as_running(measured):
    """Whoever reads it knows whether it still can be."""
    status, record = measured("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert status == -9
    assert record["outcome"] == "running"
    assert "seconds" not in record


def test_a_record_that_cannot_be_written_does_not_stop_the_job(tmp_path):
    (tmp_path / "job.py").write_text("print('done')")
    (tmp_path / "stages").write_text("a file where the folder should be")
    command = [sys.executable, "-m", "histocrypt.workflow.measure", str(tmp_path / "x.log"), "job"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, "done")
    assert "no record of this job" in ended.stderr


@pytest.mark.parametrize(
    ("fails", "how", "said"),
    [
        (1, "raise SystemExit(1)", "before replying"),
        (1, "time.sleep(600)", "in 20 seconds"),
        (2, "raise SystemExit(1)", "before replying"),
    ],
    ids=["dies", "hangs", "dies twice"],
)
def test_a_kernel_that_does_not_come_up_is_started_once_more(tmp_path, fails, how, said):
    """A kernel that fails to start as often as it is told to, and is then the usual one."""
    (tmp_path / "kernel.py").write_text(
        textwrap.dedent(
            f"""
            import pathlib, runpy, time
            started = pathlib.Path("{tmp_path}/started")
            started.open("a").write("x")
            if len(started.read_text()) <= {fails}:
                {how}
            runpy.run_module("ipykernel_launcher", run_name="__main__")
            """
        )
    )
    spec = {"argv": [sys.executable, str(tmp_path / "kernel.py"), "-f", "{connection_file}"], "language": "python"}
    folder = tmp_path / "jupyter" / "kernels" / "late"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps({**spec, "display_name": "late"}))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("6 * 7")])
    nbformat.write(notebook, tmp_path / "in.ipynb")
    log = tmp_path / "logs" / "one.log"
    command = [sys.executable, "-m", "histocrypt.workflow.measure", str(log), "papermill", "in.ipynb", "out.ipynb"]
    command += ["-k", "late", "--start-timeout", "20" if "sleep" in how else "60"]
    environment = {**os.environ, "JUPYTER_PATH": str(tmp_path / "jupyter"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "it is started once more" in ended.stderr
    assert said in ended.stderr
    assert (ended.returncode == 0) == (fails == 1)
    if fails == 1:
        assert "42" in str(nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs)
