"""Starts Snakemake, which orders and runs the notebooks of a study."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from histocrypt import paths
from histocrypt.errors import InputError, unknown_name
from histocrypt.files import write_json
from histocrypt.study import Study, load_study
from histocrypt.workflow.artifacts import intact
from histocrypt.workflow.cluster import Cluster, cancel_left
from histocrypt.workflow.plan import plan, told
from histocrypt.workflow.progress import said_when_full
from histocrypt.workflow.record import notice, recorded
from histocrypt.workflow.stages import SET_BY_WORKFLOW, STAGES, Command, Profile, known_parameters
from histocrypt.workflow.watch import watch


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
        Snakemake profile: a folder, or the name of one in ``workflow/profiles``; ``local`` by default.
    dry_run
        Only print what would run, why, and what it takes.

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
    command = Command(study_file, study, Profile.read(profile, cores=cores), cores, until, given)
    given_files = input_files(study)  # a section that is not there is said here, in one sentence, and not by Snakemake
    with said_when_full(study), _only_one(study) as lock:
        cluster = None if dry_run else Cluster.ready(study, command.profile)
        if not dry_run and (left := cancel_left(study)):
            print(f"histocrypt: jobs of a run that was killed were still on the cluster; cancelled: {left}")
        with intact(study, dry_run=dry_run, spare=given_files):
            if other := notice(study.run):
                print(f"histocrypt: {other}")
            if dry_run:
                print(told(plan(command), command))
                return 0
            write_json(study.run.study, study.model_dump(mode="json"))
            # Nobody else runs this study (we hold its lock): a Snakemake lock can only be left over from a kill.
            subprocess.run(command.line("--unlock"), cwd=paths.repository(), check=False, capture_output=True)
            line = command.line(*(cluster.options() if cluster else []))
            return recorded(
                lambda: watch(line, study, lock, cluster),
                study,
                profile=command.profile.folder,
                until=until,
                parameters=given,
            )


def _checked(parameters: list[tuple[str, str]]) -> dict[str, str]:
    known = sorted(set().union(*(known_parameters(notebook) for notebook in STAGES)))
    for name, _ in parameters:
        if name in SET_BY_WORKFLOW:
            raise InputError("is set by the workflow itself", field=f"-p {name}", expected="one of " + ", ".join(known))
        if name not in known:
            raise unknown_name("notebook parameter", name, known, field="-p")
    return dict(parameters)


@contextmanager
def _only_one(study: Study) -> Iterator[IO[str]]:
    """Hold the study's lock file; a second run of the same study is refused."""
    study.run.logs.mkdir(parents=True, exist_ok=True)
    path = study.run.root / ".lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                "this study is already running", file=study.run.root, fix="wait for that run, or stop it first"
            ) from None
        yield lock
