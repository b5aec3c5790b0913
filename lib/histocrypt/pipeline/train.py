"""Trains one model on one fold, predicts who was held out, and writes everything down.

A network may learn from another model of its own fold as well as from what was measured (distillation, Hinton et al.
2015): what was measured of a tile is noisy, a teacher's prediction is a smooth version of it. With a squared error,
learning from both at once is learning from their weighted mean, so the loop need not know. The teacher was trained on
the fold's training patients, like the student; the test patient stays unseen by both. Validation spots keep their
measured targets, which decide when to stop. The teacher learnt from them, too, unless the student asks for what is held
out (``distil_held_out``): then a teacher in closed form is fitted anew without each part of the student's own training
spots and says what it makes of that part, so that neither its overfitting nor a validation spot gets into a target.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.fold_statistics import STAIN, TARGETS, read_clean_section
from histocrypt.data.folds import FINAL, load_fold, load_folds, uncounted_sections
from histocrypt.data.load import FoldData, Spots, joined, load_spots, load_test, load_training, scaled, scaling_of
from histocrypt.errors import InputError, unknown_name
from histocrypt.pipeline.checkpoints import imported_model, load_model, made_from, save_model, teacher_of, trained_about
from histocrypt.pipeline.gating import training_gate, training_genes, training_intervals, training_origin
from histocrypt.pipeline.predictions import as_mapping, write_heads, write_predictions
from histocrypt.predictors.closed_form import inner_folds
from histocrypt.predictors.registry import (
    BASELINES,
    MODELS,
    NEEDS_COUNTS,
    STACKS,
    build,
    checked_options,
    model_class,
    tile_side,
)
from histocrypt.targets.transforms import TargetStatistics

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import nn

    from histocrypt.data.folds import Fold
    from histocrypt.options import Training
    from histocrypt.predictors.base import Predictor
    from histocrypt.study import Study
    from histocrypt.targets.panels import Panel


@dataclass(frozen=True)
class TrainResult:
    """What came of one model on one fold."""

    model: str
    fold: str
    folder: Path
    """``models/<model>/<fold>``."""
    chosen: dict[str, Any]
    """What the validation chose, e.g. epochs or the strength of regularisation."""
    validation_pcc: float | None
    """Mean Pearson's r over outputs within validation sections; None for the fold ``final``."""
    predictions: tuple[Path, ...]
    seconds: float


def train_fold(study: Study, model: str, fold: str, *, device: str | None = None) -> list[TrainResult]:
    """Train a model on one fold and write ``models/<model>/<fold>/`` and ``predictions/<model>/<fold>.*.h5ad``.

    The model is fitted on the training sections and chosen on the validation sections; fitted baselines, and networks
    whose settings say ``refit``, are then fitted again on both with what was chosen. Only then are the test sections
    loaded, and never their targets. Fold ``final`` fits on every section with the median of what the other folds chose.

    Parameters
    ----------
    study
        The study, after `data.fold_statistics.prepare_folds`.
    model
        Name in the registry, or ``baselines`` for all of `BASELINES`.
    fold
        Name of a fold, or ``final``.
    device
        Torch device of networks; the best one if not given.

    Returns
    -------
    list of TrainResult
        One per trained model.

    Raises
    ------
    InputError
        If the model or fold is unknown, an artifact is missing, or ``final`` comes before the other folds.
    """
    from tqdm.auto import tqdm

    split, names = load_fold(study.run.folds, fold), models_meant(study, model)
    loaded, results = load_for(study, split, names), []
    for name in tqdm(names, desc=f"baselines {fold}", unit="model", **({"disable": True} if len(names) == 1 else {})):
        results.append(train_one(study, name, loaded[name], device=device))
    return results


def load_for(study: Study, fold: Fold, models: Iterable[str]) -> dict[str, FoldData]:
    """Return a fold's data as each model reads them: those that want tiles of one side share them."""
    sides = {name: tile_side(name, study.training_of(name)) for name in models}
    loaded = {side: load_training(study, fold, side=side) for side in dict.fromkeys(sides.values())}
    return {name: loaded[side] for name, side in sides.items()}


