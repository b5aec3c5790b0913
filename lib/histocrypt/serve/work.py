"""One upload, in a process of its own: what it may use, and what is made of it."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from histocrypt.pipeline.folder import PREDICTION, Task, predicted, work
from histocrypt.serve.answers import write_answers
from histocrypt.serve.uploads import check_slide, tiles_to_patches

UPLOAD, PATCHES, OUT, SCRATCH = "upload", "patches", "out", "scratch"
"""In the folder of a job: what came, in it tiles as patches; what is made of it; what it needs meanwhile."""
SAID_TO_CLIENTS = {
    "--anyway": "anyway=true",
    "--spacing": "spacing_um",
    "--um-per-px": "um_per_px",
    "--genes": "genes",
    "--layer": "layer",
    "--to": "format",
}
"""Options of the command line, as clients give them."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for beyond the prediction itself."""

    form: str
    """Of `answers.ANSWERS`."""
    tiles: bool
    genes: tuple[str, ...]
    layer: str | None


def run(task: Task, wanted: Wanted, *, megapixels: float, memory: int, disk: int) -> None:
    """Predict within limits; the target of a process.

    Parameters
    ----------
    task
        Of `pipeline.folder`; what comes of it is its state.
    wanted
        What is sent back.
    megapixels
        Millions of pixels that an upload may have.
    memory, disk
        Bytes that the process may have in memory, and in one file.
    """
    os.umask(0o077)
    with suppress(OSError):  # where memory runs out, the system ends this process, and not the server
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    work(replace(task, do=partial(_done, wanted=wanted, megapixels=megapixels, memory=memory, disk=disk)))


def _done(task: Task, notes: list[str], *, wanted: Wanted, megapixels: float, memory: int, disk: int) -> dict[str, Any]:
    _confine(memory=memory, disk=disk)  # here, where what fails for it is told
    upload, tiles, job = Path(task.slide.path), None, task.folder.parent
    if wanted.tiles:
        patches = upload.with_name(PATCHES)
        tiles = tiles_to_patches(upload, patches, task.slide.id, megapixels=megapixels)
        task = replace(task, slide=replace(task.slide, path=str(patches)))
    else:
        check_slide(upload, megapixels=megapixels)
    found = predicted(task, notes)
    notes[:] = [for_clients(note, folder=job, name=task.slide.id, model=task.model) for note in notes]
    how = {"form": wanted.form, "genes": wanted.genes, "layer": wanted.layer, "notes": notes, "tiles": tiles}
    write_answers(task.folder / PREDICTION, **how)
    return found


def for_clients(text: str, *, folder: Path, name: str, model: Path) -> str:
    """Return words without names of the server's files, and with parameters of a request for options.

    Parameters
    ----------
    text
        A note or an error.
    folder
        Of the job.
    name
        What the client calls its slide.
    model
        Folder of the model.
    """
    text = re.sub(rf"{re.escape(str(folder))}[\w./-]*", name, text).replace(str(model), "the model")
    for option, parameter in SAID_TO_CLIENTS.items():
        text = text.replace(option, parameter)
    return text


def _confine(*, memory: int, disk: int) -> None:
    """Limit this process."""
    import resource

    of_memory = "RLIMIT_DATA" if sys.platform == "linux" else "RLIMIT_AS"
    for name, most in {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": disk, of_memory: memory}.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(OSError, ValueError):  # macOS does not limit memory
            resource.setrlimit(kind, (least, hard))
