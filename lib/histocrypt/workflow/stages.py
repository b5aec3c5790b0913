"""The one table of stages: which notebook makes which files from which, for whom, and what it takes.

The workflow's rules, the dry run, what jobs ask for, where ``--until`` may stop and the search for what must be made
again are all derived from `STAGES`. A new notebook is the notebook and one row.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt import paths
from histocrypt.data.folds import FINAL
from histocrypt.predictors.registry import BASELINES, ENCRYPTED, MODELS, STACKS
from histocrypt.workflow import resources

if TYPE_CHECKING:
    from histocrypt.workflow.outline import Outline

SET_BY_WORKFLOW = {"study", "section", "model", "fold", "unfinished", "generator", "asked", "prediction", "truth"}
"""Notebook parameters that the workflow itself fills in, or leaves: a file from elsewhere is no part of a run."""
APART = ("00_data", "05_your_own_model", "90_case_breast", "92_case_encrypted", "94_case_audit")
"""Notebooks that no run executes: a person opens them, or `notebooks/cases.sh` makes them again."""

Values = dict[str, str | bool]
"""The notebook parameters that tell a job from the others of its stage, in the order of its name."""


@dataclass(frozen=True)
class Stage:
    """One notebook: its jobs in a study, and of each what it is made from and makes.

    The functions take the outline of a study and, as keywords, the values of a job.
    """

    notebook: str
    rule: str
    """What profiles call it, in ``set-resources`` and ``set-threads``."""
    needs: resources.Formula
    """What a job asks for, from the size of the sections that it reads."""
    reads: Callable[..., Iterable[Path]]
    """Files whose change makes a job run again: the user's, and what other stages make (`Outline.made`)."""
    makes: Callable[..., Iterable[Path]]
    """Files that a job that ended well has written, whatever it found. Snakemake removes them before a job runs and
    where it fails: what a repeated job goes on from, or would keep, is not among them."""
    jobs: Callable[[Outline], Iterable[Values]] = lambda _: [{}]
    depends: Callable[..., Any] = lambda _, **values: ""
    """Settings whose change makes a job run again."""
    leaves: Callable[..., Iterable[Path]] = lambda _, **values: ()
    """Folders and files that are a job's, too, but need not be there: where one breaks the job runs again."""
    threads: str = "one"
    """``one``, ``some`` (as many as a profile gives to a training) or ``all``."""
    always: bool = False
    """Runs wherever ``--until`` stops, though nothing is made from it."""

    @property
    def path(self) -> Path:
        """The notebook in the repository."""
        return paths.repository() / "notebooks" / f"{self.notebook}.ipynb"


# What jobs read and make. A name that ends in `_jobs` tells which jobs there are.


def _explored(o: Outline) -> Iterator[Path]:
    for name in ("summary.json", "depth.png", "spots.png", "spacing.png", "registration.png", "registration.csv"):
        yield o.run.eda / name
    for name in ("confounding.csv", "confounding_cells.csv", "batch.png", "batch.csv"):
        yield o.run.eda / name


def _preprocessed(o: Outline, section: str) -> list[Path]:
    return [o.run.section(section), o.run.tiles(section), o.run.stain(section)]


def _preprocessing_depends(o: Outline, section: str) -> Any:
    """Return settings, and how far surroundings reach where a model reads them: rings of tiles are cut for it."""
    around = o.study.around_um
    return [o.study.hash("seed", "preprocessing"), o.rows[section]["read_as"], *([around] if around else [])]


def _folds(o: Outline) -> Iterator[Path]:
    yield o.run.folds
    for fold in (*o.folds, FINAL):
        yield from _of_fold(o, fold)


def _of_fold(o: Outline, fold: str) -> list[Path]:
    return [o.run.fold(fold) / name for name in ("panel.json", "target_stats.json", "stain_reference.json")]


def _training_jobs(o: Outline) -> list[Values]:
    return [{"model": family, "fold": fold} for family in o.families() for fold in (*o.folds, FINAL)]


def _training_reads(o: Outline, model: str, fold: str) -> Iterator[Path]:
    """Yield the folds, the same fold of a teacher, and for the final model every fold, which chose for it."""
    yield from (o.run.folds, *_of_fold(o, fold))
    if teacher := o.teacher(model):
        yield from o.made("30_training", model=teacher, fold=fold)
    for other in o.folds if fold == FINAL else ():
        yield from o.made("30_training", model=model, fold=other)


