"""Predictors fitted in closed form: the yardsticks that every model has to beat, and the head for encryption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from histocrypt.data.load import Spots
from histocrypt.encoders.described import colour_features
from histocrypt.predictors.base import Predictor
from histocrypt.predictors.predictability import predictability

LEAST_SHARE = 0.25
"""A section's standard deviation counts as at least this share of the one within training sections."""
PENALTIES = tuple(float(10.0**power) for power in np.arange(-4, 4.01, 0.5))
"""Penalties tried, per training spot: the same value means the same shrinkage for any number of spots."""
NEIGHBOURS = (3, 5, 10, 20, 40, 80, 160)
"""Values of k that are tried."""


class Fitted(Predictor):
    """A predictor that is fitted without epochs.

    Arrays of the fitted state are named, and are used exactly as they are stored: a predictor rebuilt with the same
    options and `load_state` gives the same predictions bit by bit.
    """

    def __init__(self, *, normalise_by_section: bool = True) -> None:
        self.normalise_by_section = normalise_by_section
        self._state: dict[str, np.ndarray] = {}

    def state(self) -> dict[str, np.ndarray]:
        """Return the fitted arrays by name."""
        return dict(self._state)

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Take fitted arrays from `state`."""
        self._state = {name: np.ascontiguousarray(array) for name, array in state.items()}

    def _fit_scores(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        """Keep mean and standard deviation of the training spots' features; return their z-scores."""
        mean, sd = mean_and_sd(features, sections, by_section=self.normalise_by_section)
        self._state = {"mean": mean, "sd": sd}
        return self._scores(features, sections)

    def _scores(self, features: np.ndarray, sections: np.ndarray) -> np.ndarray:
        mean, sd = self._state["mean"], self._state["sd"]
        return standardise(features, sections, mean, sd, by_section=self.normalise_by_section)


class MeanProfile(Fitted):
    """The mean of each output over the training spots, for every spot: what a constant predictor achieves."""

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Take the mean of each output; there is nothing to choose."""
        self._state = {"mean": train.targets.mean(axis=0, dtype=np.float64).astype(np.float32)}
        return {}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return the training mean for every spot, (n, n_outputs) float32."""
        return np.tile(self._state["mean"], (len(spots), 1))


class DepthOnly(Fitted):
    """Linear regression of each output on ln(1 + total count of the spot): how much of a score is sequencing depth.

    A yardstick for confounding, not a predictor: it reads the total counts of the very spots that it predicts, which no
    image gives. Where it scores as well as a model, that model's score may be tissue density alone.

    The slope is the one within training sections, the same whether targets are centred by section or not.
    ``normalise_by_section`` changes nothing: differences in depth between sections are part of what it measures.
    """

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit one line per output; there is nothing to choose."""
        depth = np.log1p(np.asarray(train.depth, dtype=np.float64))
        targets = np.asarray(train.targets, dtype=np.float64)
        within = np.empty_like(depth)
        for section in np.unique(train.sections):
            rows = train.sections == section
            within[rows] = depth[rows] - depth[rows].mean()
        spread = within @ within
        slope = within @ targets / spread if spread > 1e-12 else np.zeros(targets.shape[1])
        self._state = {
            "slope": slope.astype(np.float32),
            "intercept": (targets.mean(axis=0) - depth.mean() * slope).astype(np.float32),
        }
        return {}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32 from the spots' own total counts."""
        depth = np.log1p(np.asarray(spots.depth, dtype=np.float32))
        return depth[:, None] * self._state["slope"] + self._state["intercept"]


class Ridge(Fitted):
    """Ridge regression on what `_fit_inputs` and `_inputs` make of spots; the penalty by inner cross-validation."""

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit; chooses ``penalty``."""
        inputs, folds = self._fit_inputs(train), inner_folds(train)
        penalty = (chosen or {}).get("penalty")
        coefficient, intercept, penalty = fit_ridge(inputs, train.targets, folds, penalty=penalty)
        self._state |= {"coefficient": coefficient, "intercept": intercept}

        def without(known: np.ndarray, held_out: np.ndarray) -> np.ndarray:
            (b,), (a,) = ridge(inputs[known], train.targets[known], [penalty])
            return inputs[held_out] @ b + a

        self.predictability = predictability(train, folds, without)
        return {"penalty": penalty}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32."""
        return self._inputs(spots) @ self._state["coefficient"] + self._state["intercept"]


class ColourRidge(Ridge):
    """Ridge regression on `colour_features`: what the colours of a tile tell, without any shape or texture.

    Where colour shifts between centres or patients, it shows how far colour leads.
    """

    def _fit_inputs(self, train: Spots) -> np.ndarray:
        return self._fit_scores(colour_features(train.tiles), train.sections)

    def _inputs(self, spots: Spots) -> np.ndarray:
        return self._scores(colour_features(spots.tiles), spots.sections)


