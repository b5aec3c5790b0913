"""Frozen-encoder ridge: principal components of frozen features, then ridge. The baseline that is hard to beat.

The recipe of HEST-Benchmark (Jaume et al. 2024): PCA to 256 components and ridge regression on features of a frozen
encoder; here the penalty is chosen by inner cross-validation by patient instead of being fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from histocrypt.errors import InputError
from histocrypt.models.fitted import Fitted, inner_folds, mean_and_sd, standardise
from histocrypt.models.ridge import fit_ridge
from histocrypt.models.spots import Spots


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
        if not isinstance(components, int) or components < 1:
            msg = "is not a number of principal components"
            raise InputError(msg, field="components", value=components, expected="a whole number from 1")
        self.encoder = encoder
        self.components = components

    @property
    def config(self) -> dict[str, Any]:
        """Constructor options, JSON-able."""
        return {**super().config, "encoder": self.encoder, "components": self.components}

    def _fit_components(self, train: Spots) -> np.ndarray:
        """Fit standardisation and components into the state; return the training spots' (n, k) components."""
        from sklearn.decomposition import PCA

        features = train.features(self.encoder)
        mean, sd = mean_and_sd(features, train.sections, by_section=self.normalise_by_section)
        scores = standardise(features, train.sections, mean, sd, by_section=self.normalise_by_section)
        kept = min(self.components, len(train) - 1, scores.shape[1])
        # Exact solvers only: the randomised one would make the result depend on more than the data.
        solver = "covariance_eigh" if len(scores) > scores.shape[1] else "full"
        pca = PCA(n_components=max(kept, 1), svd_solver=solver).fit(scores.astype(np.float64))
        self._state = {
            "mean": mean,
            "sd": sd,
            "centre": pca.mean_.astype(np.float32),
            "axes": np.ascontiguousarray(pca.components_.T, dtype=np.float32),
        }
        return self._project(scores)

    def _project(self, scores: np.ndarray) -> np.ndarray:
        return (scores - self._state["centre"]) @ self._state["axes"]

    def _components(self, spots: Spots) -> np.ndarray:
        state = self._state
        features = spots.features(self.encoder)
        scores = standardise(features, spots.sections, state["mean"], state["sd"], by_section=self.normalise_by_section)
        return self._project(scores)


class EncoderRidge(OnEncoder):
    """Ridge regression on principal components of frozen features; one penalty, chosen by inner cross-validation."""

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int = 0, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Fit; chooses ``penalty``. Components are found without labels, once, on all training spots."""
        components = self._fit_components(train)
        coefficient, intercept, penalty = fit_ridge(
            components, train.targets, inner_folds(train), penalty=(chosen or {}).get("penalty")
        )
        self._state |= {"coefficient": coefficient, "intercept": intercept}
        return {"penalty": penalty}

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, n_outputs) float32."""
        return self._components(spots) @ self._state["coefficient"] + self._state["intercept"]
