"""What goes with a model so that its user knows how far to trust it: made in training, asked before predicting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.errors import InputError
from histocrypt.targets.ceiling import section_ceiling
from histocrypt.trust import conformal, genes
from histocrypt.trust.gate import WORDS, Gate, Look, Verdict, own_features
from histocrypt.trust.origin import ANYWAY, origin_of, origin_words

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.data.folds import Fold
    from histocrypt.data.load import Spots
    from histocrypt.predictors.predictability import Predictability
    from histocrypt.study import Study
    from histocrypt.targets.panels import Panel
    from histocrypt.targets.transforms import TargetStatistics

SHARPNESS, COARSE = "sharpness", "coarse_sharpness"
"""Columns of ``obs`` that preprocessing writes, see `tissue.artefacts.looked_over`."""


def training_origin(study: Study, fold: Fold) -> dict[str, Any]:
    """Return what ``model.json`` says under ``origin`` of a fold's training sections."""
    cleaned = (read_clean_section(study.run.section(name), parts=("obs", "uns")) for name in fold.training_sections)
    return origin_of(cleaned, organ=study.tissue.organ, stain=study.tissue.stain)


def training_gate(study: Study, spots: Spots, features: str) -> Gate | None:
    """Return the gate of a model; None where sections were preprocessed before sharpness was kept.

    Parameters
    ----------
    spots
        All training spots, those of validation among them.
    features
        Name of what the model reads (`data.features`); "" for tiles.
    """
    from histocrypt.tissue.stain import StainStatistics

    own = own_features(features)
    values = spots.features(own) if own else None
    looks, variances = {}, []
    for name in dict.fromkeys(spots.sections.tolist()):
        rows, obs = spots.sections == name, read_clean_section(study.run.section(name), parts=("obs",)).obs
        if SHARPNESS not in obs:
            return None
        laboratory = str(obs["laboratory"].iloc[0]) if "laboratory" in obs else ""
        mine = None if values is None else values[rows]
        variances += [] if mine is None else [mine.var(axis=0, dtype=np.float64)]
        about = {"patient": str(spots.patients[rows][0]), "laboratory": laboratory}
        about |= {"coarse": obs[COARSE].to_numpy()} if COARSE in obs else {}
        looks[name] = Look.of(StainStatistics.load(study.run.stain(name)), obs[SHARPNESS].to_numpy(), mine, **about)
    return Gate(looks, np.sqrt(np.mean(variances, axis=0)) if variances else None)


def training_intervals(
    spots: Spots, told: Predictability | None, scaling: TargetStatistics
) -> dict[str, dict[str, Any]] | None:
    """Return what ``model.json`` says under ``intervals``; None where no patient was left out.

    Parameters
    ----------
    spots
        All training spots in the order of the fit, targets in the transforms' units.
    told
        What the fit says of spots that it left out.
    scaling
        From the loss's units to the transforms'.

    Returns
    -------
    dict
        ``value`` and ``within_section``: see `trust.conformal.held_out_errors` and `trust.conformal.to_dict`.
    """
    if told is None or told.by != "patient":
        return None
    differences = told.predicted * scaling.sd
    made = {}
    for name, centred in (("value", False), ("within_section", True)):
        about = {"patients": spots.patients, "sections": spots.sections, "centred": centred}
        errors = conformal.held_out_errors(spots.targets, differences, **about)
        made[name] = conformal.to_dict(conformal.patient_scores(errors, spots.patients))
    return made


def training_genes(study: Study, spots: Spots, told: Predictability | None, panel: Panel) -> dict[str, Any] | None:
    """Return what ``model.json`` says under ``predictability`` of genes; None where the predictor does not tell.

    Parameters
    ----------
    spots
        All training spots in the order of the fit, with targets.
    told
        What the fit says of spots that it left out.
    panel
        Whose genes the targets are.
    """
    if told is None:
        return None
    rng = np.random.default_rng(study.seed)
    coords, ceilings = {}, {}
    for name in told.owners:
        clean = read_clean_section(study.run.section(name))
        barcodes = [one.removeprefix(f"{name}:") for one in spots.names[spots.sections == name].tolist()]
        clean = clean[clean.obs_names.get_indexer(barcodes)]
        coords[name] = np.asarray(clean.obsm["spatial"])
        how = {"name": name, "matrix": panel.matrix, "rng": rng}
        found, _ = section_ceiling(clean, panel.genes, panel.symbols, study.target.transforms, **how)
        if found:
            none = np.full(len(panel), np.nan)
            ceilings[name] = np.concatenate([found.get(transform, none) for transform in study.target.transforms])
    known = genes.evidence(told, spots.targets, spots.sections, coords, ceilings, spots.outputs)
    return told.to_dict(spots.outputs) | known


def intervals_of(
    about: Mapping[str, Any], names: Sequence[str], *, level: float | None = None
) -> dict[str, tuple[np.ndarray, str]]:
    """Return half-widths of outputs, and their promise in words, by kind; empty where a model tells none.

    Raises
    ------
    InputError
        If the level is more than the model's calibration patients support.
    """
    place = {name: index for index, name in enumerate(about["outputs"])}
    columns = [place[name] for name in names]
    found = {}
    for kind, said in (about.get("intervals") or {}).items():
        widths = conformal.widths_of(said, level)
        found[kind] = widths[columns], conformal.promise(said, level)
    return found


