"""Finished stages that were made by other code than is here now: kept, and said."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

from histocrypt import paths
from histocrypt.paths import RunFolder
from histocrypt.workflow.record import earlier_record

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
        f"kept; what is deleted from {run.notebooks} is made again"
    )


def _differs(commit: str, checkout: Path) -> bool:
    if "-" in commit:  # files that nobody can compare any more
        return True
    command = ["git", "--no-optional-locks", "-C", str(checkout), "diff", "--quiet", commit, "--", *CODE]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode != 0
    except (OSError, subprocess.SubprocessError):
        return True
