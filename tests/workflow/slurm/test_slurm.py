"""The small study through a real SLURM of one machine, disturbed in every way, against a run without SLURM.

    apt-get install --no-install-recommends slurm-wlm munge slurmdbd slurm-wlm-mysql-plugin mariadb-server
    python -m pytest -m slow tests/workflow/slurm

takes about 25 minutes on two cores that have nothing else to do; skipped where SLURM is not installed.
"""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.small_study import MODELS, histocrypt, write_study
from tests.tiny_section import write_tiny_section
from tests.training.conftest import colour_model
from tests.workflow.slurm.cluster import Slurm, processes_of, profile, wait_for

from histocrypt import paths
from histocrypt.files import read_json

pytestmark = pytest.mark.slow

NETWORKS = {name: MODELS[name] for name in ("vision_mlp", "fhe_head")}
STUDY = {"demo": {"sections": 3, "spots_per_side": 8, "genes": 60}, "models": NETWORKS, "stacking": None}
HELD = "30_training__vision_mlp__fold_1"
"""The training that is cancelled twice."""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM that keeps no accounts: ``sacct`` is there and fails."""
    cluster = Slurm(tmp_path_factory.mktemp("slurm"), "--cpus", "2", "--gpus", "1")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def night(slurm, tmp_path_factory):
    """One study, run after run, each disturbed in its own way; the last is left alone."""
    outputs = tmp_path_factory.mktemp("outputs")
    study = write_study(outputs, "small", **STUDY)
    ours = profile(outputs / "profile", **{"max-threads": 1})
    happened = {"outputs": outputs, "study": study, "profile": ours}

    # Everything is killed outright on the login node; the job goes on.
    process = slurm.start(study, outputs, ours)
    wait_for(lambda: slurm.running("10_eda"), process)
    _kill_family(process)
    left = happened["left by the kill"] = [job for job, _, _ in slurm.jobs("RUNNING")]

    # The next run ends that job before it starts anything, and is stopped with Ctrl-C.
    process = slurm.start(study, outputs, ours)
    wait_for(lambda: not {job for job, _, _ in slurm.jobs("RUNNING")} & {*left}, process)
    happened["ended by the next run"] = [state for job, state, _ in slurm.jobs() if job in left]
    wait_for(lambda: slurm.running("20_preprocessing"), process)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    said, _ = process.communicate(timeout=300)
    happened["ctrl-c"] = (process.returncode, said, time.monotonic() - began)
    happened["left by ctrl-c"] = slurm.jobs("PENDING,RUNNING,COMPLETING")

    # One training is cancelled twice, the kernel of another is killed once.
    process = slurm.start(study, outputs, ours)
    first = wait_for(lambda: slurm.running(HELD), process)
    happened["asked for"] = slurm.said("scontrol", "show", "job", first)
    happened["threads"] = {_variable(pid, "OMP_NUM_THREADS") for pid in wait_for(lambda: processes_of(first), process)}
    slurm.said("scancel", first)
    killed, _, what = wait_for(lambda: _another_training(slurm), process)
    happened["killed once"] = what.removeprefix("rule_")
    # A kernel that dies before its first cell would be started once more in the same job.
    log = outputs / "small" / "logs" / f"{happened['killed once']}.log"
    wait_for(lambda: log.is_file() and "Executing Cell" in log.read_text(), process)
    for pid in processes_of(killed):
        os.kill(pid, signal.SIGKILL)
    second = wait_for(lambda: (job := slurm.running(HELD)) != first and job, process)
    happened["asked for again"] = slurm.said("scontrol", "show", "job", second)
    slurm.said("scancel", second)
    said, _ = process.communicate(timeout=3600)
    happened["twice"] = (process.returncode, said)
    happened["kept"] = {path.name: path.stat().st_mtime_ns for path in outputs.glob("small/notebooks/*.ipynb")}
    happened["slurm logs"] = list((outputs / "small" / "logs" / "slurm").rglob("*.log"))

    happened["last"] = slurm.run(study, outputs, ours)
    return happened


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The same study on this machine, in one go."""
    outputs = tmp_path_factory.mktemp("here")
    study = write_study(outputs, "small", **STUDY)
    finished = histocrypt("run", study, "--cores", "2", outputs=outputs)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return outputs / "small"