def _trained(o: Outline, model: str, fold: str) -> Iterator[Path]:
    for name in o.members(model):
        folder = o.run.model(name, fold)
        yield from (folder / "weights.safetensors", folder / "model.json")
        if MODELS[name].kind == "network":
            yield folder / "curves.csv"
        if fold != FINAL:
            yield from (o.run.prediction(name, fold), o.run.prediction(name, fold, "validation"))
            if MODELS[name].has_heads:
                yield o.run.heads(name, fold)


def _multitask_reads(o: Outline) -> Iterator[Path]:
    yield from o.made("20_preprocessing")
    for fold in o.folds:
        yield from o.made("30_training", model="he2gene", fold=fold)


def _multitask(o: Outline) -> list[Path]:
    weights = [f"ablation_{name}.h5ad" for name in ("without", "with", "hundredfold")]
    return [o.run.multitask / name for name in ("summary.json", "signal.csv", *weights)]


def _diffusion_reads(o: Outline) -> Iterator[Path]:
    """Yield what stands beside the diffusion model, too: ridge and neighbours are among the baselines."""
    yield from o.made("20_preprocessing")
    for fold in o.folds:
        yield from o.made("30_training", model="stem", fold=fold)
        yield from o.made("30_training", model="baselines", fold=fold)


def _inner_jobs(o: Outline) -> list[Values]:
    return [{"model": family, "fold": fold} for family in o.stacked for fold in o.folds if o.study.stacking]


def _inner_reads(o: Outline, model: str, fold: str) -> Iterator[Path]:
    """Yield the fold's own training, for the number of epochs, and the inner trainings of a teacher."""
    yield from o.made("30_training", model=model, fold=fold)
    if teacher := o.teacher(model):
        yield from o.made("38_inner_training", model=teacher, fold=fold)


def _inner(o: Outline, model: str, fold: str) -> Iterator[Path]:
    """Yield what is kept of inner models: their record and predictions, and the weights of teachers."""
    for name in o.members(model):
        for part in o.inner(fold) if name in o.study.inner_models else ():
            yield from (o.run.model(name, part) / "model.json", o.run.prediction(name, part))
            if MODELS[name].has_heads:
                yield o.run.heads(name, part)
            if name in {o.study.teacher_of(other) for other in o.study.model_names}:
                yield o.run.model(name, part) / "weights.safetensors"


def _inner_leaves(o: Outline, model: str, fold: str) -> Iterator[Path]:
    for part in o.inner(fold):
        yield o.run.fold(part)  # which every job of the fold writes, with the same bytes
        yield from (o.run.model(name, part) for name in o.members(model))


def _stack_reads(o: Outline, fold: str) -> Iterator[Path]:
    for family in o.stacked:
        yield from o.made("30_training", model=family, fold=fold)
        yield from o.made("38_inner_training", model=family, fold=fold)


def _stack(o: Outline, fold: str) -> Iterator[Path]:
    yield o.run.stacking(fold)
    yield from (o.run.model("stacking_mlp", fold) / name for name in ("weights.safetensors", "model.json"))
    for name in STACKS:
        yield from (o.run.prediction(name, fold), o.run.prediction(name, fold, "validation"))


def _encrypted_jobs(o: Outline, engine: str = "two_party") -> list[Values]:
    able = o.study.encrypted_models if o.study.encrypted.engine == engine else []
    return [{"model": model, "section": section} for model in able for section in o.encrypted]


def _encrypted(o: Outline, model: str, section: str) -> list[Path]:
    folder = o.trials / model / section
    return [folder / name for name in ("agreement.json", "genes.csv", "prediction.h5ad")]


def _encrypted_leaves(o: Outline, model: str, section: str) -> Iterator[Path]:
    yield o.trials / model / section
    if {"model": model, "section": section} == _encrypted_jobs(o, o.study.encrypted.engine)[0]:
        yield o.trials / "agreement.json"  # which every job writes, of all that there are


def _encrypted_depends(o: Outline, model: str, section: str) -> Any:
    """Return how many spots there are; one tile by orion-fhe besides is said only where it is asked for."""
    spots = o.study.encrypted_spots(model)
    return [spots, "beside orion"] if model in o.study.encrypted.beside_orion else spots


