"""What is to be run, and where: a Snakemake profile, and the command line that starts Snakemake on a study."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.files import read_yaml
from histocrypt.machine import usable_cores
from histocrypt.paths import RunFolder
from histocrypt.study import Study


class Workload(Protocol):
    """What is run by a profile: a study, or a folder of slides."""

    @property
    def name(self) -> str:
        """Part of the names of its jobs."""

    @property
    def run(self) -> RunFolder:
        """Where it is run; logs lie there."""


@dataclass(frozen=True)
class Profile:
    """What this package must know of a profile; everything else is Snakemake's."""

    folder: Path
    local: bool
    """Jobs run on this machine."""
    threads: int
    """Of one training, where a profile or a machine allows several."""
    gpus: int
    """That may be asked for at once."""
    content: dict
    """Everything in ``config.yaml``: Snakemake's options."""

    @classmethod
    def read(cls, folder: Path | None, *, cores: int) -> Profile:
        """Read a profile folder; ``workflow/profiles/local`` by default.

        Parameters
        ----------
        folder
            Holds ``config.yaml``; relative to here, to the repository, or the name of one in ``workflow/profiles``.
        cores
            Cores of this machine to use; 0 means all, and a profile elsewhere takes nothing else.

        Raises
        ------
        InputError
            If there is no such profile, it is not readable, or cores are given for a cluster.
        """
        folder = _found(folder or Path("local"))
        file = folder / "config.yaml"
        content = read_yaml(file, "profile") or {}
        if not isinstance(content, dict):
            raise InputError("profile is not a mapping", file=file, expected="Snakemake's options, name: value")
        local = content.get("executor") in (None, "local")
        if cores and not local:
            msg = "applies to this machine, but this profile's jobs run elsewhere"
            fix = f"set jobs and max-threads in {file}"
            raise InputError(msg, field="--cores", value=cores, fix=fix)
        widest = _number(content, "max-threads", 8, file)
        threads = max(1, (cores or usable_cores()) // 2) if local else widest
        threads = min(threads, widest) if "max-threads" in content else threads
        return cls(folder, local, threads, _gpus(content, file), content)


def _found(given: Path) -> Path:
    home = paths.repository()
    for folder in (given.expanduser().absolute(), home / given, home / "workflow" / "profiles" / given):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError("profile has no config.yaml", file=given, fix="workflow/profiles/local is an example")


def _number(content: dict, name: str, default: int, file: Path) -> int:
    value = content.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise InputError("has a wrong value", file=file, field=name, value=value, expected="a number of 1 or more")
    return value


def _gpus(content: dict, file: Path) -> int:
    """Return the limit that the profile sets on the resource ``gpu``, written as a list or a mapping."""
    given = content.get("resources", [])
    pairs = given.items() if isinstance(given, dict) else (str(one).split("=", 1) for one in given)
    found = {str(pair[0]): str(pair[1]) for pair in map(tuple, pairs) if len(pair) == 2}.get("gpu", "0")
    if not found.isdigit():
        raise InputError("has a wrong value", file=file, field="resources: gpu", value=found, expected="a number")
    return int(found)


@dataclass(frozen=True)
class Command:
    """What is to be made of a study, and where."""

    file: Path
    study: Study
    profile: Profile
    cores: int = 0
    """Of this machine; 0 means all. Not heeded on a cluster."""
    until: str | None = None
    given: dict[str, str] | None = None
    """Notebook parameters set by the user."""

    def line(self, *options: str, directory: Path, survey: Path) -> list[str]:
        """Return the command as a list.

        Parameters
        ----------
        options
            Further ones of Snakemake.
        directory
            Where Snakemake keeps its books, in ``.snakemake``.
        survey
            The list of the study's sections; jobs on other nodes read it, too.
        """
        line = snakemake(self.profile, "Snakefile", directory=directory, cores=self.cores)
        wide = (self.cores or usable_cores()) if self.profile.local else self.profile.threads
        values = {
            # In JSON, since Snakemake reads a value as YAML without its quotes: a path may hold `: ` or ` #`.
            "files": json.dumps({"study": str(self.file.resolve()), "survey": str(survey)}),
            "until": self.until or "",
            "parameters": json.dumps(self.given or {}),
            "threads": self.profile.threads,
            "all_threads": wide,
            "gpus": self.profile.gpus,
        }
        return [*line, *options, "--config", *(f"{name}={value}" for name, value in values.items())]


def snakemake(profile: Profile, snakefile: str, *, directory: Path, cores: int = 0) -> list[str]:
    """Return the command that starts Snakemake by a profile.

    Parameters
    ----------
    profile
        Where jobs run.
    snakefile
        Its name in ``workflow``.
    directory
        Where Snakemake keeps its books, in ``.snakemake``.
    cores
        Of this machine; 0 means all. Not heeded on a cluster.
    """
    line = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.repository() / "workflow" / snakefile)]
    line += ["--profile", str(profile.folder), "--directory", str(directory), "--nocolor"]
    if profile.local:
        # Two jobs that need most of the memory each then run one after the other.
        line += ["--cores", str(cores or usable_cores()), "--resources", f"mem_mb={_memory_mb()}"]
    return line


def _memory_mb() -> int:
    import psutil

    return psutil.virtual_memory().total // 2**20