def models_meant(study: Study, model: str) -> list[str]:
    """Return the models that a name stands for: itself, or for ``baselines`` all of `BASELINES` that can be trained.

    What predicts from depth needs counts in every section.

    Raises
    ------
    InputError
        If the model is unknown, or is alone and cannot be trained.
    """
    names = list(BASELINES) if model == "baselines" else [model]
    if names[0] not in MODELS:
        raise unknown_name("model", model, [*MODELS, "baselines"])
    uncounted = uncounted_sections(study.run.folds)
    if not uncounted or NEEDS_COUNTS not in names:
        return names
    msg = f"{NEEDS_COUNTS} predicts from total counts, and {len(uncounted)} sections have none, e.g. {uncounted[0]}"
    if len(names) == 1:
        raise InputError(msg, file=study.run.folds, fix="leave it out")
    print(f"note: {msg}; it is left out", file=sys.stderr)
    return [name for name in names if name != NEEDS_COUNTS]


def fit(
    study: Study,
    model: str,
    data: FoldData,
    *,
    settings: Training | None = None,
    chosen: dict[str, Any] | None = None,
    device: str | None = None,
    folder: Path | None = None,
    seed: int | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> tuple[Any, dict[str, Any], np.ndarray | None]:
    """Fit one model on a fold's data; nothing of the test patients is in reach.

    Parameters
    ----------
    settings
        Training settings, where not the study's own for this model.
    chosen
        What to use where there is no validation part.
    folder
        Where a network keeps its curves and resumes from.
    seed
        Where not the study's own.
    on_epoch
        Called with the curves so far after every epoch of a network.

    Returns
    -------
    predictor, chosen, validation predictions in the transforms' units (None without a validation part)
    """
    settings = settings or study.training_of(model)
    seed = study.seed if seed is None else seed
    scaling = scaling_of(study, data.fold)
    train, validation = (scaled(study, scaling, part) for part in (data.train, data.validation))

    def lesson(part: Spots) -> Spots:
        if settings.teacher is None:
            return part
        how = {"panel": data.panel, "device": device, "held_out": settings.distil_held_out}
        return taught(study, settings.teacher, settings.distil, part, fold=data.fold, **how)

    def new() -> Any:
        fresh = build(
            model, train.outputs, settings=settings, options=study.options_of(model), device=device, folder=folder
        )
        if settings.replace_over:
            fresh.start = start_of(study, model, data.fold)
        fresh.on_epoch = on_epoch
        return fresh

    learnt = lesson(train)
    predictor = new()
    chosen = predictor.fit(learnt, validation, seed=seed, chosen=chosen)
    if validation is None:
        return predictor, chosen, None
    predicted = scaling.restore(predictor.predict(validation))
    if MODELS[model].kind == "fitted" or settings.refit:
        predictor = new()
        every = joined(train, validation)
        every = lesson(every) if settings.distil_held_out else joined(learnt, lesson(validation))
        again = predictor.fit(every, None, seed=seed, chosen=chosen)
        chosen = again if MODELS[model].kind == "fitted" else chosen
    return predictor, chosen, predicted


def taught(
    study: Study,
    teacher: str,
    share: float,
    spots: Spots,
    *,
    fold: Fold,
    panel: Panel,
    device: str | None = None,
    held_out: bool = False,
) -> Spots:
    """Return training spots whose targets are mixed with a teacher's predictions.

    Parameters
    ----------
    study
        The study; the fold's model of ``teacher`` is read from its run folder.
    teacher
        Name of a model of the study.
    share
        Of the teacher's predictions in the targets, 0 to 1.
    spots
        Whole sections of the fold's training patients, with targets as the loss sees them.
    fold, panel
        The fold and its panel.
    device
        Torch device of the teacher, where it is a network.
    held_out
        Teach what a closed form like the teacher says of spots that it was not fitted to, see `mixed_targets`.

    Raises
    ------
    InputError
        If the teacher is not trained on this fold, was trained under other settings, or predicts other outputs.
    """
    teacher_of(study, teacher, fold)
    model = load_model(study.run.model(teacher, fold.name), device=device)
    sections = list(dict.fromkeys(spots.sections.tolist()))
    if unlearnt := sorted(set(sections) - set(fold.training_sections)):
        raise InputError("a teacher can only be used on training sections", field="sections", value=unlearnt)
    side = tile_side(teacher, study.training_of(teacher))
    seen = load_spots(study, fold, sections, panel=panel, with_targets=False, side=side)
    if model.scaling.outputs != spots.outputs or not np.array_equal(seen.names, spots.names):
        raise InputError(
            "the teacher predicts outputs or spots that differ from the student's",
            file=model.folder,
            fix=f"train {teacher} again",
        )
    mixed = mixed_targets(study, teacher, model.predictor, share, seen, spots.targets, held_out=held_out)
    return replace(spots, targets=mixed)


def mixed_targets(
    study: Study,
    teacher: str,
    predictor: Predictor,
    share: float,
    seen: Spots,
    targets: np.ndarray,
    *,
    held_out: bool = False,
) -> np.ndarray:
    """Return (n, k) float32 targets mixed with what a fitted teacher predicts of the same spots, ``seen`` as it does.

    A network's predictions are averaged over the eight symmetries of each tile. With ``held_out``, ``predictor`` is not
    asked: a closed form of its settings is fitted to these spots and targets without each part in turn (whole patients;
    sections of one patient; stretches of one section), and says what it makes of that part.
    """
    soft: Any = 0
    if held_out:
        settings, options = study.training_of(teacher), study.options_of(teacher)
        learnt, soft = replace(seen, targets=targets), np.zeros(targets.shape, dtype=np.float32)
        for rows, part in inner_folds(learnt):
            apart = build(teacher, learnt.outputs, settings=settings, options=options)
            apart.fit(learnt.subset(rows), seed=study.seed)
            soft[part] = apart.predict(seen)[part]  # whole sections, by whose means inputs are standardised
    elif MODELS[teacher].kind == "network":
        for view in seen.symmetries():
            soft = soft + predictor.predict(view) / 8
    else:
        soft = predictor.predict(seen)
    if study.target.centre_by_section:  # as the measured targets are
        for section in np.unique(seen.sections):
            own = seen.sections == section
            soft[own] -= soft[own].mean(axis=0)
    return ((1 - share) * targets + share * soft).astype(np.float32)


def start_of(study: Study, model: str, fold: Fold) -> nn.Module:
    """Return the network whose weights a model starts from while its ReLUs give way to squares: its teacher's.

    Raises
    ------
    InputError
        If the model has no teacher, or cannot take over weights.
    """
    teacher = study.teacher_of(model)
    if teacher is None or MODELS[teacher].kind != "network" or not hasattr(model_class(model), "take_over"):
        raise InputError(
            "ReLUs can be replaced by squares only if the network starts from a trained one of the same form",
            field=f"models.{model}.replace_over",
            value=teacher,
            expected="fhe_resnet18 with the teacher resnet18",
        )
    teacher_of(study, teacher, fold)
    return load_model(study.run.model(teacher, fold.name), device="cpu").predictor.network


@dataclass(frozen=True)
class Fitted:
    """A model fitted on one fold, before anything of who is held out was looked at."""

    model: str
    predictor: Any
    chosen: dict[str, Any]
    """What the validation chose, e.g. epochs or the strength of regularisation."""
    predicted: np.ndarray | None
    """(n, k) of the validation spots, in the transforms' units; None without a validation part."""
    imported: dict[str, Any] | None
    """What ``model.json`` says of a published network that stands in for the study's own; else None."""
    seconds: float


def train_one(
    study: Study,
    model: str,
    data: FoldData,
    *,
    chosen: dict[str, Any] | None = None,
    device: str | None = None,
    keep_state: bool = False,
) -> TrainResult:
    """Train one model on a fold's data, predict who is held out, and write everything down.

    Parameters
    ----------
    chosen, device
        See `fit_one`.
    keep_state
        See `write_one`.
    """
    return write_one(study, data, fit_one(study, model, data, chosen=chosen, device=device), keep_state=keep_state)


def fit_one(
    study: Study,
    model: str,
    data: FoldData,
    *,
    chosen: dict[str, Any] | None = None,
    device: str | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] | None = None,
) -> Fitted:
    """Fit one model on a fold's data; what an earlier fit left is cleared away, but for what a killed one goes on from.

    Parameters
    ----------
    chosen
        What to use where there is no validation part; by default the median of what the other folds chose.
    device
        Torch device of networks; the best one if not given.
    on_epoch
        Called with the curves so far after every epoch of a network.
    """
    started = time.monotonic()
    fold, folder = data.fold, study.run.model(model, data.fold.name)
    if chosen is None and fold.name == FINAL:
        chosen = chosen_elsewhere(study, model)
    folder.mkdir(parents=True, exist_ok=True)
    stale = [folder / "model.json", *folder.glob("curves*.csv")]
    stale += [study.run.prediction(model, fold.name, part) for part in ("validation", "test")]
    for path in [*stale, study.run.heads(model, fold.name)]:
        path.unlink(missing_ok=True)

    scaling, taken = scaling_of(study, fold), imported_model(study, model, fold)
    if taken is None:
        how = {"device": device, "folder": folder, "on_epoch": on_epoch}
        predictor, chosen, predicted = fit(study, model, data, chosen=chosen, **how)
    else:
        predictor, chosen, predicted = taken.predictor, {}, None
        if data.validation is not None:
            predicted = scaling.restore(predictor.predict(data.validation))
    said = None if taken is None else taken.about
    return Fitted(model, predictor, chosen, predicted, said, time.monotonic() - started)