def _synthetic(o: Outline, *names: str) -> list[Path]:
    return [o.run.synthesis(o.fold_of("synthesis")) / name for name in names]


GENERATORS = {"joint": "generator", "control": "control"}
"""Where a generator lies, by its kind."""


def _generator_jobs(o: Outline) -> list[Values]:
    own = o.study.synthesis
    return [{"generator": kind} for kind in GENERATORS if own and (kind == "joint" or own.normal_from == "control")]


def _generator(o: Outline, generator: str) -> list[Path]:
    """Return what a finished training leaves; what it goes on from is not among it."""
    names = ("generator.safetensors", "generator.json", "curves.csv", "members.json")
    return _synthetic(o, *(f"{GENERATORS[generator]}/{name}" for name in names))


def _synthesis_leaves(o: Outline) -> list[Path]:
    networks = [f"segmenter_{name}" for name in ("real", "synthetic", "both")]
    return _synthetic(o, "real", "filtered", "reconstruction", *networks, "nnunet")


def _attacked(o: Outline) -> list[str]:
    asked = o.study.audit.models if o.study.audit else []
    return [name for name in o.members("baselines") + o.own if asked == "all" or name in asked]


def _audited(o: Outline) -> dict[str, list[str]]:
    """Return the subjects of each part of an audit that has some; what is made of tiles where they are of its fold."""
    if not o.study.audit:
        return {}
    shadowed = o.study.audit.shadowed
    parts = {
        "predictors": [name for name in _attacked(o) if name not in shadowed],
        "shadowed": [name for name in _attacked(o) if name in shadowed],
        "tiles": [],
    }
    if o.study.synthesis and o.fold_of("synthesis") == o.fold_of("audit"):
        drawn = [GENERATORS[values["generator"]] for values in _generator_jobs(o)]
        parts["tiles"] = ["segmenter_real", "segmenter_synthetic", *drawn, "samples", "filtered"]
    return {part: subjects for part, subjects in parts.items() if subjects}


def _audit_reads(o: Outline, asked: str) -> Iterator[Path]:
    """Yield the attacked models of one fold, or what was made of synthetic tiles."""
    if asked == "tiles":
        yield from o.made("58_generators")
        yield from o.made("60_synthetic_data")
        return
    for family in o.families(_audited(o)[asked]):
        yield from o.made("30_training", model=family, fold=o.fold_of("audit"))


def _audit(o: Outline, asked: str) -> Iterator[Path]:
    home = o.run.audit(o.fold_of("audit"))
    for subject in _audited(o)[asked]:
        yield from (home / f"privacy_card_{subject}.{kind}" for kind in ("html", "json"))
        yield home / "scores" / f"{subject}.csv"
    if asked == "shadowed":
        yield from (home / name for name in ("attributes.json", "embeddings.json", "embeddings.png"))


def _audit_leaves(o: Outline, asked: str) -> Iterator[Path]:
    home, subjects = o.run.audit(o.fold_of("audit")), _audited(o)[asked]
    if asked == "tiles":
        yield home / "shadows" / "segmenters"
        if o.study.audit.shadow_generators:
            yield home / "shadows" / "generators"
        yield from (home / f"nearest_{name}.png" for name in ("samples", "filtered"))
        yield from (home / "shadows" / f"leaky_{name}" for name in subjects if name in GENERATORS.values())
        return
    yield from (home / "shadows" / name for name in subjects)
    if any(name in subjects for name in [name for name in _attacked(o) if name in ENCRYPTED][-1:]):
        yield home / "decrypted"


def _cards_read(o: Outline) -> Iterator[Path]:
    """Yield what the audit made, and the encrypted trials, whose bundles get a card of their own."""
    yield from o.made("62_membership_audit")
    yield from o.made("50_fhe_inference")


def _services(o: Outline) -> list[Path]:
    """Return the folders of the cards of services, one for each model that was compiled."""
    return [o.run.audit(o.fold_of("audit")) / "services" / values["model"] for values in _encrypted_jobs(o)]


def _cards(o: Outline) -> list[Path]:
    return [o.run.audit(o.fold_of("audit")) / name for name in ("summary.json", "forest.png", "roc.png")]


def _evaluation_jobs(o: Outline) -> list[Values]:
    """Return the evaluation of what is finished once the baselines are, where no report is there yet; and the last."""
    return [{"unfinished": True}, {}] if o.early else [{}]