def test_a_run_that_was_killed_leaves_no_job_to_the_next(night):
    assert night["left by the kill"]
    _, said, _ = night["ctrl-c"]
    cancelled = int(re.search(r"cancelled: (\d+)", said)[1])
    assert cancelled >= len(night["left by the kill"]), "one more may have been on its way to the cluster"
    assert {*night["ended by the next run"]} == {"CANCELLED"}


def test_ctrl_c_cancels_the_jobs(night):
    code, said, seconds = night["ctrl-c"]
    assert code == 130
    assert "what was finished is kept" in said
    assert night["left by ctrl-c"] == []
    assert seconds < 60


def test_a_job_gets_what_it_asked_for(night):
    assert "NumCPUs=1" in night["asked for"]
    assert night["threads"] == {"1"}
    megabytes = [_megabytes(night[asked]) for asked in ("asked for", "asked for again")]
    assert megabytes[0] > 1000
    assert megabytes[1] == pytest.approx(2 * megabytes[0], abs=100), "twice as much, rounded, when it is tried again"


def test_what_fails_twice_is_named_and_the_rest_goes_on(night):
    code, said = night["twice"]
    assert code == 1
    assert "30_training vision_mlp fold_1 failed (CANCELLED)" in said
    assert "30_training vision_mlp fold_1 is tried once more" in said
    assert "30_training vision_mlp fold_1 failed: it was cancelled" in said
    assert "Traceback" not in said
    killed = night["killed once"].replace("__", " ")
    assert f"{killed} failed (FAILED)" in said
    assert f"{killed} is tried once more" in said
    assert said.count(" failed: ") == 1, "one notebook failed in the end"
    others = {f"30_training__{family}__fold_3.ipynb" for family in ("vision_mlp", "fhe_head", "baselines")}
    assert others <= {*night["kept"]}
    assert "30_training__vision_mlp__fold_1.ipynb" not in night["kept"]
    assert {f"rule_{HELD}", f"rule_{night['killed once']}"} <= {
        part for path in night["slurm logs"] for part in path.parts
    }


def test_the_next_run_finishes_and_keeps_what_was_done(night):
    code, said = night["last"]
    assert code == 0, said
    for name, modified in night["kept"].items():
        assert (night["outputs"] / "small" / "notebooks" / name).stat().st_mtime_ns == modified, name


def test_what_comes_out_equals_a_run_without_slurm(night, here):
    benchmark = runpy.run_path(str(paths.repository() / "benchmarks" / "compare_runs.py"))
    assert benchmark["differences"](night["outputs"] / "small", here) == []
    assert len(list(here.glob("models/*/*/weights.safetensors"))) > 20
    assert list(here.glob("predictions/**/*.h5ad"))


def test_a_finished_run_has_nothing_to_do(night, slurm):
    code, said = slurm.run(night["study"], night["outputs"], night["profile"])
    assert code == 0
    assert "nothing to do" in said


def test_a_long_training_asks_for_a_gpu(night, slurm):
    outputs = night["outputs"]
    study = write_study(outputs, "small", **{**STUDY, "models": {**NETWORKS, "vision_mlp": {"epochs": 2000}}})
    ours = profile(outputs / "with a gpu", **{"max-threads": 2, "resources": ["gpu=1"]})
    process = slurm.start(study, outputs, ours)
    job = wait_for(lambda: slurm.running("30_training__vision_mlp"), process)
    asked = slurm.said("scontrol", "show", "job", job)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert "TresPerJob=gres:gpu:1" in asked
    assert "NumCPUs=2" in asked
    assert "TresPerJob" not in night["asked for"]


def test_memory_that_is_not_enough_is_doubled(slurm, tmp_path):
    """SLURM ends a job that takes more than it asked for; with twice as much it ends well."""
    study = write_study(tmp_path, "lean")
    asked = {"max-threads": 1, "set-resources": ["eda:mem_mb=250*2**(2*(attempt-1))"]}
    code, said = slurm.run(study, tmp_path, profile(tmp_path / "p", **asked), "--until", "10_eda")
    assert code == 0, said
    assert "10_eda failed (OUT_OF_MEMORY)" in said
    assert "10_eda is tried once more" in said


