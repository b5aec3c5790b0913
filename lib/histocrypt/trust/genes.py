"""Which genes of a model are worth trusting: what patients left out in turn say of each, and what that promises.

Evidence comes of predictions of training patients by fits that had not seen them (`predictors.predictability`):

- The **interval** of a gene's correlation reaches from the lowest of the K patients to the highest, each with its own
  95 % interval: Fisher's, for as many independent spots as tissue so smooth amounts to (`correlation.error_by_chance`).
  A new patient is as likely as each of the K to be the lowest, so at least K in K + 1 of new patients lie above the
  lower end, and (K - 1) / (K + 1) between both, gene by gene, if they are like those and models of K - 1 patients no
  better than that of K. No more can be promised of K patients.
- **Better than chance** is a mean over patients that maps as smooth as these, but unrelated, do not reach: Dutilleul's
  t-test in each patient, patients joined by Stouffer's sum, and of the genes of a transform that are called so at most
  5 % by chance (Benjamini and Hochberg). Sections of a patient are neighbours of one tumour, and count as one.
- The **share of the noise ceiling**: the correlation over what counting leaves of these sections (`targets.ceiling`).
- A gene is **trusted** that is better than chance and goes the right way in each patient left out. Of one patient
  nothing follows for another: then no gene is called trusted, and none is not.

`ranked` and `trusted` are the one place where views ask.

Sources: Stouffer et al., The American Soldier I (1949); Benjamini and Hochberg, JRSS B 57 (1995); for the tests in
space see `correlation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.correlation import error_by_chance, p_of
from histocrypt.predictors.predictability import BY, correlations_of, mean_of_known, plain
from histocrypt.targets.ceiling import share

if TYPE_CHECKING:
    import pandas as pd

    from histocrypt.predictors.predictability import Predictability

FALSE_DISCOVERY = 0.05
"""Of the genes that are called better than chance."""
REACH = 1.96
"""Errors, of Fisher's z, by which an interval is wider than its patients."""
TOLD, LABELLED = "training_pearson", "labelled_pearson"
"""Columns of ``var``, each followed by ``:<transform>``: how well a gene is predicted on training patients left out, or
on labelled sections (`histocrypt trust`)."""
TRUSTED, BETTER = "trusted", "better_than_chance"
DOUBTED = "not worth trusting"
"""How `words` on a gene begin that is not trusted."""


def evidence(
    told: Predictability,
    measured: np.ndarray,
    sections: np.ndarray,
    coords: Mapping[str, np.ndarray],
    ceilings: Mapping[str, np.ndarray],
    outputs: Sequence[str],
) -> dict[str, Any]:
    """Return what ``model.json`` holds of every output beside its correlation: lists in the order of the outputs.

    Parameters
    ----------
    told
        What fits said of (n, n_outputs) spots whose patient they had not seen.
    measured
        (n, n_outputs) their values.
    sections
        (n,) of each spot.
    coords
        By section, (spots, 2) their places, any unit.
    ceilings
        By section, (n_outputs,) noise ceiling; sections without are left out.
    outputs
        ``<transform>:<gene>``: genes of a transform are tested together.

    Returns
    -------
    dict
        ``measured_in``: in how many patients; ``low``, ``high``; ``false_discovery``: the rate of calling the output
        and all before it better than chance; ``positive``: whether the correlation is above 0 in each patient;
        ``ceiling``: mean over sections, then patients. What is not known is None, and without sections of counts there
        is no ``ceiling``.
    """
    names, patients = list(told.owners), list(told.owners.values())
    errors = [
        error_by_chance(*(values[sections == name] for values in (measured, told.predicted)), coords[name])
        for name in names
    ]
    each = np.stack(list(told.by_patient.values()))
    error = np.stack(list(by_patient(errors, patients).values()))
    low, high = interval(each, error)
    rates, groups = np.full(len(outputs), np.nan), np.array([name.partition(":")[0] for name in outputs])
    for group in np.unique(groups):
        rates[groups == group] = false_discovery(each[:, groups == group], error[:, groups == group])
    known = np.isfinite(each)
    said = {
        "measured_in": known.sum(axis=0).tolist(),
        "low": plain(low),
        "high": plain(high),
        "false_discovery": plain(rates),
        "positive": (known.any(axis=0) & (np.where(known, each, np.inf) > 0).all(axis=0)).tolist(),
    }
    if ceilings:
        said["ceiling"] = plain(
            mean_of_known(list(by_patient(list(ceilings.values()), [told.owners[name] for name in ceilings]).values()))
        )
    return said