def write_one(study: Study, data: FoldData, fitted: Fitted, *, keep_state: bool = False) -> TrainResult:
    """Predict who is held out with a fitted model, and write predictions and model down.

    Parameters
    ----------
    keep_state
        Leave the state that a killed training goes on from, so that a repeated call ends at once with the same bits.
    """
    from histocrypt.training.loop import mean_section_pearson

    started, model, predictor, predicted = time.monotonic(), fitted.model, fitted.predictor, fitted.predicted
    fold, folder = data.fold, study.run.model(model, data.fold.name)
    scaling = scaling_of(study, fold)
    everyone = data.train if data.validation is None else joined(data.train, data.validation)
    told = predictor.predictability if fitted.imported is None else None
    score, written, trust = None, [], training_genes(study, everyone, told, data.panel)
    if predicted is not None:
        score = mean_section_pearson(predicted, data.validation.targets, data.validation.sections)
        written.append(_predictions(study, model, data, "validation", data.validation, predicted, trust=trust))
    if fold.test_sections:
        test = load_test(study, data, side=tile_side(model, study.training_of(model)))
        mean, extra = scaling.restore(predictor.predict(test)), partial(predictor.add_layers, scaling=scaling)
        written.append(_predictions(study, model, data, "test", test, mean, extra, trust=trust))
        if MODELS[model].has_heads:
            about = said_of(study, model, fold.name, "test")
            write_heads(study.run.heads(model, fold.name), predictor, test, coords=coords_of(study, test), about=about)
    seconds = fitted.seconds + time.monotonic() - started
    about = fitted.imported or describe(study, model, data, chosen=fitted.chosen, scaling=scaling)
    about |= {"predictability": trust} if trust else {}
    gate = training_gate(study, everyone, checked_options(model, study.options_of(model)).features)
    intervals = training_intervals(everyone, told, scaling)
    about |= {"origin": training_origin(study, fold)}
    about |= {name: said for name, said in (("gate", gate and gate.to_dict()), ("intervals", intervals)) if said}
    about |= {"validation_pcc": score, "seconds": round(seconds, 2)}
    save_model(folder, about, {**predictor.state(), **(gate.state() if gate else {})})
    if not keep_state:
        shutil.rmtree(folder / "last", ignore_errors=True)
    return TrainResult(model, fold.name, folder, fitted.chosen, score, tuple(written), seconds)