def judge(
    gate: Gate | None,
    about: Mapping[str, Any],
    folder: Path,
    features: np.ndarray | None,
    *,
    tiles: bool,
    file: Any,
    anyway: bool,
) -> Verdict | None:
    """Return the verdict on a section that `pipeline.inputs.prepare_section` prepared in a folder.

    Parameters
    ----------
    gate
        The model's; None: of an earlier version, and nothing is known.
    about
        What ``model.json``, or the public part of an encrypted one, says.
    folder
        Holds ``section.h5ad`` and ``s.json``.
    features
        (n, d) of its spots, as `trust.gate.own_features` names them; None where they are not judged.
    tiles
        The model reads tiles, at the size that ``about`` says; not features of whole ones.
    file
        What an error names.
    anyway
        Go on where the word is no.

    Raises
    ------
    InputError
        If the verdict is the last of `trust.gate.WORDS`, without ``anyway``.
    """
    from histocrypt.tissue.stain import StainStatistics

    if gate is None:
        return None
    seen = looked_over_spots(folder)
    look = Look.of(StainStatistics.load(folder / "s.json"), seen[SHARPNESS], features, coarse=seen[COARSE])
    reduced = tiles and about["geometry"]["input_px"] < about["geometry"]["tile_px"]
    verdict = gate.judge(look, reduced=reduced).of_spots(flawed_spots(seen, gate))
    return checked(verdict, file=file, anyway=anyway)


def looked_over_spots(folder: Path) -> dict[str, np.ndarray]:
    """Return `tissue.artefacts.COLUMNS` of a section that was prepared in a folder, (n,) each."""
    from histocrypt.tissue.artefacts import COLUMNS

    obs = read_clean_section(folder / "section.h5ad", parts=("obs",)).obs
    return {name: obs[name].to_numpy(dtype=np.float64) for name in COLUMNS}


def flawed_spots(seen: Mapping[str, np.ndarray], gate: Gate | None) -> dict[str, np.ndarray]:
    """Return (n,) bool by column of ``obs``: ``pen``, ``fold``, and, where a gate can tell, ``out_of_focus``."""
    from histocrypt.tissue.artefacts import FOLD, PEN

    found = {"pen": seen["pen_share"] > PEN, "fold": seen["fold_share"] > FOLD}
    return found if gate is None else {**found, "out_of_focus": gate.out_of_focus(seen[SHARPNESS])}


def checked(verdict: Verdict, *, file: Any, anyway: bool) -> Verdict:
    """Return the verdict, or refuse to go on."""
    if verdict.word == WORDS[-1] and not anyway:
        problem = f"does not fit this model: {'; '.join(verdict.reasons)}"
        raise InputError(problem, file=file, field="slide", value=verdict.word, fix=ANYWAY)
    return verdict


def said_of_trust(about: Mapping[str, Any], verdicts: Sequence[Verdict | None]) -> dict[str, Any]:
    """Return what ``uns["prediction"]`` says of a model's origin and of the slide; of several, of the worst.

    Parameters
    ----------
    about
        What ``model.json``, or the public part of an encrypted one, says.
    verdicts
        Of `judge`; None where the model cannot tell.
    """
    said: dict[str, Any] = {"origin": origin_words(about.get("origin"))}
    judged = [verdict for verdict in verdicts if verdict is not None]
    if judged:
        worst = max(judged, key=lambda verdict: WORDS.index(verdict.word))
        why = np.array(worst.reasons, dtype=str)
        said["slide"] = {"verdict": worst.word, "why": why, **worst.measured}
    return said


def add_trust(
    adata: AnnData, about: Mapping[str, Any], gate: Gate | None, seen: Mapping[str, np.ndarray] | None
) -> None:
    """Add intervals to ``var`` with their promise in ``uns``, and what is known of spots to ``obs``.

    ``var["half_width:<transform>"]`` is about values, ``var["half_width_within:<transform>"]`` about differences from a
    section's mean; ``obs["sharpness"]`` is that of the spot's tile, ``obs["background_share"]`` how much of that is
    glass, and ``pen``, ``fold`` and ``out_of_focus`` say what lies in the way (`flawed_spots`).

    Parameters
    ----------
    adata
        The prediction.
    about
        What ``model.json``, or the public part of an encrypted one, says.
    gate
        The model's; None: of an earlier version.
    seen
        `looked_over_spots` of its spots; None: not looked at.
    """
    for transform in about["transforms"]:
        names = [f"{transform}:{gene}" for gene in adata.var_names]
        for kind, (widths, promise) in intervals_of(about, names).items():
            column = "half_width" if kind == "value" else "half_width_within"
            adata.var[f"{column}:{transform}"] = widths
            adata.uns["prediction"] = {**adata.uns["prediction"], "intervals": promise}
    if seen is not None:
        told = {name: seen[name] for name in (SHARPNESS, "background_share")} | flawed_spots(seen, gate)
        for name, values in told.items():
            adata.obs[name] = values