def columns(said: Mapping[str, Any], transform: str, genes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns of ``var`` that say how far to trust each gene, by their name without ``:<transform>``.

    Parameters
    ----------
    said
        ``predictability`` of ``model.json``; of a model of an earlier version it says the correlation alone.
    transform, genes
        Of the outputs ``<transform>:<gene>``.

    Returns
    -------
    dict
        ``training_pearson``; ``training_pearson_low`` and ``_high``; ``training_patients``, of how many;
        ``training_q``, the false discovery rate, and ``better_than_chance``; ``training_ceiling`` and
        ``training_share``; ``trusted``. What the model does not tell is absent.
    """
    place = {name: index for index, name in enumerate(said["correlation"])}
    own = [place.get(f"{transform}:{gene}", -1) for gene in genes]

    def of(name: str) -> np.ndarray:
        return np.array([np.nan if value is None else value for value in [*said[name], None]], dtype=np.float64)[own]

    r = correlations_of(said, [f"{transform}:{gene}" for gene in genes])
    found = {TOLD: r}
    if "ceiling" in said:
        found |= {"training_ceiling": of("ceiling"), "training_share": share(r, of("ceiling"))}
    if "false_discovery" not in said:
        return found
    better = of("false_discovery") <= FALSE_DISCOVERY
    found |= {f"{TOLD}_low": of("low"), f"{TOLD}_high": of("high"), "training_q": of("false_discovery")}
    found |= {"training_patients": np.nan_to_num(of("measured_in")).astype(np.int64), BETTER: better}
    if said["by"] == BY[0]:
        found[TRUSTED] = better & (of("positive") == 1)
    return found


def interval(each: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both ends, (g,) each, from (K, g) correlations of patients and their errors; NaN where none is known."""
    known = np.isfinite(each) & np.isfinite(errors)
    z = np.arctanh(np.clip(each, -0.9999, 0.9999))
    low, high = (np.tanh(z + sign * REACH * errors) for sign in (-1, 1))
    ends = np.where(known, low, np.inf).min(axis=0), np.where(known, high, -np.inf).max(axis=0)
    return tuple(np.where(known.any(axis=0), end, np.nan) for end in ends)


def promise(said: Mapping[str, Any]) -> str:
    """Return what the interval of a gene's correlation promises, in words."""
    count = said["patients"]
    if said["by"] != BY[0]:
        return "other tissue of the same patient, and nothing of another one: 95 % if each gene is as smooth as here"
    return (
        f"in at least {count / (count + 1):.0%} of new patients like the {count} that were left out, a gene's "
        f"correlation is above the lower end, in {(count - 1) / (count + 1):.0%} between both"
    )


def false_discovery(each: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the false discovery rate of each gene, (g,), from (K, g) correlations of patients and their errors.

    NaN where the gene varies in no patient.
    """
    from scipy.stats import false_discovery_control, norm

    known = np.isfinite(each) & np.isfinite(errors)
    p = p_of(np.where(known, each, 0.0), np.where(known, errors, 1.0))
    z = np.where(known, norm.isf(np.clip(p, 1e-300, 1 - 1e-15)), 0.0)
    count, there = known.sum(axis=0), known.any(axis=0)
    rates = np.full(each.shape[1], np.nan)
    if there.any():
        rates[there] = false_discovery_control(norm.sf(z.sum(axis=0) / np.sqrt(np.maximum(count, 1)))[there])
    return rates


def trusted(var: pd.DataFrame, transform: str) -> np.ndarray | None:
    """Return (g,) bool, which genes are worth trusting, from ``var`` of a prediction; None where it does not tell.

    Labelled sections (`histocrypt trust`) tell of a model of others whether it is better than chance there.
    """
    for column in (f"{TRUSTED}:{transform}", f"{BETTER}:{transform}" if f"{LABELLED}:{transform}" in var else ""):
        if column in var:
            return var[column].to_numpy(dtype=bool)
    return None


def ranked(var: pd.DataFrame, transform: str) -> np.ndarray | None:
    """Return (g,) int, genes in the order of views: trusted first, then by correlation; None where nothing is told."""
    told = next((name for one in (TOLD, LABELLED) if (name := f"{one}:{transform}") in var), None)
    if told is None:
        return None
    r, worth = var[told].to_numpy(dtype=np.float64), trusted(var, transform)
    if not np.isfinite(r).any():
        return None
    return np.lexsort((-np.nan_to_num(r, nan=-np.inf), np.zeros(len(r)) if worth is None else ~worth))


def mark(var: pd.DataFrame, transform: str, gene: str) -> str:
    """Return what a list of names says behind one: its correlation, its interval and whether it is trusted, briefly."""
    told = next((one for one in (TOLD, LABELLED) if f"{one}:{transform}" in var), None)
    if told is None or not np.isfinite(r := float(var.at[gene, f"{told}:{transform}"])):
        return ""
    worth, said = trusted(var, transform), f"r {r:.2f}"
    if f"{told}_low:{transform}" in var:
        low, high = (float(var.at[gene, f"{told}_{end}:{transform}"]) for end in ("low", "high"))
        said += f" ({low:.2f} to {high:.2f})"
    if worth is None:
        return f" · {said}"
    return f" · {'trusted' if worth[var.index.get_loc(gene)] else DOUBTED} · {said}"


def words(var: pd.DataFrame, transform: str, gene: str) -> str:
    """Return what is known of one gene, a row of ``var``, in words; empty where nothing is told."""
    told = next((one for one in (TOLD, LABELLED) if f"{one}:{transform}" in var), None)
    if told is None or not np.isfinite(r := float(var.at[gene, f"{told}:{transform}"])):
        return ""
    said, worth = f"it correlates by {r:.2f}", trusted(var, transform)
    if f"{told}_low:{transform}" in var:
        low, high = (float(var.at[gene, f"{told}_{end}:{transform}"]) for end in ("low", "high"))
        said += f" ({low:.2f} to {high:.2f})"
    of = f"training_patients:{transform}"
    people = f", of {count} patient{'s' * (count != 1)}" if of in var and (count := int(var.at[gene, of])) else ""
    said += f" on training sections left out{people}" if told == TOLD else " on labelled sections"
    share_of = f"{told.removesuffix('_pearson')}_share:{transform}"
    if share_of in var and np.isfinite(part := float(var.at[gene, share_of])):
        said += f", {part:.0%} of the noise ceiling"
    if worth is None:
        return said
    if worth[var.index.get_loc(gene)]:
        return f"worth trusting: {said}"
    better = bool(var.at[gene, f"{BETTER}:{transform}"]) if f"{BETTER}:{transform}" in var else False
    return f"{DOUBTED}, {'wrong in a patient' if better else 'no better than chance'}: {said}"


def by_patient(sections: Sequence[np.ndarray], patients: Sequence[str]) -> dict[str, np.ndarray]:
    """Return means over the sections of each patient, in order of patients' names, of what is known."""
    pairs = list(zip(sections, map(str, patients), strict=True))
    return {
        name: mean_of_known([own for own, whose in pairs if whose == name]) for name in sorted(set(map(str, patients)))
    }
