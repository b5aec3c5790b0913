"""A Snakemake profile: where jobs run, and how wide one may be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from histocrypt import paths
from histocrypt.errors import InputError


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
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            msg = f"profile is not valid YAML ({' '.join(str(error).split())})"
            raise InputError(msg, file=file) from error
        if not isinstance(content, dict):
            raise InputError("profile is not a mapping", file=file, expected="Snakemake's options, name: value")
        local = content.get("executor") in (None, "local")
        if cores and not local:
            msg = "is for this machine, and this profile's jobs run elsewhere"
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


def usable_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(content: dict, name: str, default: int, file: Path) -> int:
    value = content.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise InputError("has a wrong value", file=file, field=name, value=value, expected="a number from 1 on")
    return value


def _gpus(content: dict, file: Path) -> int:
    """Return the limit that the profile sets on the resource ``gpu``, written as a list or a mapping."""
    given = content.get("resources", [])
    pairs = given.items() if isinstance(given, dict) else (str(one).split("=", 1) for one in given)
    found = {str(pair[0]): str(pair[1]) for pair in map(tuple, pairs) if len(pair) == 2}.get("gpu", "0")
    if not found.isdigit():
        raise InputError("has a wrong value", file=file, field="resources: gpu", value=found, expected="a number")
    return int(found)
