"""A SLURM cluster: asked before a run starts whether it can take the jobs; rid of what a stopped run left on it.

Snakemake's executor submits from a thread: what is wrong with an account or a partition would be lost there and the run
would wait for ever. So it is found here, first, and said in one sentence.
"""

from __future__ import annotations

import ast
import getpass
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from histocrypt.errors import InputError
from histocrypt.workflow.command import Profile, Workload
from histocrypt.workflow.progress import readable

PROGRAMS = ("sbatch", "squeue", "scancel", "sinfo", "scontrol")
REMEMBERED_S = 240
"""How long SLURM must remember a job that has ended, where it keeps no accounts: Snakemake looks every 180 s."""
NEVER = re.compile(
    r"PartitionConfig|PartitionTimeLimit|PartitionNodeLimit|PartitionDown|BadConstraints|Invalid(?:Account|QOS)"
    r"|(?:Account|QOS)NotAllowed|(?:Assoc|QOS)(?:Grp|Max)\w*PerJob\w*"
)
"""Why SLURM holds a job that will not start as things stand, however long it waits."""
ANSWER_S = 60
"""How long SLURM may take to answer."""
GONE_S = 120
"""How long a cancelled job may take to end; SLURM kills what does not heed it after 30 s, as it comes."""


@dataclass(frozen=True)
class Cluster:
    """The cluster that a run's jobs go to."""

    prefix: str
    """Of the names of this run folder's jobs; the next run finds them by it."""
    status: str
    """The program that tells how jobs are: ``sacct`` where accounts are kept, else ``squeue``."""
    logs: Path

    @classmethod
    def ready(cls, study: Workload, profile: Profile) -> Cluster | None:
        """Return the cluster that a profile sends jobs to, if it can take them; None if jobs run elsewhere.

        Raises
        ------
        InputError
            If there is no SLURM here, it does not answer, a partition or an account of the profile does not exist, or
            SLURM forgets jobs before anybody has seen how they ended.
        """
        if profile.content.get("executor") != "slurm":
            return None
        file = profile.folder / "config.yaml"
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise InputError(
                f"there is no SLURM on this machine: {', '.join(missing)} not on the PATH",
                file=file,
                fix="start the run where jobs are submitted, or without --profile",
            )
        _check_partitions(_asked(profile.content, "slurm_partition"), file)
        _check_accounts(_asked(profile.content, "slurm_account"), file)
        return cls(_prefix(study), _status(file), _logs(study))

    def options(self) -> list[str]:
        """Return what Snakemake is told about this cluster."""
        return [
            *("--slurm-jobname-prefix", self.prefix),
            *("--slurm-status-command", self.status),
            *("--slurm-logdir", str(self.logs.resolve())),
        ]

    def environment(self) -> dict[str, str]:
        """Return the environment for Snakemake: that of this process, less what a job that it may run in has set.

        The executor would drop those variables, too, but with ``SLURM_CONF`` among them, which may be all that leads to
        the cluster.
        """
        keep = ("SLURM_CONF",)
        return {name: value for name, value in os.environ.items() if name in keep or not name.startswith("SLURM_")}

    def jobs(self) -> list[str]:
        """Return the numbers of this run folder's jobs that wait or run; `InputError` if SLURM does not answer."""
        said = _said("squeue", "--noheader", "--user", getpass.getuser(), "--format", "%i %j")
        if said.returncode:
            raise _silent(said)
        pairs = (line.split(maxsplit=1) for line in said.stdout.splitlines())
        return [pair[0] for pair in pairs if len(pair) == 2 and pair[1].startswith(f"{self.prefix}_")]

    def stuck(self) -> dict[str, tuple[str, str]]:
        """Return name and reason of this run folder's jobs that will not start, by number."""
        said = _said("squeue", "--noheader", "--user", getpass.getuser(), "--states=PENDING", "--format", "%i|%j|%r|%k")
        found = {}
        for line in said.stdout.splitlines():
            job, name, why, what = [*line.split("|", 3), "", "", ""][:4]
            if name.startswith(f"{self.prefix}_") and NEVER.fullmatch(why):
                found[job] = (readable(what.removeprefix("rule_")), why)
        return found

    def cancel(self) -> int:
        """Cancel this run folder's jobs, wait until they are gone, and return how many there were.

        Raises
        ------
        InputError
            If SLURM does not answer, or jobs do not end: they may still write into the run folder.
        """
        found: set[str] = set()
        until = time.monotonic() + GONE_S
        while True:
            late = time.monotonic() > until
            try:
                jobs = self.jobs()
            except InputError:
                if late:
                    raise
            else:
                found.update(jobs)
                if not jobs:
                    return len(found)
                if late:
                    raise InputError(
                        f"SLURM jobs of this study could not be ended: {', '.join(jobs)}",
                        fix="squeue says why; the same command tries again",
                    )
                _said("scancel", *jobs)
            time.sleep(1)


