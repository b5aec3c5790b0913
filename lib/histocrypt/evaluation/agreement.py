"""Encrypted predictions beside those of the same model in the clear: how far they are apart, and whether it matters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histocrypt.data.folds import held_out_sections, load_folds
from histocrypt.errors import InputError
from histocrypt.evaluation.metrics import pearson
from histocrypt.files import read_json, write_json
from histocrypt.pipeline.predictions import join, read_h5ad, read_prediction, transforms_of

if TYPE_CHECKING:
    from histocrypt.study import Study


def agreement(
    encrypted: Path, clear: Path, truth: Path, sd: dict[str, float], *, spots: int | None = None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Compare two prediction files of one section, joined by the names of spots and genes.

    Parameters
    ----------
    encrypted, clear
        Prediction files of the same model.
    truth
        The cleaned section: what was measured.
    sd
        Standard deviation of each output over the training spots, by ``"<transform>:<gene>"``: the unit of errors.
    spots
        How many of the section's spots were encrypted, at most; all of them if not given.

    Returns
    -------
    summary
        ``spots``, ``section_spots`` (predicted in the clear), ``genes``, ``max_abs_error`` and ``mean_abs_error`` (of
        standardised outputs, all transforms), ``precision_bits`` (-log2 of the mean), ``max_pcc_difference`` (over
        genes, main transform).
    genes
        One row per gene of the main transform: its largest error, its correlation with the measured values in the
        clear and encrypted, and with each other. ``attrs["spots"]`` names the spots that were measured too.

    Raises
    ------
    InputError
        If they do not hold the same spots (or, with ``spots``, so many of them) and genes.
    """
    one, other = read_prediction(encrypted), read_prediction(clear)
    whole = other.n_obs
    if spots is not None and one.n_obs == min(spots, whole):
        other = other[other.obs_names.isin(one.obs_names)]
    missing = sorted(set(other.obs_names) ^ set(one.obs_names)) or sorted(set(other.var_names) ^ set(one.var_names))
    if missing:
        raise InputError(
            "the two predictions are not of the same spots and genes",
            file=encrypted,
            value=missing[0],
            fix="predict both from the same section",
        )
    other = other[one.obs_names, one.var_names]
    main = transforms_of(one)[0]
    section = str(one.obs["section"].iloc[0])
    measured = read_h5ad(truth, what="cleaned section")
    pairs = {name: join(adata, measured, section) for name, adata in (("encrypted", one), ("clear", other.copy()))}
    errors = {
        name: np.abs(np.asarray(one.layers[name], dtype=float) - np.asarray(other.layers[name], dtype=float))
        / np.array([sd[f"{name}:{gene}"] for gene in one.var_names])
        for name in transforms_of(one)
    }
    every = np.concatenate(list(errors.values()), axis=1)
    scores = {name: pearson(pair.true[main], pair.predicted[main]) for name, pair in pairs.items()}
    genes = pd.DataFrame(
        {
            "gene": pairs["clear"].genes,
            "symbol": pairs["clear"].symbols,
            "pcc_clear": scores["clear"],
            "pcc_encrypted": scores["encrypted"],
        }
    ).set_index("gene")
    where = one.var_names.get_indexer(genes.index)
    genes["max_abs_error"] = errors[main].max(axis=0)[where]
    genes["agreement"] = pearson(np.asarray(other.layers[main])[:, where], np.asarray(one.layers[main])[:, where])
    genes.attrs["spots"] = pairs["clear"].spots.tolist()
    summary = {
        "spots": int(one.n_obs),
        "section_spots": whole,
        "genes": int(one.n_vars),
        "max_abs_error": float(every.max()),
        "mean_abs_error": float(every.mean()),
        "precision_bits": round(float(-np.log2(every.mean())), 2),
        "max_pcc_difference": float(np.nanmax(np.abs(scores["encrypted"] - scores["clear"]))),
    }
    return summary, genes


def shown(summary: dict[str, Any]) -> pd.DataFrame:
    """Return a summary as text for readers: what was compared, and its value."""
    unit = "standard deviations of an output"
    rows = {
        "spots on ciphertexts, of the section's": f"{summary['spots']} of {summary['section_spots']}",
        "genes": f"{summary['genes']}",
        f"largest error, {unit}": f"{summary['max_abs_error']:.1e}",
        f"mean error, {unit}": f"{summary['mean_abs_error']:.1e}",
        "precision of the mean error, bits": f"{summary['precision_bits']:.1f}",
        "largest change of a gene's correlation": f"{summary['max_pcc_difference']:.1e}",
    }
    return pd.Series(rows, name="value").to_frame()


def words(section: str, content: dict[str, Any]) -> str:
    """Say what encryption changed in a prediction, and what it took: one sentence.

    Parameters
    ----------
    section
        Name of the section.
    content
        As `save_agreement` writes it: a summary with ``seconds`` and ``peak_gib``.
    """
    spots, whole = content["spots"], content["section_spots"]
    some = f"all {whole}" if spots == whole else f"{spots} of {whole}"
    return (
        f"On {some} spots of {section}, decrypted predictions differ from those in the clear by at most "
        f"{content['max_abs_error']:.0e} standard deviations of an output, and the correlation of a gene with what was "
        f"measured by at most {content['max_pcc_difference']:.0e}; evaluation took "
        f"{content['seconds']['evaluate_per_spot']:.2g} s per spot and at most {max(content['peak_gib'].values()):.1f} "
        "GiB of memory."
    )


def save_agreement(
    study: Study, network: str, section: str, content: dict[str, Any], *, engine: str = "two_party"
) -> Path:
    """Write one network's agreement on one section, and return the folder where it is.

    ``agreement.json`` of the stage holds the first trial's figures and, as ``trials``, those of all. Jobs that end at
    once all write it: each looks again afterwards, so that the last to write has seen every one.
    """
    home = study.run.trials(engine)
    folder = home / network / section
    write_json(folder / "agreement.json", {"network": network, "section": section, **content})
    written: list[dict[str, Any]] = []
    while (every := load_agreements(study, engine=engine)) != written:
        write_json(home / "agreement.json", {**every[0], "trials": every})
        written = every
    return folder


def load_agreements(study: Study, *, engine: str = "two_party") -> list[dict[str, Any]]:
    """Return what is known of each network on each section that the study asks for; empty where there is nothing yet.

    What was tried besides, or once, stays in its folder: the model may be another by now.
    """
    networks = study.encrypted_models
    if not networks:
        return []
    sections = held_out_sections(load_folds(study.run.folds), study.encrypted.sections)
    home = study.run.trials(engine)
    folders = [home / name / section for name in networks for section in sections]
    return [read_json(file) for folder in folders if (file := folder / "agreement.json").is_file()]
