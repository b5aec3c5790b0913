"""Drives a study: Snakemake orders the notebooks, this module starts it, shows progress and explains failures."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from histocrypt import paths
from histocrypt.atomic import write_json
from histocrypt.errors import InputError, unknown_name
from histocrypt.study import Study, load_study

STAGES = {
    "10_eda": "eda",
    "20_preprocessing": "preprocessed",
    "22_folds": "folds",
    "30_training": "trained_all",
    "32_multitask": "multitask_all",
    "34_diffusion": "diffusion_all",
    "38_inner_training": "inner_all",
    "40_stacking": "stacked_all",
    "50_fhe_inference": "encrypted_all",
    "60_synthetic_data": "synthesis_all",
    "62_membership_audit": "audit_all",
    "70_evaluation": "evaluated",
    "72_viewer": "all",
}
"""The Snakemake rule after which a notebook has run for everything, by notebook, in reading order."""

APART = ("00_data",)
"""Notebooks that no run executes: a person opens them before there is anything to run."""

SET_BY_WORKFLOW = {"study", "section", "model", "fold"}
"""Notebook parameters that the workflow itself fills in."""


@cache
def known_parameters(notebook: str) -> frozenset[str]:
    """Return the parameters of a notebook that a user may set."""
    return frozenset(_inspect(notebook)) - SET_BY_WORKFLOW


def _inspect(notebook: str) -> dict[str, dict[str, str]]:
    from papermill import inspect_notebook

    return inspect_notebook(str(paths.repository() / "notebooks" / f"{notebook}.ipynb"))


def run_study(
    study_file: Path,
    *,
    cores: int = 0,
    until: str | None = None,
    parameters: list[tuple[str, str]] | None = None,
    profile: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run a study from section files to report and return the exit code.

    What is finished stays; a later call goes on from there and reruns only what a change touches.

    Parameters
    ----------
    study_file
        The study, YAML.
    cores
        Cores to use; 0 means all.
    until
        Notebook to stop after, e.g. ``"20_preprocessing"``.
    parameters
        Notebook parameters, name and value; each goes to every notebook that knows it.
    profile
        Snakemake profile folder; ``workflow/profiles/local`` by default.
    dry_run
        Only print what would run.

    Raises
    ------
    InputError
        If the study, a notebook name, a parameter or the profile is wrong, or the study is already running.
    """
    from histocrypt.sections.read import input_files

    study = load_study(study_file)
    if until is not None and until not in STAGES:
        raise unknown_name("notebook", until, STAGES, field="--until")
    given = _checked(parameters or [])
    profile = profile or paths.repository() / "workflow" / "profiles" / "local"
    if not (profile / "config.yaml").is_file():
        raise InputError("profile has no config.yaml", file=profile, fix="workflow/profiles/local is an example")

    input_files(study)  # a section that is not there is said here, in one sentence, and not by Snakemake
    study.run.logs.mkdir(parents=True, exist_ok=True)
    with _only_one(study) as lock:
        command = _command(study_file, study, cores=cores, until=until, given=given, profile=profile)
        if dry_run:
            quiet = ["--dry-run", "--quiet", "host", "reason", "rules"]
            return subprocess.call([*command, *quiet], cwd=paths.repository())
        write_json(study.run.study, study.model_dump(mode="json"))
        # Nobody else runs this study (we hold its lock), so a Snakemake lock can only be left over from a kill.
        unlock = [*command, "--unlock"]
        subprocess.run(unlock, cwd=paths.repository(), check=False, capture_output=True)
        return _watch(command, study, lock)


def _checked(parameters: list[tuple[str, str]]) -> dict[str, str]:
    known = sorted(set().union(*(known_parameters(notebook) for notebook in STAGES)))
    for name, _ in parameters:
        if name in SET_BY_WORKFLOW:
            msg = "is set by the workflow itself"
            raise InputError(msg, field=f"-p {name}", expected="one of " + ", ".join(known))
        if name not in known:
            raise unknown_name("notebook parameter", name, known, field="-p")
    return dict(parameters)


