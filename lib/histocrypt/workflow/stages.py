"""The notebooks of a run, and the parameters that a user may set in them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.study import Study

# ---- profile
# A Snakemake profile: where jobs run, and how wide one may be.


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
            raise InputError(f"profile is not valid YAML ({' '.join(str(error).split())})", file=file) from error
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


# ---- stages


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

RULES = {
    "eda": "10_eda",
    "preprocess": "20_preprocessing",
    "folds": "22_folds",
    "train": "30_training",
    "multitask": "32_multitask",
    "diffusion": "34_diffusion",
    "train_inner": "38_inner_training",
    "stack": "40_stacking",
    "encrypted": "50_fhe_inference",
    "synthesis": "60_synthetic_data",
    "audit": "62_membership_audit",
    "evaluate": "70_evaluation",
    "view": "72_viewer",
}
"""The notebook that a Snakemake rule runs."""

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


# ---- command
# The command line that starts Snakemake on a study.


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

    def line(self, *options: str, targets: tuple[str, ...] = (), **config: str) -> list[str]:
        """Return the command as a list, with further Snakemake options, targets and values for its configuration."""
        line = [sys.executable, "-m", "snakemake", STAGES[self.until] if self.until else "all", *targets]
        line += ["--snakefile", str(paths.repository() / "workflow" / "Snakefile")]
        line += ["--profile", str(self.profile.folder), "--directory", str(self.study.run.root), "--nocolor"]
        wide = self.profile.threads
        if self.profile.local:
            wide = self.cores or usable_cores()
            # Two jobs that need most of the memory each then run one after the other.
            line += ["--cores", str(wide), "--resources", f"mem_mb={_memory_mb()}"]
        values = {
            "study": self.file.resolve(),
            "parameters": json.dumps(self.given or {}),
            "threads": self.profile.threads,
            "all_threads": wide,
            "gpus": self.profile.gpus,
            **config,
        }
        return [*line, *options, "--config", *(f"{name}={value}" for name, value in values.items())]


def _memory_mb() -> int:
    import psutil

    return psutil.virtual_memory().total // 2**20