def cancel_left(study: Workload) -> int:
    """Cancel the jobs that a run which was killed left on a cluster, and return how many there were.

    For who holds the study's lock: nobody else runs it, and what still runs would write into the same files.

    Raises
    ------
    InputError
        If it cannot be told whether they are gone.
    """
    if not _logs(study).is_dir() or any(shutil.which(program) is None for program in PROGRAMS):
        return 0
    try:
        return Cluster(_prefix(study), "squeue", _logs(study)).cancel()
    except InputError as error:
        fix = error.fix or f"if that cluster no longer exists, delete {_logs(study)}"
        raise InputError(
            f"jobs of an earlier run may still be on the cluster: {error.problem}", file=study.run.root, fix=fix
        ) from error


def _prefix(study: Workload) -> str:
    folder = hashlib.sha256(str(study.run.root.resolve()).encode()).hexdigest()[:8]
    return f"hc_{re.sub(r'[^A-Za-z0-9_-]', '-', study.name)[:30]}_{folder}"


def _logs(study: Workload) -> Path:
    return study.run.logs / "slurm"


def _said(*command: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {ANSWER_S} s")


def _silent(said: subprocess.CompletedProcess, *, fix: str | None = None) -> InputError:
    why = (said.stderr.strip().splitlines() or ["no reason given"])[-1]
    return InputError(f"SLURM does not answer ({why})", fix=fix)


def _asked(content: dict, resource: str) -> dict[str, str]:
    """Return the values that a profile gives a resource, by the place where it does."""

    def found(value: object, place: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from found(inner, f"{place}: {name}")
        elif isinstance(value, list):
            for one in value:
                # "slurm_partition=main", and "train:slurm_partition=gpu" for one rule
                name, equals, text = str(one).partition("=")
                if equals and name.rpartition(":")[2] == resource:
                    yield f"{place}: {name}", text
        elif place.endswith(f": {resource}"):
            yield place, str(value)

    places = ("default-resources", "set-resources")
    pairs = [pair for place in places for pair in found(content.get(place), place)]
    return {place: _plain(text) for place, text in pairs}


def _plain(text: str) -> str:
    """Return a value as Snakemake takes it, which reads ``'"main"'`` as an expression."""
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _check_partitions(asked: dict[str, str], file: Path) -> None:
    said = _said("sinfo", "--noheader", "--format", "%P")
    if said.returncode:
        raise _silent(said, fix="sinfo must list the partitions of the cluster")
    listed = said.stdout.split()
    known = [name.rstrip("*") for name in listed]
    for place, names in asked.items():
        for name in names.split(","):
            if name not in known:
                raise InputError(
                    "there is no such partition on this cluster",
                    file=file,
                    field=place,
                    value=name,
                    expected="one of " + ", ".join(known),
                )
    if not any(name.endswith("*") for name in listed) and "default-resources: slurm_partition" not in asked:
        expected = "slurm_partition to be one of " + ", ".join(known)
        raise InputError(
            "this cluster has no default partition", file=file, field="default-resources", expected=expected
        )


def _check_accounts(asked: dict[str, str], file: Path) -> None:
    if not asked:
        return
    user = getpass.getuser()
    said = _said("sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={user}", "format=account")
    known = sorted(set(said.stdout.split()))
    for place, name in asked.items():
        if said.returncode or not known:
            raise InputError(
                "this cluster does not tell which accounts there are",
                file=file,
                field=place,
                value=name,
                fix="leave slurm_account out where the cluster asks for none",
            )
        if name.lower() not in known:
            raise InputError(
                f"{user} has no such account on this cluster",
                file=file,
                field=place,
                value=name,
                expected="one of " + ", ".join(known),
            )


def _status(file: Path) -> str:
    """Return the program to ask how jobs are."""
    if shutil.which("sacct") and not _said("sacct", "--allocations", "--noheader").returncode:
        return "sacct"
    config = _said("scontrol", "show", "config").stdout
    found = re.search(r"^MinJobAge\s*=\s*(\d+)", config, flags=re.MULTILINE)
    seconds = int(found[1]) if found else REMEMBERED_S
    if seconds < REMEMBERED_S:
        raise InputError(
            f"this cluster keeps no accounts and forgets a job {seconds} s after its end",
            file=file,
            fix=f"ask who runs it for accounting, or for MinJobAge={REMEMBERED_S} or more",
        )
    return "squeue"
