"""``run.json``: what the runs of a study ran with, what their stages took, and how they ended.

Written when a run begins (outcome ``running``) and again when it ends, however it ends; a run that was killed outright
is told from one that is running by the study's lock. A run that finds nothing to do adds a line to ``history`` and
leaves the rest: the commit and the versions stay those that made the results.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, ValidationError

from histocrypt import paths
from histocrypt.data.folds import FINAL
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json
from histocrypt.machine import git_state, machine, versions
from histocrypt.paths import RunFolder
from histocrypt.study import Study

if TYPE_CHECKING:
    import pandas as pd

Outcome = Literal["running", "finished", "failed", "interrupted"]


class Part(BaseModel):
    """A record; keys that this version does not know are kept."""

    model_config = ConfigDict(extra="allow")


class Stage(Part):
    """What one notebook took for one section, or for one model and fold. Memory in GiB, times in UTC."""

    job: str
    notebook: str
    section: str | None = None
    model: str | None = None
    fold: str | None = None
    outcome: Outcome
    begun: datetime
    ended: datetime | None = None
    seconds: NonNegativeFloat | None = None
    cpu_seconds: NonNegativeFloat | None = None
    peak_gib: NonNegativeFloat | None = None
    threads: int | None = None
    attempt: int = 1
    """Of the run that made it; a cluster tries a failed job once more."""
    commit: str | None = None
    """Of the checkout that made it; ``-dirty`` where tracked files were changed."""


def read_stages(run: paths.RunFolder) -> list[Stage]:
    """Return what each job of a run folder left, in the order in which they began; what is unreadable is left out."""
    found = []
    for file in run.stages.glob("*.json"):
        try:
            found.append(Stage.model_validate_json(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return sorted(found, key=lambda stage: (stage.begun, stage.job))


def belonging(stages: Iterable[Stage], study: Study) -> list[Stage]:
    """Return the stages whose section, model and fold the study still has; what it had once stays on the disk."""
    sections = _names(study.run.eda / "summary.json", "sections", "section")
    folds = _names(study.run.folds, "folds", "name")
    models = {None, "baselines", *study.model_names}
    return [
        stage
        for stage in stages
        if stage.model in models
        and (sections is None or stage.section in {None, *sections})
        and (folds is None or stage.fold in {None, FINAL, *folds})
    ]


def _names(file: Path, part: str, key: str) -> set[str] | None:
    """Return the names in a part of an artifact; None where it is not there yet, or broken by what stopped a run."""
    try:
        return {row[key] for row in read_json(file)[part]}
    except (InputError, KeyError, TypeError):
        return None


def added_up(stages: Iterable[Stage]) -> pd.DataFrame:
    """Return one row per notebook and model, in the order in which they began.

    Columns: ``notebook``, ``model`` (empty where there is none), ``jobs``, ``seconds`` and ``cpu_seconds`` (sums),
    ``slowest`` (seconds) and ``peak_gib`` (the largest). Stages that did not finish are left out.
    """
    import pandas as pd

    columns = ["notebook", "model", "seconds", "cpu_seconds", "peak_gib"]
    done = [stage for stage in stages if stage.outcome == "finished"]
    table = pd.DataFrame([[getattr(stage, name) for name in columns] for stage in done], columns=columns)
    table = table.assign(model=table["model"].fillna(""), jobs=1, slowest=table["seconds"])
    sums = {"jobs": "sum", "seconds": "sum", "cpu_seconds": "sum", "slowest": "max", "peak_gib": "max"}
    return table.groupby(["notebook", "model"], sort=False).agg(sums).reset_index()


HISTORY_KEPT = 50
INTERRUPTED = 130
"""The exit code of a run that was stopped with Ctrl-C."""


class Run(Part):
    """One call of ``histocrypt run``, briefly."""

    hash: str
    outcome: Outcome
    failed: list[str] = []
    """Jobs that failed."""
    begun: datetime
    ended: datetime | None = None
    seconds: NonNegativeFloat | None = None
    jobs: int = 0
    """How many it started."""
    profile: str
    until: str | None = None
    git: dict[str, Any]
    versions: dict[str, str]


class Record(Run):
    """The last run that did something, and what is left of all of them."""

    study: str
    parameters: dict[str, str] = {}
    """Notebook parameters given by the user."""
    seeds: dict[str, int]
    machine: dict[str, Any]
    """Where the run was started; on a cluster, jobs have machines of their own."""
    stages: list[Stage] = []
    artifacts: dict[str, str] = {}
    """SHA-256 of the tables of scores: two runs with the same ones have the same results."""
    history: list[Run] = []
    """Other runs, oldest first."""


def recorded(
    work: Callable[[], int], study: Study, *, profile: Path, until: str | None, parameters: dict[str, str]
) -> int:
    """Do ``work``, which returns the exit code of a run, and keep ``run.json`` up to date. The study must be locked."""
    earlier = earlier_record(study.run)
    own = _begin(study, profile=profile, until=until, parameters=parameters, earlier=earlier)
    code = 1
    try:
        code = work()
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise
    finally:
        _write(study.run, _ended(own, study, code, earlier))
    return code


def _begin(
    study: Study, *, profile: Path, until: str | None, parameters: dict[str, str], earlier: Record | None
) -> Record:
    inside = profile.resolve().is_relative_to(paths.repository())
    record = Record(
        study=study.name,
        hash=study.hash(),
        outcome="running",
        begun=_now(),
        profile=profile.resolve().relative_to(paths.repository()).as_posix() if inside else profile.name,
        until=until,
        parameters=parameters,
        seeds=dict(_seeds(study.model_dump(mode="json"))),
        git=git_state(),
        versions=versions(),
        machine=machine(),
        stages=_merged(earlier.stages if earlier else [], study.run, None, {"running": "interrupted"})[0],
        artifacts=earlier.artifacts if earlier else {},
        history=[*earlier.history, _brief(earlier)] if earlier else [],
    )
    _write(study.run, record)
    return record


def _ended(own: Record, study: Study, code: int, earlier: Record | None) -> Record:
    """Return the record of a run that has ended with this exit code."""
    ends = dict.fromkeys(("running", "failed"), "interrupted" if code == INTERRUPTED else "failed")
    stages, mine = _merged(own.stages, study.run, _label(own.git), ends)
    own.stages = belonging(stages, study)
    own.outcome = {0: "finished", INTERRUPTED: "interrupted"}.get(code, "failed")
    own.failed = [stage.job for stage in mine if stage.outcome == "failed"]
    own.jobs = len(mine)
    own.ended = _now()
    own.seconds = round((own.ended - own.begun).total_seconds(), 1)
    own.artifacts = dict(_hashes(study.run))
    if earlier and not mine and own.outcome == earlier.outcome == "finished" and own.hash == earlier.hash:
        return earlier.model_copy(update={"history": [*earlier.history, _brief(own)], "stages": own.stages})
    if earlier is None and not mine and own.outcome == "finished":  # what there is was made by something older
        own.git = {"commit": None, "note": "made before runs were recorded"}
        own.versions, own.machine = {}, {}
    return own


def read_record(root: Path, *, locked: bool = False) -> Record:
    """Read the record of a run folder.

    Parameters
    ----------
    root
        The run folder.
    locked
        We hold its lock ourselves: a run that says it is running was killed.

    Raises
    ------
    InputError
        If there is none, or it is not one.
    """
    file = paths.RunFolder(root).record
    if not file.is_file():
        fix = "histocrypt run writes it, and does not repeat finished steps"
        raise InputError("has no run.json", file=root, expected="the folder of a run", fix=fix)
    content = read_json(file)
    try:
        record = Record.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or None
        raise InputError(f"is not the record of a run ({first['msg']})", file=file, field=field) from error
    if record.outcome == "running":
        record.outcome = "running" if not locked and is_running(root) else "interrupted"
        ends = {} if record.outcome == "running" else {"running": "interrupted"}
        record.stages, mine = _merged(record.stages, paths.RunFolder(root), _label(record.git), ends)
        record.jobs = len(mine)
        if ends:  # nobody wrote when
            record.ended = max((stage.ended for stage in mine if stage.ended), default=record.begun)
        record.seconds = max(0.0, ((record.ended or _now()) - record.begun).total_seconds())
    return record


def _merged(
    known: list[Stage], run: paths.RunFolder, commit: str | None, ends: dict[Outcome, Outcome]
) -> tuple[list[Stage], list[Stage]]:
    """Return the stages of a run folder, and those among them that are not known yet.

    A stage is known by when it began, as written where it ran: clocks of nodes may differ. What is not known was made
    from ``commit``; its outcome is translated by ``ends``.
    """
    before = {stage.job: stage for stage in known}
    stages, new = [], []
    for stage in read_stages(run):
        if stage.job in before and before[stage.job].begun == stage.begun:
            stages.append(before[stage.job])
            continue
        stages.append(stage.model_copy(update={"commit": commit, "outcome": ends.get(stage.outcome, stage.outcome)}))
        new.append(stages[-1])
    return stages, new


def is_running(root: Path) -> bool:
    """Return whether a run holds the lock of this run folder."""
    try:
        with (root / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _label(git: dict[str, Any]) -> str | None:
    return f"{git['commit']}-dirty" if git.get("dirty") else git["commit"]


def earlier_record(run: paths.RunFolder) -> Record | None:
    """Return what there is of earlier runs; a broken record keeps no run from starting."""
    try:
        return read_record(run.root, locked=True)
    except InputError:
        return None


def _brief(record: Record) -> Run:
    return Run(**{name: getattr(record, name) for name in Run.model_fields})


def _seeds(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield every seed that a study names, with the path to it."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _seeds(value, f"{prefix}{name}.")
        elif name == "seed" and isinstance(value, int):
            yield prefix + name, value


def _hashes(run: paths.RunFolder) -> Iterator[tuple[str, str]]:
    for file in sorted(run.evaluation.glob("*.csv")):
        yield file.relative_to(run.root).as_posix(), hashlib.sha256(file.read_bytes()).hexdigest()


def _write(run: paths.RunFolder, record: Record) -> None:
    kept = record.model_copy(update={"history": sorted(record.history, key=lambda one: one.begun)[-HISTORY_KEPT:]})
    try:
        write_json(run.record, {"study": record.study, **kept.model_dump(mode="json")})
    except OSError as error:  # a full disk: what it means for the run is said by its stages
        print(f"histocrypt: {run.record.name} is not up to date ({error.strerror})", file=sys.stderr)


def _now() -> datetime:
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


CODE = ("lib", "notebooks", "workflow")
"""Folders of the checkout that results depend on."""


def notice(run: RunFolder, *, checkout: Path | None = None) -> str | None:
    """Return one sentence on the finished stages of a run folder that other code made; None if there are none.

    A stage knows the commit of the checkout that made it; one made by files that were not committed counts as other.
    Where there is no git, or a commit is not known here, nothing can be said of a stage and it counts as other, too.

    Parameters
    ----------
    run
        The run folder; its lock is held.
    checkout
        Root of the checkout; this repository's if not given. Without one, nothing is said at all.
    """
    checkout = checkout or paths.repository()
    record = earlier_record(run)
    if record is None or not (checkout / ".git").exists():
        return None
    stages = record.stages
    made = Counter(stage.commit for stage in stages if stage.outcome == "finished" and stage.commit)
    other = {commit: number for commit, number in made.items() if _differs(commit, checkout)}
    if not other:
        return None
    commits = ", ".join(sorted(commit[:7] + ("-dirty" if "-" in commit else "") for commit in other))
    return (
        f"{sum(other.values())} of {made.total()} finished stages were made by other code (commit {commits}) and are "
        f"kept; to make them again, delete their notebooks in {run.notebooks}"
    )


def _differs(commit: str, checkout: Path) -> bool:
    if "-" in commit:  # files that nobody can compare any more
        return True
    command = ["git", "--no-optional-locks", "-C", str(checkout), "diff", "--quiet", commit, "--", *CODE]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode != 0
    except (OSError, subprocess.SubprocessError):
        return True