class OnEncoder(Fitted):
    """What predictors on frozen features share: the encoder, standardisation, principal components."""

    def __init__(
        self,
        *,
        encoder: str = "efficientnet_lite0",  # name in encoders.ENCODERS
        components: int = 256,  # principal components kept, at most
        normalise_by_section: bool = True,
    ) -> None:
        super().__init__(normalise_by_section=normalise_by_section)
        self.encoder, self.components = encoder, components

    def _fit_inputs(self, train: Spots) -> np.ndarray:
        """Fit standardisation and components, without labels; return the training spots' (n, k) components."""
        scores = self._fit_scores(train.features(self.encoder), train.sections)
        pca = principal_components(scores, self.components)
        self._state |= {
            "centre": pca.mean_.astype(np.float32),
            "axes": np.ascontiguousarray(pca.components_.T, dtype=np.float32),
        }
        return self._projected(scores)

    def _inputs(self, spots: Spots) -> np.ndarray:
        return self._projected(self._scores(spots.features(self.encoder), spots.sections))

    def _projected(self, scores: np.ndarray) -> np.ndarray:
        return (scores - self._state["centre"]) @ self._state["axes"]


class EncoderRidge(OnEncoder, Ridge):
    """Ridge regression on principal components of frozen features: the baseline that is hard to beat.

    The recipe of HEST-Benchmark (Jaume et al. 2024), but for the penalty, which is chosen by patient, not fixed.
    """


class FheHead(EncoderRidge):
    """Frozen-encoder ridge for encrypted evaluation: one level, several spots in a ciphertext.

    The features come from a public encoder, so the key owner can compute them in the clear on its own machine; what the
    model's owner keeps to itself is the head.
    """

    def __init__(
        self, *, encoder: str = "efficientnet_lite0_128", components: int = 256, normalise_by_section: bool = True
    ) -> None:
        super().__init__(encoder=encoder, components=components, normalise_by_section=normalise_by_section)


class NearestNeighbours(OnEncoder):
    """Mean target of the k nearest training spots (Euclidean, principal components of frozen features).

    Its state holds the targets of the training spots themselves: whoever has the model file has them, too.
    """

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit; chooses ``neighbours`` by inner cross-validation by patient or section."""
        components, folds = self._fit_inputs(train), inner_folds(train)
        k = (chosen or {}).get("neighbours") or choose_neighbours(components, train.targets, folds)
        self._state |= {
            "components": components,
            "targets": np.asarray(train.targets, dtype=np.float32),
            "neighbours": np.array([min(k, len(train))]),
        }

        def without(known: np.ndarray, held_out: np.ndarray) -> np.ndarray:
            nearest = _nearest(components[known], components[held_out], min(k, len(known)))
            return train.targets[known][nearest].mean(axis=1, dtype=np.float64)

        self.predictability = predictability(train, folds, without)
        return {"neighbours": int(k)}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32."""
        state, k = self._state, int(self._state["neighbours"][0])
        nearest = _nearest(state["components"], self._inputs(spots), k)
        return state["targets"][nearest].mean(axis=1, dtype=np.float64).astype(np.float32)


