"""The command line that starts Snakemake on a study."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from histocrypt import paths
from histocrypt.study import Study
from histocrypt.workflow.profile import Profile, usable_cores
from histocrypt.workflow.stages import STAGES


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