def _evaluation_reads(o: Outline, *, unfinished: bool = False) -> Iterator[Path]:
    yield from o.study.others_files(o.rows)
    if unfinished:
        for fold in o.folds:
            yield from o.made("30_training", model="baselines", fold=fold)
        return
    first = o.run.notebooks / "70_evaluation__unfinished.ipynb"
    if o.early or first.is_file():
        yield first  # both write the report: the last one waits, and later reads what it read, so that nothing changed
    for notebook in ("30_training", "32_multitask", "34_diffusion", "40_stacking"):
        yield from o.made(notebook)
    for notebook in ("50_fhe_inference", "51_one_party", "60_synthetic_data", "64_privacy_cards"):
        yield from o.made(notebook)


def _evaluation(o: Outline, *, unfinished: bool = False) -> Iterator[Path]:
    """Yield the report and what it shows; they are the last evaluation's, though an earlier one writes them, too."""
    if not unfinished:
        yield o.run.report
        for name in (
            "scores.csv",
            "summary.csv",
            "paired.csv",
            "sections.csv",
            "patients_paired.csv",
            "trust.csv",
            "notes.json",
            "data.csv",
        ):
            yield o.run.evaluation / name
        for model in o.members("baselines") + o.own:
            yield o.run.model(model, FINAL) / "README.md"
        if o.study.others:
            yield from (o.run.evaluation / name for name in ("others.csv", "others.json"))


def _evaluation_depends(o: Outline) -> Any:
    """Return settings; predictions of others are said only where the study names some."""
    own = o.study.hash("title", "evaluation")
    return [own, o.study.hash("others")] if o.study.others else own


def _after_reads(o: Outline) -> Iterator[Path]:
    """Yield the sections, the test predictions of the study's last model, and baselines: they left features."""
    yield from o.made("20_preprocessing")
    for family in dict.fromkeys([*o.families(o.study.model_names[-1:]), "baselines"]):
        for fold in o.folds:
            yield from o.made("30_training", model=family, fold=fold)


