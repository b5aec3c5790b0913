"""A folder of slides through Snakemake, by the profiles that studies use: one job a slide, here or on a cluster.

What a job does is `pipeline.folder.work`, as without a profile: it writes ``OUT/<id>/state.json``, and the summary is
made of these. What Snakemake needs lies in ``OUT/.jobs``: the plan, its books, logs. A job that is killed is tried
again as the profile says; a slide that cannot be predicted is none that failed here, as its state says why.

``python -m histocrypt.workflow.slides PLAN ID`` is such a job.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from histocrypt import paths
from histocrypt.errors import InputError
from histocrypt.files import read_json, write_json
from histocrypt.paths import RunFolder
from histocrypt.pipeline.folder import SCRATCH, Settings, Task, make_way, work
from histocrypt.pipeline.listing import Slide
from histocrypt.workflow.cluster import Cluster, cancel_left
from histocrypt.workflow.command import Profile, snakemake
from histocrypt.workflow.resources import Needs, slide_needs
from histocrypt.workflow.watch import watch

JOBS = ".jobs"
"""Where in the folder of predictions the books of Snakemake are."""
STAGE = "slide"
"""What a profile calls these jobs in ``set-resources``."""


@dataclass(frozen=True)
class Slides:
    """What is run, as cluster and watch take it, see `command.Workload`."""

    name: str
    run: RunFolder


def by_profile(profile: Path, *, cores: int = 0) -> Callable[[list[Task]], Mapping[str, str]]:
    """Return what runs tasks by a Snakemake profile, for `pipeline.folder.predict_slides`.

    Parameters
    ----------
    profile
        A folder, or the name of one in ``workflow/profiles``.
    cores
        Of this machine; 0: all. Not for a cluster.

    Raises
    ------
    InputError
        If there is no such profile, or cores are given for a cluster.
    """
    return partial(_run, profile=Profile.read(profile, cores=cores), cores=cores)


def _run(tasks: list[Task], *, profile: Profile, cores: int) -> dict[str, str]:
    """Run tasks as jobs; return, of those whose job did not end well, why.

    Raises
    ------
    InputError
        If the cluster cannot take them, or jobs of a command that was killed still run.
    KeyboardInterrupt
        If it was interrupted; jobs are gone then.
    """
    output = tasks[0].folder.parent
    load = Slides("slides", RunFolder(output / JOBS))
    for path in (output, paths.repository()):
        if "{" in str(path):
            fix = "rename it, or move it"
            raise InputError("contains braces, which Snakemake reads as wildcards", file=path, fix=fix)
    load.run.logs.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    with (load.run.root / ".lock").open("a+") as lock, redirect_stdout(sys.stderr):
        try:  # Snakemake inherits it, and may still run when the command was killed
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError("jobs of an earlier command still run", file=output, fix="wait for them") from error
        cluster = Cluster.ready(load, profile)
        if left := cancel_left(load):
            print(f"histocrypt: jobs of a command that was killed were still on the cluster; cancelled: {left}")
        for task in tasks:
            make_way(task.folder)
        needs = {name_of(task.slide): needs_of(task, profile) for task in tasks}
        plan = load.run.root / "plan.json"
        write_json(plan, planned(tasks, needs))
        shutil.rmtree(load.run.root / ".snakemake" / "locks", ignore_errors=True)  # of a command that was killed
        line = snakemake(profile, "slides.smk", directory=load.run.root, cores=cores)
        options = [*(cluster.options() if cluster else []), "--keep-going"]
        line += [*options, "--config", f"plan={json.dumps(str(plan))}"]
        expected = {name: need.seconds for name, need in needs.items()}
        code = watch(line, load, lock, cluster, expected=expected, preload=False, failed=failed.__setitem__)
    if code == 130:
        raise KeyboardInterrupt
    return {task.slide.id: failed[name] for task in tasks if (name := name_of(task.slide)) in failed}


def name_of(slide: Slide) -> str:
    """Return what the job of a slide is called, its log, too."""
    return f"{STAGE}__{slide.id}"


def needs_of(task: Task, profile: Profile) -> Needs:
    """Return what a slide's job asks for; only the image's head is read."""
    from histocrypt.pipeline.inputs import GRID_UM
    from histocrypt.sections.image import IMAGE_SUFFIXES, is_image, open_image

    slide, settings = task.slide, task.settings
    plain = Path(slide.path)
    files = [Path(slide.image)] if slide.image else [plain] if is_image(plain) else slide.files
    picture = next((file for file in files if is_image(file) and file.name.lower().endswith(IMAGE_SUFFIXES)), None)
    try:
        image = None if picture is None else open_image(picture)
    except (InputError, OSError):  # said by the job
        image = None
    size: dict[str, Any] = {} if image is None else {"decoded_mpx": image.decoded_mpx}
    um, spacing = slide.um_per_px or settings.um_per_px, settings.spacing_um
    spacing = GRID_UM if spacing is None and is_image(plain) else spacing
    if image is not None and spacing and um:
        size["points"] = round(image.width * image.height * (um / spacing) ** 2)
    views = (8 if settings.average_symmetries else 1) * (3 if settings.average_windows else 1)
    return slide_needs(**size, views=views, threads=profile.threads, gpus=profile.gpus)


def planned(tasks: list[Task], needs: Mapping[str, Needs]) -> dict[str, Any]:
    """Return what jobs read of their tasks, as JSON."""
    slides = []
    for task in tasks:
        slide = {**asdict(task.slide), "files": [str(file) for file in task.slide.files]}
        asks = asdict(needs[name_of(task.slide)])
        slides.append({"job": name_of(task.slide), "slide": slide, "asked": task.asked, "asks": asks})
    first = tasks[0]
    settings, output = asdict(first.settings), str(first.folder.parent)
    return {"model": str(first.model), "output": output, "settings": settings, "slides": slides}


def job(plan: Path, name: str) -> None:
    """Predict the slide of one job of a plan, and write its state."""
    from histocrypt.pipeline.checkpoints import read_about
    from histocrypt.report.slides import draw_slide, draw_tissue, genes_drawn

    told = read_json(plan)
    one = next(one for one in told["slides"] if one["job"] == name)
    slide = Slide(**one["slide"])
    slide = replace(slide, files=tuple(map(Path, slide.files)))
    model, folder = Path(told["model"]), Path(told["output"]) / slide.id
    draws = partial(draw_slide, genes=genes_drawn(read_about(model))[0])
    with tempfile.TemporaryDirectory(prefix=SCRATCH) as scratch:  # of the node that it runs on
        settings = Settings(**told["settings"])
        work(Task(slide, model, folder, one["asked"], settings, scratch, {}, draws, draw_tissue))


if __name__ == "__main__":
    job(Path(sys.argv[1]), sys.argv[2])