def describe(
    study: Study, model: str, data: FoldData, *, chosen: dict[str, Any], scaling: TargetStatistics
) -> dict[str, Any]:
    """Return what ``model.json`` says of a model: all that predicting needs, and what it was made from."""
    settings, fold = study.training_of(model), data.fold
    pre = study.preprocessing
    teacher = study.teacher_of(model)
    everyone = data.train if data.validation is None else joined(data.train, data.validation)
    return {
        "model": model,
        "title": MODELS[model].title,
        "kind": MODELS[model].kind,
        "options": study.options_of(model),
        "training": settings.model_dump(mode="json"),
        "fold": fold.name,
        "train_sections": list(fold.train_sections),
        "validation_sections": list(fold.validation_sections),
        "test_patients": list(fold.test_patients),
        "train_patients": sorted(set(everyone.patients.tolist())),
        "n_train_spots": len(data.train),
        "transforms": list(study.target.transforms),
        "outputs": list(scaling.outputs),
        "panel": data.panel.to_dict(),
        "geometry": {
            "tile_um": pre.tile_um,
            "tile_px": pre.tile_px,
            "input_px": tile_side(model, settings) or pre.tile_px,
            **_seen(study, (*fold.train_sections, *fold.validation_sections)),
        },
        "preprocessing": pre.model_dump(mode="json"),
        "stain": {
            "method": pre.stain,
            "reference": json.loads((study.run.fold(fold.name) / STAIN).read_text(encoding="utf-8")),
        },
        "target": study.target.model_dump(mode="json"),
        "target_statistics": scaling.to_dict(),
        "study": {"name": study.name, "title": study.title, "hash": study.hash()},
        "seed": study.seed,
        "chosen": chosen,
        "made_from": made_from(study, model, fold),
        **({"teacher": teacher_of(study, teacher, fold)} if teacher else {}),
        "versions": {name: version(name) for name in ("histocrypt", "torch", "numpy", "scikit-learn")},
    }