STAGES = {
    stage.notebook: stage
    for stage in (
        Stage(
            "10_eda",
            "eda",
            resources.eda,
            reads=lambda o: [file for row in o.rows.values() for file in row["files"]],
            makes=_explored,
            # "sizes": what was explored before sizes were listed is explored again
            depends=lambda o: [o.study.hash("name", "seed", "sections", "demo", "preprocessing"), "sizes"],
            leaves=lambda o: [o.run.eda],
            always=True,
        ),
        Stage(
            "20_preprocessing",
            "preprocess",
            resources.preprocess,
            jobs=lambda o: [{"section": section} for section in o.rows],
            reads=lambda o, section: o.rows[section]["files"],
            makes=_preprocessed,
            depends=_preprocessing_depends,
        ),
        Stage(
            "22_folds",
            "folds",
            resources.folds,
            reads=lambda o: o.made("20_preprocessing"),
            makes=_folds,
            depends=lambda o: o.study.hash("seed", "folds", "panel", "target"),
        ),
        Stage(
            "30_training",
            "train",
            resources.train,
            jobs=_training_jobs,
            reads=_training_reads,
            makes=_trained,
            depends=lambda o, model, fold: [
                o.study.hash("seed", "training"),
                *(o.study.models.get(name) for name in (BASELINES if model == "baselines" else [model])),
            ],
            leaves=lambda o, model, fold: [o.run.model(name, fold) for name in o.members(model)],
            threads="some",
        ),
        Stage(
            "32_multitask",
            "multitask",
            resources.multitask,
            jobs=lambda o: [{}] if "he2gene" in o.study.models else [],
            reads=_multitask_reads,
            makes=_multitask,
            depends=lambda o: o.study.hash("evaluation"),
        ),
        Stage(
            "34_diffusion",
            "diffusion",
            resources.diffusion,
            jobs=lambda o: [{}] if "stem" in o.study.models else [],
            reads=_diffusion_reads,
            makes=lambda o: [o.run.evaluation / f"distribution_stem.{suffix}" for suffix in ("json", "csv", "svg")],
            leaves=lambda o: [o.run.samples("stem", fold) for fold in o.folds],
        ),
        Stage(
            "38_inner_training",
            "train_inner",
            resources.train_inner,
            jobs=_inner_jobs,
            reads=_inner_reads,
            makes=_inner,
            depends=lambda o, model, fold: [
                o.study.stacking.inner_folds,
                *(name for name in o.study.inner_models if model == "baselines" and name in BASELINES),
            ],
            leaves=_inner_leaves,
            threads="some",
        ),
        Stage(
            "40_stacking",
            "stack",
            resources.stack,
            jobs=lambda o: [{"fold": fold} for fold in o.folds if o.study.stacking],
            reads=_stack_reads,
            makes=_stack,
            depends=lambda o, fold: [o.study.hash("stacking"), o.study.model_names],
        ),
        Stage(
            "50_fhe_inference",
            "encrypted",
            resources.encrypted,
            jobs=_encrypted_jobs,
            reads=lambda o, model, section: o.made("30_training", model=model, fold=o.encrypted[section]),
            makes=_encrypted,
            depends=_encrypted_depends,
            leaves=_encrypted_leaves,
            threads="all",
        ),
        Stage(
            "51_one_party",
            "one_party",
            resources.one_party,
            jobs=lambda o: _encrypted_jobs(o, "orion"),
            reads=lambda o, model, section: o.made("30_training", model=model, fold=o.encrypted[section]),
            makes=_encrypted,
            depends=lambda o, model, section: o.study.encrypted.spots,
            leaves=_encrypted_leaves,
        ),
        Stage(
            "58_generators",
            "generators",
            resources.generators,
            jobs=_generator_jobs,
            reads=lambda o, generator: o.made("22_folds"),
            makes=_generator,
            depends=lambda o, generator: o.study.hash("seed", "synthesis"),
            leaves=lambda o, generator: _synthetic(o, GENERATORS[generator], f"samples/{generator}"),
        ),
        Stage(
            "60_synthetic_data",
            "synthesis",
            resources.synthesis,
            jobs=lambda o: [{}] if o.study.synthesis else [],
            reads=lambda o: [*o.made("22_folds"), *o.made("58_generators")],
            makes=lambda o: _synthetic(
                o,
                "summary.json",
                "utility.json",
                "expression.json",
                *(f"{name}.csv" for name in ("filtered", "quality", "nuclei")),
                *(f"{name}.png" for name in ("tiles", "filter", "quality", "nearest", "nuclei", "utility")),
            ),
            depends=lambda o: o.study.hash("seed", "synthesis"),
            leaves=_synthesis_leaves,
        ),
        Stage(
            "62_membership_audit",
            "audit",
            resources.audit,
            jobs=lambda o: [{"asked": part} for part in _audited(o)],
            reads=_audit_reads,
            makes=_audit,
            depends=lambda o, asked: o.study.hash("seed", "audit"),
            leaves=_audit_leaves,
        ),
        Stage(
            "64_privacy_cards",
            "privacy_cards",
            resources.privacy_cards,
            jobs=lambda o: [{}] if o.study.audit else [],
            reads=_cards_read,
            makes=_cards,
            leaves=_services,
        ),
        Stage(
            "70_evaluation",
            "evaluate",
            resources.evaluate,
            jobs=_evaluation_jobs,
            reads=_evaluation_reads,
            makes=_evaluation,
            depends=lambda o, **_: _evaluation_depends(o),
            leaves=lambda o, **values: [] if values else [o.run.evaluation],
        ),
        Stage(
            "72_viewer",
            "view",
            resources.view,
            reads=lambda o: [o.run.report],
            makes=lambda o: [],
        ),
        Stage(
            "74_after_prediction",
            "after",
            resources.after,
            reads=_after_reads,
            makes=lambda o: [o.run.after / f"{name}.csv" for name in ("genes", "coherence", "domains", "markers")],
            depends=lambda o: o.study.hash("seed"),
            leaves=lambda o: [o.run.after],
        ),
    )
}
"""The stages in reading order, by notebook."""


@cache
def known_parameters(notebook: str) -> dict[str, str]:
    """Return the parameters of a notebook that a user may set, with their types: what its parameters cell assigns."""
    cells = json.loads(STAGES[notebook].path.read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    assigned = [one for one in ast.parse(source).body if isinstance(one, ast.AnnAssign)]
    named = {one.target.id: ast.unparse(one.annotation) for one in assigned}
    return {name: kind for name, kind in named.items() if name not in SET_BY_WORKFLOW}
