"""Starts Snakemake, which orders and runs the notebooks of a study."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from histocrypt import paths
from histocrypt.answer import answer
from histocrypt.errors import InputError, unknown_name
from histocrypt.explore.overview import listed
from histocrypt.explore.survey import input_files, survey
from histocrypt.files import read_json, write_json
from histocrypt.paths import RunFolder
from histocrypt.study import Study, load_study
from histocrypt.workflow.artifacts import follow, intact, moved_from, same_under_new_rules, tissue_flaw
from histocrypt.workflow.cluster import Cluster, cancel_left
from histocrypt.workflow.command import Command, Profile
from histocrypt.workflow.outline import Outline
from histocrypt.workflow.plan import Plan, figures, plan, told
from histocrypt.workflow.progress import said_when_full
from histocrypt.workflow.record import notice, recorded
from histocrypt.workflow.stages import SET_BY_WORKFLOW, STAGES, known_parameters
from histocrypt.workflow.watch import watch


def run_study(
    study_file: Path,
    *,
    cores: int = 0,
    until: str | None = None,
    parameters: list[tuple[str, str]] | None = None,
    profile: Path | None = None,
    dry_run: bool = False,
    as_json: bool = False,
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
    as_json
        Print that plan as one JSON document.

    Raises
    ------
    InputError
        If the study, a notebook name, a parameter or the profile is wrong, or the study is already running.
    """
    if as_json and not dry_run:
        raise InputError("only a plan is printed as JSON", field="--json", fix="add --dry-run")
    study = load_study(study_file)
    if until is not None and until not in STAGES:
        raise unknown_name("notebook", until, STAGES, field="--until")
    given = _checked(parameters or [])
    command = Command(study_file, study, Profile.read(profile, cores=cores), cores, until, given)
    files = input_files(study)  # a section that is not there is said here, in one sentence, and not by Snakemake
    for path in (study.run.root, paths.repository(), *files):
        if "{" in str(path):
            raise InputError(
                "contains braces, which Snakemake reads as wildcards", file=path, fix="rename it, or move it"
            )
    if dry_run:
        answer(
            lambda: _planned(study, command, files),
            lambda what: told(what, command),
            as_json=as_json,
            document=lambda what: figures(what, command),
        )
        return 0
    with said_when_full(study), only_one(study) as lock:
        cluster = Cluster.ready(study, command.profile)
        if left := cancel_left(study):
            print(f"histocrypt: jobs of a run that was killed were still on the cluster; cancelled: {left}")
        outline = _outline(study)
        notes = study.run.root / ".snakemake" / "metadata"
        if same_under_new_rules(study.run, study.model_dump(mode="json")):
            shutil.rmtree(notes, ignore_errors=True)
        elif notes.is_dir() and (before := moved_from(study.run)):
            with tempfile.TemporaryDirectory(dir=study.run.root) as folder:
                follow(study.run, before, Path(folder) / "metadata")
                shutil.rmtree(notes, ignore_errors=True)
                (Path(folder) / "metadata").rename(notes)
        with intact(outline, spare=files):
            if other := notice(study.run):
                print(f"histocrypt: {other}")
            write_json(study.run.study, study.model_dump(mode="json"))
            line = command.line(
                *(cluster.options() if cluster else []),
                directory=study.run.root,
                survey=outline.write(study.run.survey),
            )
            # Nobody else runs this study (we hold its lock): a Snakemake lock can only be left over from a kill.
            shutil.rmtree(study.run.root / ".snakemake" / "locks", ignore_errors=True)
            threads, gpus = command.profile.threads, command.profile.gpus
            expected = {job.name: job.asks(threads=threads, gpus=gpus).seconds for job in outline.jobs}
            return recorded(
                lambda: watch(line, study, lock, cluster, expected=expected),
                study,
                profile=command.profile.folder,
                until=until,
                parameters=given,
            )


def _planned(study: Study, command: Command, files: list[Path]) -> Plan:
    with only_one(study, dry_run=True):
        outline = _outline(study, dry_run=True)
        with intact(outline, dry_run=True, spare=files) as broken:
            if other := notice(study.run):
                print(f"histocrypt: {other}")
            return plan(command, outline, [found.job.name for found in broken])


def _outline(study: Study, *, dry_run: bool = False) -> Outline:
    """Survey a study's sections and return what follows from them; a dry run simulates no tissue and keeps nothing."""
    wrong = tissue_flaw(study.run)
    if wrong:
        print(f"histocrypt: {wrong}; the tissue is simulated again")
        if not dry_run:
            (study.run.demo_tissue / "demo_tissue.json").unlink()
    rows = [listed(*section) for section in survey(study, keep=not dry_run, tissue=not wrong).items()]
    for row in rows:
        row["files"] = [file for file in row["files"] if Path(file).exists()]  # a plan may be of tissue to be simulated
    outline = Outline(study, rows, early=not _is_finished(study.run))
    for job in outline.jobs:  # what the sections forbid, such as a fold that there is not, is refused here
        _ = job.reads, job.makes
    return outline


def _is_finished(run: RunFolder) -> bool:
    """Return whether a report of a finished run is there, which no lesser one is to replace before the next is made."""
    covers = run.evaluation / "covers.json"
    return run.report.is_file() and not (covers.is_file() and read_json(covers).get("coming"))


def _checked(parameters: list[tuple[str, str]]) -> dict[str, str]:
    known = sorted(set().union(*map(known_parameters, STAGES)))
    for name, _ in parameters:
        if name in SET_BY_WORKFLOW:
            raise InputError("is set by the workflow itself", field=f"-p {name}", expected="one of " + ", ".join(known))
        if name not in known:
            raise unknown_name("notebook parameter", name, known, field="-p")
    return dict(parameters)


@contextmanager
def only_one(study: Study, *, dry_run: bool = False) -> Iterator[IO[str] | None]:
    """Hold the study's lock file. A second run is refused; dry runs share the lock, and a run waits for them."""
    path = study.run.root / ".lock"
    if dry_run and not path.is_file():
        yield None
        return
    study.run.logs.mkdir(parents=True, exist_ok=True)
    with path.open("r" if dry_run else "a+") as lock:
        while not _locked(lock, fcntl.LOCK_SH if dry_run else fcntl.LOCK_EX):
            if not _locked(lock, fcntl.LOCK_SH):
                raise InputError(
                    "this study is already running", file=study.run.root, fix="wait for that run, or stop it first"
                )
            fcntl.flock(lock, fcntl.LOCK_UN)  # only plans hold it, for seconds
            time.sleep(0.1)
        yield lock


def _locked(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
