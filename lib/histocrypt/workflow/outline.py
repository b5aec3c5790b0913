"""What the table of stages makes of a study before anything runs: all jobs, what each reads and makes, and its turn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from histocrypt.data.folds import Fold, chosen_fold, held_out_sections, inner_parts, make_folds
from histocrypt.files import write_json
from histocrypt.predictors.registry import BASELINES, NEEDS_COUNTS
from histocrypt.sections.section import SectionSize
from histocrypt.study import Study
from histocrypt.workflow import resources
from histocrypt.workflow.stages import STAGES, Stage, Values


@dataclass(frozen=True)
class Job:
    """One notebook to be executed: for a section, for a model and a fold, or once."""

    stage: Stage
    values: Values
    outline: Outline = field(repr=False, compare=False)

    @property
    def words(self) -> list[str]:
        """What its name is made of: the notebook, and what it is run for."""
        return [self.stage.notebook, *(key if value is True else value for key, value in self.values.items())]

    @cached_property
    def name(self) -> str:
        """Name of its rule, its log and the executed notebook."""
        return "__".join(self.words)

    @property
    def executed(self) -> Path:
        """The executed notebook: written last, and only by a job that ended well."""
        return self.outline.run.notebooks / f"{self.name}.ipynb"

    @property
    def log(self) -> Path:
        """What the job prints."""
        return self.outline.run.logs / f"{self.name}.log"

    @cached_property
    def makes(self) -> list[Path]:
        """The artifacts that it writes."""
        return list(dict.fromkeys(self.stage.makes(self.outline, **self.values)))

    @cached_property
    def reads(self) -> list[Path]:
        """The files that it is made from, beside the notebook."""
        return list(dict.fromkeys(Path(path) for path in self.stage.reads(self.outline, **self.values)))

    @property
    def leaves(self) -> list[Path]:
        """Folders and files that are its own, too."""
        return list(self.stage.leaves(self.outline, **self.values))

    @property
    def depends(self) -> Any:
        """The settings that it is made from."""
        return self.stage.depends(self.outline, **self.values)

    def threads(self, some: int, every: int) -> int:
        """Return the threads it may use, where a training gets ``some`` and what can use them all ``every``."""
        wide = self.values.get("model") != "baselines"
        return {"one": 1, "some": some if wide else 1, "all": every}[self.stage.threads]

    def asks(self, *, threads: int = 1, gpus: int = 0) -> resources.Needs:
        """Return the memory, time, threads and GPUs to ask for."""
        sizes, section = self.outline.sizes, self.values.get("section")
        read = [sizes[section]] if section else list(sizes.values())
        model = self.values.get("model", self.values.get("asked", ""))
        return resources.needs(self.stage.needs, self.outline.study, read, model=model, threads=threads, gpus=gpus)


class Outline:
    """What is known of a study before anything runs: its sections, folds and models, hence all jobs and their files.

    Parameters
    ----------
    study
        The study.
    rows
        What `explore.overview.listed` says of each section.
    early
        Whether a report is to be seen before the last stage ends: none is there that a finished run left.
    """

    def __init__(self, study: Study, rows: Iterable[dict[str, Any]], *, early: bool = True) -> None:
        self.study, self.run, self.early = study, study.run, early
        self.rows = {row["section"]: row for row in rows}
        self.sizes = {section: SectionSize(**row["size"]) for section, row in self.rows.items()}

    @classmethod
    def read(cls, study: Study, survey: str | Path) -> Outline:
        """Return the outline of a study from the survey that was written of its sections."""
        content = json.loads(Path(survey).read_text(encoding="utf-8"))
        return cls(study, content["sections"], early=content["early"])

    def write(self, survey: Path) -> Path:
        """Write what `read` reads, and return where it is."""
        write_json(survey, {"early": self.early, "sections": list(self.rows.values())})
        return survey

    @cached_property
    def patients(self) -> dict[str, str]:
        """Patient by section."""
        return {section: row["patient"] for section, row in self.rows.items()}

    @cached_property
    def folds(self) -> dict[str, Fold]:
        """The folds that hold patients out, by name."""
        stated = {section: row["laboratory"] for section, row in self.rows.items() if row.get("laboratory")}
        how = {"seed": self.study.seed, "folder": self.study.folder, "laboratories": stated}
        made = make_folds(self.patients, self.study.folds, **how)
        return {fold.name: fold for fold in made}

    @cached_property
    def encrypted(self) -> dict[str, str]:
        """Sections that are predicted encrypted, and the fold that tests each."""
        return held_out_sections(list(self.folds.values()), self.study.encrypted.sections)

    @property
    def trials(self) -> Path:
        """Where predictions on ciphertexts go, by the study's engine."""
        return self.run.trials(self.study.encrypted.engine)

    @property
    def own(self) -> list[str]:
        """The study's models that are no baselines."""
        return [name for name in self.study.model_names if name not in BASELINES]

    @property
    def stacked(self) -> list[str]:
        """The families of the stacked models and their teachers."""
        return self.families(self.study.inner_models)

    def families(self, models: Iterable[str] | None = None) -> list[str]:
        """Return what models are trained as: the baselines together, every other one alone; of all without any."""
        models = self.study.model_names if models is None else models
        return list(dict.fromkeys("baselines" if name in BASELINES else name for name in models))

    def members(self, family: str) -> list[str]:
        """Return the models of a family; depth alone predicts nothing where a section has no counts."""
        counted = all(size.genes for size in self.sizes.values())
        baselines = [name for name in BASELINES if counted or name != NEEDS_COUNTS]
        return baselines if family == "baselines" else [family]

    def teacher(self, family: str) -> str | None:
        """Return the family of a model's teacher, if it has one."""
        teacher = self.study.teacher_of(family)
        return teacher and self.families([teacher])[0]

    def inner(self, fold: str) -> list[str]:
        """Return the names of a fold's inner folds."""
        how = {"number": self.study.stacking.inner_folds, "scheme": self.study.folds.scheme}
        parts, _ = inner_parts(self.folds[fold], self.patients, **how)
        return [self.run.inner(fold, number) for number in range(1, len(parts) + 1)]

    def fold_of(self, part: str) -> str:
        """Return the fold that a part of the study names, the first if none; an unknown one is an `InputError`."""
        return chosen_fold(list(self.folds), getattr(self.study, part).fold, field=f"{part}.fold")

    @cached_property
    def by_stage(self) -> dict[str, list[Job]]:
        """All jobs of the study, by notebook."""
        return {name: [Job(stage, values, self) for values in stage.jobs(self)] for name, stage in STAGES.items()}

    @cached_property
    def jobs(self) -> list[Job]:
        """All jobs of the study, in reading order."""
        return [job for jobs in self.by_stage.values() for job in jobs]

    @cached_property
    def makers(self) -> dict[Path, Job]:
        """The job that makes a file, by file."""
        return {path: job for job in self.jobs for path in (*job.makes, job.executed)}

    @cached_property
    def leaves(self) -> dict[Path, Job]:
        """The job that owns a folder, or a file that need not be there, by its path."""
        return {path: job for job in self.jobs for path in job.leaves}

    def made(self, notebook: str, **values: str) -> Iterator[Path]:
        """Yield what the jobs of a notebook make that have these values."""
        for job in self.by_stage[notebook]:
            if values.items() <= job.values.items():
                yield from job.makes

    def before(self, job: Job) -> list[Job]:
        """Return the jobs that make what a job reads."""
        return list({maker.name: maker for path in job.reads if (maker := self.makers.get(path))}.values())

    def upto(self, until: str | None = None) -> list[Job]:
        """Return the jobs of a run that stops after a notebook: its own, and those that they are made from."""
        return self._closed(job for job in self.jobs if not until or job.stage.notebook == until or job.stage.always)

    def _closed(self, jobs: Iterable[Job]) -> list[Job]:
        """Return jobs and all that they are made from, in reading order."""
        wanted, waiting = set(), list(jobs)
        while waiting:
            job = waiting.pop()
            if job.name not in wanted:
                wanted.add(job.name)
                waiting += self.before(job)
        return [job for job in self.jobs if job.name in wanted]

    def priorities(self) -> dict[str, int]:
        """Return how early each job should start: the longer the chain from it, in seconds, the earlier.

        What the first report waits for comes before everything else, and then what a person looks at first. Snakemake
        starts the job of the highest priority among those that are ready.
        """
        chain: dict[str, int] = {}
        for job in reversed(self.jobs):  # what is made from a job stands after it, but for some students
            chain[job.name] = chain.get(job.name, 0) + round(job.asks().seconds)
            for earlier in self.before(job):
                chain[earlier.name] = max(chain.get(earlier.name, 0), chain[job.name])
        first = {job.name for job in self._closed([job for job in self.jobs if "unfinished" in job.values])}
        bonus = {job.name: 2 * 10**6 if job.name in first else 10**6 if job.stage.always else 0 for job in self.jobs}
        return {name: seconds + bonus[name] for name, seconds in chain.items()}