def mean_and_sd(features: np.ndarray, sections: np.ndarray, *, by_section: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the (d,) float32 mean and standard deviation of training features, for `standardise`.

    With ``by_section`` the deviation is the one within sections, averaged over them.
    """
    values = np.asarray(features, dtype=np.float64)
    if by_section:
        variances = [values[sections == section].var(axis=0) for section in np.unique(sections)]
        sd = np.sqrt(np.mean(variances, axis=0))
    else:
        sd = values.std(axis=0)
    return values.mean(axis=0).astype(np.float32), np.where(sd > 1e-6, sd, 1.0).astype(np.float32)


def standardise(
    features: np.ndarray, sections: np.ndarray, mean: np.ndarray, sd: np.ndarray, *, by_section: bool
) -> np.ndarray:
    """Return float32 z-scores of features, of their shape.

    Parameters
    ----------
    features
        (n, d), or (n, V, d) of several views of each spot, of which the first is the spot itself.
    sections
        (n,) section of each spot.
    mean, sd
        (d,), of the training spots: see `mean_and_sd`.
    by_section
        Whether each section is standardised with the mean and deviation of its own spots, which takes away what
        differs between centres and scanners and uses no label. A deviation below a quarter of the usual one is raised
        to it, so that a uniform section (or a section of one spot, which becomes zero) is not blown up.
    """
    if not by_section:
        return ((features - mean) / sd).astype(np.float32)
    scores = np.empty(features.shape, dtype=np.float32)
    for section in np.unique(sections):
        rows = sections == section
        own = features[rows].astype(np.float64)
        upright = own if own.ndim == 2 else own[:, 0]
        scores[rows] = (own - upright.mean(axis=0)) / np.maximum(upright.std(axis=0), LEAST_SHARE * sd)
    return scores


def inner_folds(spots: Spots, n: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (train, held out) index pairs for the choice of a hyper-parameter.

    Whole patients are held out; whole sections where there is one patient; runs of neighbouring spots (in the order of
    the file) where there is one section.
    """
    from sklearn.model_selection import GroupKFold, KFold

    for groups in (spots.patients, spots.sections):
        distinct = len(np.unique(groups))
        if distinct >= 2:
            return list(GroupKFold(n_splits=min(n, distinct)).split(groups, groups=groups))
    return list(KFold(n_splits=min(n, len(spots))).split(spots.names)) if len(spots) > 1 else []


def ridge(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Fit ridge regression for several penalties with one singular value decomposition.

    Minimises, with an intercept that is not penalised, ``|y - x b - a|^2 + n * penalty * |b|^2``: scikit-learn's
    ``Ridge(alpha=n * penalty)`` (Hoerl and Kennard, Technometrics 1970).

    Parameters
    ----------
    x
        (n, d) features.
    y
        (n, q) outputs.
    penalties
        p penalties.

    Returns
    -------
    coefficients
        (p, d, q) float64.
    intercepts
        (p, q) float64.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    u, s, vt = np.linalg.svd(x - x_mean, full_matrices=False)
    uy = u.T @ (y - y_mean)
    coefficients = np.empty((len(penalties), x.shape[1], y.shape[1]))
    for i, penalty in enumerate(penalties):
        shrunk = np.divide(s, s**2 + len(x) * penalty, out=np.zeros_like(s), where=s > 0)
        coefficients[i] = vt.T @ (shrunk[:, None] * uy)
    return coefficients, y_mean - x_mean @ coefficients


def choose_penalty(
    x: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], penalties: Sequence[float] = PENALTIES
) -> tuple[float, np.ndarray]:
    """Choose one penalty for all outputs by cross-validation.

    Parameters
    ----------
    x
        (n, d) features.
    y
        (n, q) outputs; each counts by its share of variance explained, whatever its scale.
    folds
        (train, held out) index pairs; see `inner_folds`.
    penalties
        Penalties to choose among.

    Returns
    -------
    penalty
        The one with the least error; the strongest of equals.
    errors
        (p,) mean squared error relative to each output's variance; empty where there are no folds.
    """
    if not folds:
        return float(max(penalties)), np.empty(0)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    sd = y.std(axis=0)
    scaled = y / np.where(sd > 1e-8, sd, 1.0)
    errors = np.zeros(len(penalties))
    for train, held_out in folds:
        coefficients, intercepts = ridge(x[train], scaled[train], penalties)
        for i in range(len(penalties)):
            errors[i] += np.square(scaled[held_out] - (x[held_out] @ coefficients[i] + intercepts[i])).sum()
    errors /= y.size
    best = max(np.flatnonzero(errors == errors.min()), key=lambda i: penalties[i])
    return float(penalties[best]), errors


def fit_ridge(
    x: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], *, penalty: float | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit at the given penalty, or at the one that cross-validation chooses.

    Returns
    -------
    coefficient
        (d, q) float32.
    intercept
        (q,) float32.
    penalty
        The penalty used.
    """
    if penalty is None:
        penalty, _ = choose_penalty(x, y, folds)
    coefficients, intercepts = ridge(x, y, [penalty])
    return coefficients[0].astype(np.float32), intercepts[0].astype(np.float32), penalty


def choose_neighbours(x: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """Choose one number of neighbours for all outputs by cross-validation, as `choose_penalty` does."""
    least = min((len(known) for known, _ in folds), default=0)
    tried = [k for k in NEIGHBOURS if k <= least]
    if not tried:
        return max(1, least)
    targets = np.asarray(y, dtype=np.float64)
    sd = targets.std(axis=0)
    scaled = targets / np.where(sd > 1e-8, sd, 1.0)
    errors = np.zeros(len(tried))
    for known, held_out in folds:
        nearest = known[_nearest(x[known], x[held_out], tried[-1])]
        total, done = np.zeros((len(held_out), targets.shape[1])), 0
        for i, k in enumerate(tried):
            total += scaled[nearest[:, done:k]].sum(axis=1)
            done = k
            errors[i] += np.square(scaled[held_out] - total / k).sum()
    return tried[int(np.argmin(errors))]


def _nearest(known: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(known).kneighbors(asked, return_distance=False)


def principal_components(scores: np.ndarray, most: int) -> Any:
    """Return scikit-learn's PCA of (n, d) scores, with ``most`` components or as many as there can be."""
    from sklearn.decomposition import PCA

    kept = min(most, len(scores) - 1, scores.shape[1])
    # Exact solvers only: the randomised one would make the result depend on more than the data.
    solver = "covariance_eigh" if len(scores) > scores.shape[1] else "full"
    return PCA(n_components=max(kept, 1), svd_solver=solver).fit(scores.astype(np.float64))