def test_a_job_that_will_never_start_is_told(slurm, tmp_path):
    study = write_study(tmp_path, "wide")
    process = slurm.start(study, tmp_path, profile(tmp_path / "p", **{"set-threads": ["eda=64"]}))
    said = ""
    while "(SLURM job" not in said:
        said = process.stdout.readline()
        assert said, "the run ended"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert "10_eda asks for" in said
    assert process.returncode == 130


def test_with_accounting(tmp_path):
    accounted = Slurm(tmp_path / "slurm", "--cpus", "2", "--accounting")
    try:
        study = write_study(tmp_path, "small", **{**STUDY, "models": {}})
        ours = profile(tmp_path / "p", **{"default-resources": {"slurm_account": "lab", "slurm_partition": "other"}})
        code, said = accounted.run(study, tmp_path, ours, "--until", "20_preprocessing")
        assert code == 0, said
        log = (tmp_path / "small" / "logs" / "snakemake.log").read_text()
        assert "--slurm-status-command sacct" in log
        done = accounted.said("sacct", "-X", "-n", "-P", "--format=State,Account,Partition,AllocCPUS").splitlines()
        assert done.count("COMPLETED|lab|other|1") == 4

        for name, value, word in (("slurm_account", "nobody", "lab"), ("slurm_partition", "fast", "main, other")):
            wrong = profile(tmp_path / "wrong", **{"default-resources": {name: value}})
            code, said = accounted.run(study, tmp_path, wrong)
            assert code == 2
            assert f"found '{value}'" in said
            assert word in said
            assert len(said.splitlines()) == 1
    finally:
        accounted.stop()


def test_inside_a_job_of_its_own(slurm, tmp_path):
    """The run itself may be a job: a night's work that needs no open terminal."""
    study = write_study(tmp_path, "inner", **{**STUDY, "models": {}})
    ours = profile(tmp_path / "p", **{"max-threads": 1})
    said = tmp_path / "said.log"
    command = f"histocrypt run {study} --profile {ours} --until 20_preprocessing"
    submit = ["sbatch", "--wait", "--mem=2000", f"--output={said}", "--wrap", command]
    ended = subprocess.run(submit, env=slurm.environment(tmp_path), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, said.read_text()
    assert len(list(tmp_path.glob("inner/notebooks/20_preprocessing__*.ipynb"))) == 3


def _another_training(slurm: Slurm) -> tuple[str, str, str] | None:
    trainings = (job for job in slurm.jobs("RUNNING") if job[2].startswith("rule_30_training__"))
    return next((job for job in trainings if not job[2].endswith(HELD)), None)


def _kill_family(process) -> None:
    import psutil

    parent = psutil.Process(process.pid)
    family = [*parent.children(recursive=True), parent]
    for one in family:
        one.kill()
    psutil.wait_procs(family, timeout=30)
    process.communicate()


def _variable(pid: int, name: str) -> str | None:
    pairs = (pair.partition("=") for pair in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return next((value for key, _, value in pairs if key == name), None)


def _megabytes(job: str) -> int:
    return int(job.partition("MinMemoryNode=")[2].split("M")[0])


def test_a_folder_of_slides_killed_on_the_login_node(slurm, tmp_path):
    """Jobs that a killed command left are cancelled by the next, which keeps what was whole."""
    outputs, slides = tmp_path / "out", tmp_path / "in"
    for number in range(4):
        write_tiny_section(slides, f"S{number}")
    ours = profile(tmp_path / "profile", **{"max-threads": 1})
    command = ["predict", slides, "-o", outputs, "--model", colour_model(tmp_path / "model"), "--profile", ours]
    command = list(map(str, [sys.executable, "-m", "histocrypt", *command]))
    how = {"env": slurm.environment(tmp_path), "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **how)
    wait_for(lambda: list(outputs.glob("*/state.json")) and slurm.running("slide"), process)
    asked = slurm.said("scontrol", "show", "job", slurm.jobs("RUNNING,PENDING")[0][0])
    assert 1000 < _megabytes(asked) < 3000
    _kill_family(process)
    done = subprocess.run(command, check=False, timeout=1200, **how)
    assert done.returncode == 0, done.stdout
    assert "slides are there already" in done.stdout
    states = [read_json(path) for path in sorted(outputs.glob("*/state.json"))]
    assert [state["status"] for state in states] == ["predicted"] * 4
    assert slurm.jobs("PENDING,RUNNING,COMPLETING") == []