def _seen(study: Study, sections: Iterable[str]) -> dict[str, list[float]]:
    """Return smallest and largest detail of pictures and size of spots, micrometres, as far as all sections tell."""
    cleaned = (read_clean_section(study.run.section(name), parts=("uns",)) for name in sections)
    done = [as_mapping(one.uns.get("preprocessing")) for one in cleaned]
    seen = {}
    for name, field in (("detail_um", "detail_um"), ("spot_um", "spot_diameter_um")):
        values = [float(one[field]) for one in done if field in one]
        if values and len(values) == len(done):
            seen[name] = [round(min(values), 6), round(max(values), 6)]
    return seen


def coords_of(study: Study, spots: Spots) -> np.ndarray:
    """Return (n, 2) x, y of spots in full-resolution pixels, by name."""
    coords = {}
    for section in dict.fromkeys(spots.sections.tolist()):
        clean = read_clean_section(study.run.section(section), parts=("obs", "obsm"))
        for barcode, xy in zip(clean.obs_names, np.asarray(clean.obsm["spatial"]), strict=True):
            coords[f"{section}:{barcode}"] = xy
    return np.array([coords[name] for name in spots.names.tolist()])


def said_of(study: Study, model: str, fold: str, part: str) -> dict[str, Any]:
    """Return what ``uns["prediction"]`` says of every prediction of a run."""
    title = {**MODELS, **STACKS}[model].title
    run = {"study": study.name, "study_hash": study.hash(), "seed": study.seed}
    return {"model": model, "title": title, "fold": fold, "part": part, **run}


def _predictions(
    study: Study,
    model: str,
    data: FoldData,
    part: str,
    spots: Spots,
    predicted: np.ndarray,
    extra: Callable[[AnnData], None] | None = None,
    *,
    trust: dict[str, Any] | None = None,
) -> Path:
    path = study.run.prediction(model, data.fold.name, part)
    about = said_of(study, model, data.fold.name, part)
    write_predictions(
        path,
        predicted,
        spots=spots,
        coords=coords_of(study, spots),
        panel=data.panel,
        transforms=list(study.target.transforms),
        about=about,
        scaling=TargetStatistics.load(study.run.fold(data.fold.name) / TARGETS),
        extra=extra,
        trust=trust,
    )
    return path


def chosen_elsewhere(study: Study, model: str) -> dict[str, Any]:
    """Return the median of what the other folds chose (the commonest where it is not a number)."""
    why = f"fold final of {model} uses what the other folds chose"
    folds = [fold for fold in load_folds(study.run.folds) if fold.name != FINAL]
    found = [trained_about(study, model, fold, why=why)["chosen"] for fold in folds]
    return {key: _middle([chosen[key] for chosen in found]) for key in found[0]}


def _middle(values: list[Any]) -> Any:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        middle = float(np.median(values))
        return round(middle) if all(isinstance(value, int) for value in values) else middle
    return json.loads(Counter(json.dumps(value) for value in values).most_common(1)[0][0])
