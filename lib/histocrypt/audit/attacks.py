"""Attacks that need losses alone. Each returns one score a record; higher means "more likely a member".

Loss threshold: Yeom et al., "Privacy risk in machine learning", CSF 2018. Calibration by reference models: Watson et
al., "On the importance of difficulty calibration in membership inference attacks", ICLR 2022. LiRA: Carlini et al.,
"Membership inference attacks from first principles", IEEE S&P 2022.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from histocrypt.errors import InputError, unknown_name

SMALLEST_LOSS = 1e-8
"""A smaller loss counts as this: a label that was learnt by heart must not become infinite evidence."""
SMALLEST_SD = 1e-3
"""Of scaled losses; shadows of a model without chance would otherwise agree exactly."""
SHADOWS_FOR_OWN_VARIANCE = 16
"""With fewer shadows in or out, the records share one variance (Carlini et al. do so below about 64 in all)."""
LEAST_GAIN = 0.1
"""In standard deviations from model to model: how much surer of a record a model is at least held to be that saw it."""

Scale = Literal["squared", "cross_entropy", "as_is"]


def loss_threshold(loss: np.ndarray) -> np.ndarray:
    """Return (n,) scores of the simplest attack: who has a small loss was trained on."""
    return -np.asarray(loss, dtype=np.float64)


def calibrated(loss: np.ndarray, reference_loss: np.ndarray) -> np.ndarray:
    """Return (n,) by how much the loss is smaller than models that never saw the record would make it.

    Parameters
    ----------
    loss
        (n,).
    reference_loss
        (n,) or (models, n), NaN where a model saw the record.

    Raises
    ------
    InputError
        If a record has no reference at all.
    """
    reference = np.atleast_2d(np.asarray(reference_loss, dtype=np.float64))
    known = np.isfinite(reference)
    _need(known.any(axis=0), "reference model that never saw it")
    return np.where(known, reference, 0).sum(axis=0) / known.sum(axis=0) - np.asarray(loss, dtype=np.float64)


def confidence(loss: np.ndarray, scale: Scale = "squared") -> np.ndarray:
    """Return losses as numbers that are about normal from model to model; higher where the model is surer.

    Parameters
    ----------
    loss
        Any shape; NaN stays NaN.
    scale
        ``squared``: a mean squared error becomes minus its logarithm. ``cross_entropy``: the logit of the probability
        that the model gives the truth, as in LiRA. ``as_is``: minus the loss.
    """
    loss = np.asarray(loss, dtype=np.float64)
    if scale == "as_is":
        return -loss
    loss = np.where(np.isnan(loss), loss, np.maximum(loss, SMALLEST_LOSS))
    if scale == "squared":
        return -np.log(loss)
    if scale == "cross_entropy":
        return -loss - np.log(-np.expm1(-loss))
    raise unknown_name("scale", scale, ["squared", "cross_entropy", "as_is"])


def in_and_out(loss: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split shadow losses (shadows, n) by who was inside: two arrays of that shape, NaN where it does not apply."""
    loss = np.asarray(loss, dtype=np.float64)
    return np.where(inside, loss, np.nan), np.where(inside, np.nan, loss)


def lira(
    loss: np.ndarray,
    loss_in: np.ndarray | None,
    loss_out: np.ndarray,
    *,
    scale: Scale = "squared",
    variance: Literal["auto", "own", "shared"] = "auto",
) -> np.ndarray:
    """Return how much likelier each loss is under models that saw the record than under models that did not.

    Unlike the published score, this one never falls as the model grows surer. The published one does where models that
    saw a record vary less: a model that knows its members by heart then passes for one that never saw them.

    Parameters
    ----------
    loss
        (n,) under the attacked model.
    loss_in, loss_out
        (shadows, n) under models that saw the record, and that did not; NaN where a shadow is of the other kind
        (`in_and_out`). ``loss_in`` None: the offline variant, for who has no model that saw the record.
    scale
        See `confidence`.
    variance
        ``own``: every record has its own; ``shared``: one for all records (the pooled one, in and out apart);
        ``auto``: own from `SHADOWS_FOR_OWN_VARIANCE` shadows of each kind on.

    Returns
    -------
    scores
        (n,) online: the logarithm of the likelihood ratio. Offline: by how many standard deviations the record is surer
        than without it; this orders records as the probability of Carlini et al. does, and has no ceiling.
    """
    found, unseen = confidence(loss, scale), confidence(loss_out, scale)
    if loss_in is None:
        out_mean, out_sd = _normal(unseen, _variance(variance, unseen))
        return (found - out_mean) / out_sd
    seen = confidence(loss_in, scale)
    chosen = _variance(variance, seen, unseen)
    (in_mean, in_sd), (out_mean, out_sd) = _normal(seen, chosen), _normal(unseen, chosen)
    in_mean = np.maximum(in_mean, out_mean + LEAST_GAIN * np.sqrt(in_sd * out_sd))
    # The ratio of two normals turns where the wider one takes over, at `turn`; beyond, it stays what it is there.
    with np.errstate(divide="ignore"):
        turn = (in_mean / in_sd**2 - out_mean / out_sd**2) / (in_sd**-2.0 - out_sd**-2.0)
    found = np.where(in_sd < out_sd, np.minimum(found, turn), np.maximum(found, np.where(in_sd > out_sd, turn, found)))

    def log_density(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        return -0.5 * ((found - mean) / sd) ** 2 - np.log(sd)

    return log_density(in_mean, in_sd) - log_density(out_mean, out_sd)


def _variance(asked: str, *values: np.ndarray) -> str:
    """Return ``own`` or ``shared``."""
    if asked not in ("auto", "own", "shared"):
        raise unknown_name("variance", asked, ["auto", "own", "shared"])
    if asked != "auto":
        return asked
    fewest = min(int(np.isfinite(each).sum(axis=0).min()) for each in values)
    return "own" if fewest >= SHADOWS_FOR_OWN_VARIANCE else "shared"


def _normal(values: np.ndarray, variance: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) means and (n,) standard deviations over shadows."""
    shadows = np.isfinite(values).sum(axis=0)
    _need(shadows > 0, "shadow model of each kind")
    mean = np.nanmean(values, axis=0)
    if variance == "own":
        _need(shadows > 1, "second shadow model of each kind")
        sd = np.nanstd(values, axis=0, ddof=1)
    else:
        freedom = np.maximum(shadows - 1, 0).sum()
        if freedom == 0:
            raise InputError("one shadow model of each kind has no variance", fix="train more shadow models")
        sd = np.full(len(mean), np.sqrt(np.nansum((values - mean) ** 2) / freedom))
    return mean, np.maximum(sd, SMALLEST_SD)


def _need(there: np.ndarray, what: str) -> None:
    if not there.all():
        msg = f"{int((~there).sum())} of {len(there)} records have no {what}"
        raise InputError(msg, fix="train more shadow models, or leave those records out")