def _command(
    study_file: Path, study: Study, *, cores: int, until: str | None, given: dict[str, str], profile: Path
) -> list[str]:
    command = [sys.executable, "-m", "snakemake", STAGES[until] if until else "all"]
    command += ["--snakefile", str(paths.repository() / "workflow" / "Snakefile")]
    command += ["--profile", str(profile), "--directory", str(study.run.root), "--nocolor"]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command += ["--cores", str(cores or usable)]
    command += ["--config", f"study={study_file.resolve()}", f"parameters={json.dumps(given)}"]
    return command


@contextmanager
def _only_one(study: Study) -> Iterator[IO[str]]:
    """Hold the study's lock file; a second run of the same study is refused."""
    path = study.run.root / ".lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            msg = "this study is already running"
            raise InputError(msg, file=study.run.root, fix="wait for that run, or stop it first") from None
        yield lock


_LOG = re.compile(r"^\s+log: (\S+)")
_JOB = re.compile(r"^\s+jobid: (\d+)")
_FINISHED = re.compile(r"^Finished jobid: (\d+)")
_STEPS = re.compile(r"^(\d+) of (\d+) steps")
_FAILED = re.compile(r"^\s+log: (\S+)\s+\(check log file")


def _watch(command: list[str], study: Study, lock: IO[str]) -> int:
    """Run Snakemake, print one line as each notebook starts and ends, and explain a failure."""
    began = time.monotonic()
    jobs: dict[str, tuple[str, float]] = {}
    steps, name, failed, said_anything = "", "", [], False
    log_path = study.run.logs / "snakemake.log"
    with log_path.open("w", encoding="utf-8") as log:
        # The child inherits the lock: if this process is killed outright, the study stays locked until Snakemake ends.
        process = subprocess.Popen(
            command,
            cwd=paths.repository(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                if match := _FAILED.match(line):
                    failed.append(Path(match[1]))
                elif match := _LOG.match(line):
                    name = Path(match[1]).stem
                elif match := _JOB.match(line):
                    if name:
                        jobs[match[1]] = (name, time.monotonic())
                        _say(began, f"{_readable(name)} ...")
                        said_anything = True
                    name = ""
                elif match := _FINISHED.match(line):
                    job, started = jobs.pop(match[1], ("", 0.0))
                    if job:
                        _say(began, f"{_readable(job)} done in {time.monotonic() - started:.0f} s{steps}")
                elif match := _STEPS.match(line):
                    steps = f"  ({match[1]} of {match[2]} steps)"
            code = process.wait()
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            _say(began, "interrupted: jobs stopped; what was finished is kept, the same command goes on from there")
            return 130
    if code:
        _explain(failed, log_path)
        return 2 if any(_input_error(path) for path in failed) else 1
    if not said_anything:
        _say(began, "nothing to do: every artifact is newer than what it is made from")
    if study.run.report.is_file():
        _say(began, f"report: {study.run.report}")
    return 0


def _readable(job: str) -> str:
    notebook, *rest = job.split("__")
    return " ".join([notebook, *rest])


def _say(began: float, text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    print(f"[{minutes:02d}:{seconds:02d}] {text}", flush=True)


def _explain(failed: list[Path], log_path: Path) -> None:
    if not failed:
        tail = "".join(log_path.read_text(encoding="utf-8").splitlines(keepends=True)[-15:])
        print(f"histocrypt: the workflow could not start; {log_path} ends with:\n{tail}", file=sys.stderr)
    for path in failed:
        reason = _input_error(path) or _last_line(path)
        notebook = Path(f"{path}.ipynb")
        opened = f"; the notebook as it stopped: {notebook}" if notebook.is_file() else ""
        print(f"histocrypt: {_readable(path.stem)} failed: {reason}\n  log: {path}{opened}", file=sys.stderr)
    print("histocrypt: what was finished is kept; the same command goes on from there", file=sys.stderr)


def _input_error(log: Path) -> str | None:
    """Return the sentence of an `InputError` that stopped a notebook, or None."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    found = re.findall(r"^(?:histocrypt\.errors\.)?InputError: (.+)$", text, flags=re.MULTILINE)
    return found[-1] if found else None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no log was written")
