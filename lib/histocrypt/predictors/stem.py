"""Stem behind the interface of all predictors: a distribution of expression for every spot, and its mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histocrypt.data.load import Spots
from histocrypt.models.stem import Stem
from histocrypt.predictors import stem_diffusion
from histocrypt.predictors.closed_form import mean_and_sd, principal_components, standardise
from histocrypt.predictors.network import NetworkPredictor
from histocrypt.predictors.start import Start, start_from, state_of
from histocrypt.training import distributed

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.targets.transforms import TargetStatistics

DRAWING = {"samples", "sampler", "sampler_steps", "opposite", "mean"}
"""Options of drawing, on which weights do not depend."""
QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
"""Layers of a prediction file, of the main transform, beside ``sd``."""


class DiffusionPredictor(NetworkPredictor):
    """A conditional diffusion model on frozen features. See `StemOptions`.

    What is diffused is the rest beside a closed form on the same features (`predictors.start`): its prediction is added
    to every draw. Where one noisy section decides when to stop, the network says how far spots spread, and next to
    nothing of where they lie that holds for another patient: so draws lie about that prediction unless ``mean`` says
    otherwise. ``outputs`` are named transform by transform. Tiles are seen through frozen features, so that
    ``input_px`` and the random changes of images do not count.
    """

    def __init__(self, model: str, outputs: tuple[str, ...], **given: Any) -> None:
        super().__init__(model, outputs, **given)
        named = [name.split(":", 1) for name in self.outputs]
        self.transforms = list(dict.fromkeys(transform for transform, _ in named))
        self.panel = [gene for transform, gene in named if transform == self.transforms[0]]
        self._state: dict[str, np.ndarray] = {}
        self.n_features = 0
        self.seed = 0
        self.base: Start | None = None
        """What is added to every draw."""
        self._drawn: dict[str, np.ndarray] = {}
        """What was drawn for each spot, by name: (1 + quantiles, outputs): sd and quantiles in the loss's units."""

    @property
    def sees_tiles(self) -> bool:
        """It reads frozen features."""
        return False

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train; return what was chosen: ``{"epochs": n}``, by early stopping where there is a validation part."""
        self.seed = seed
        return super().fit(train, validation, seed=seed, chosen=chosen)

    _train = staticmethod(stem_diffusion.train)

    def _lessons(
        self, train: Spots, validation: Spots | None
    ) -> tuple[stem_diffusion.Lesson, stem_diffusion.Lesson | None]:
        self.base = None
        if self.plan.start != "none":
            self.base = Start(self.plan.encoder, normalise_by_section=self.settings.normalise_by_section)
            self.base.fit(train)
        features = train.features(self._views)
        self._fit_features(features[:, 0], train.sections)
        data = self._lesson(train, features)
        self.n_features = data.features.shape[-1]
        if validation is None:
            return data, None
        return data, self._lesson(validation, validation.features(self.plan.encoder)[:, None])

    @property
    def _views(self) -> str:
        return f"{self.plan.encoder}@{self.plan.augmentations + 1}"

    def warm(self, *parts: Spots | None) -> None:
        """Compute the features of these spots in every view."""
        for part in filter(None, parts):
            part.features(self._views)

    def predict(self, spots: Spots) -> np.ndarray:
        """Return the mean of the samples, (n, len(outputs)) float32; sd and quantiles are kept for `add_layers`.

        Where features are normalised by section, the statistics are those of the spots given: give whole sections.
        """
        if distributed.number():
            return np.zeros((len(spots), len(self.outputs)), dtype=np.float32)  # the first process draws for all
        mean = np.empty((len(spots), len(self.outputs)), dtype=np.float32)
        for rows, drawn in self._samples(spots):
            flat = drawn.transpose(0, 1, 3, 2).reshape(len(drawn), self.plan.samples, -1)  # (s, K, T G)
            mean[rows] = flat.mean(axis=1)
            spread = np.concatenate(
                [flat.std(axis=1, ddof=1)[None], np.quantile(flat, list(QUANTILES.values()), axis=1)]
            )
            for i, name in enumerate(spots.names[rows].tolist()):
                self._drawn[name] = spread[:, i].astype(np.float32)
        return mean

    def samples(self, spots: Spots) -> np.ndarray:
        """Return the samples themselves, of the main transform and in the loss's units: (n, K, genes) float32."""
        return np.concatenate([drawn[..., 0] for _, drawn in self._samples(spots)])

    def add_layers(self, adata: AnnData, scaling: TargetStatistics) -> None:
        """Add ``sd`` and quantiles of the main transform to a prediction, by the names of its spots and genes.

        Counts are never negative, and what is drawn may be: quantiles below zero become zero.
        """
        from histocrypt.targets.transforms import TRANSFORMS

        main = self.transforms[0]
        columns = [self.outputs.index(f"{main}:{gene}") for gene in adata.var_names]
        found = np.stack([self._drawn[name] for name in adata.obs_names])  # (n, 1 + quantiles, outputs)
        adata.layers["sd"] = (found[:, 0] * scaling.sd)[:, columns].astype(np.float32)
        for number, name in enumerate(QUANTILES, start=1):
            values = scaling.restore(found[:, number])[:, columns]
            adata.layers[name] = np.maximum(values, 0) if main in TRANSFORMS else values
        adata.uns["prediction"]["samples"] = self.plan.samples
        adata.uns["prediction"]["sampler"] = f"{self.plan.sampler} {self.plan.sampler_steps}"

    def _besides(self) -> dict[str, Any]:
        return {**self._state, "seed": self.seed, **state_of(self.base)}

    def _take(self, state: dict[str, Any]) -> None:
        self.seed = int(state["seed"])
        self._state = {key: np.asarray(state[key]) for key in ("mean", "sd", "centre", "axes") if key in state}
        self.n_features = state["network.tile.0.weight"].shape[1]
        by_section = self.settings.normalise_by_section
        self.base = start_from(state, self.plan.encoder, normalise_by_section=by_section)

    def _new_network(self) -> Stem:
        size = {"width": self.plan.width, "blocks": self.plan.blocks, "heads": self.plan.heads}
        try:
            return Stem(len(self.panel), n_features=self.n_features, n_values=len(self.transforms), **size)
        except ValueError as error:
            raise self._refused(error) from error

    def _learnt(self) -> dict[str, Any]:
        return self.plan.model_dump(mode="json", exclude=DRAWING)

    def _samples(self, spots: Spots) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield row slices and the (s, K, G, T) samples of their spots."""
        from tqdm.auto import tqdm

        if self.network is None:
            raise RuntimeError("fit or load_state comes before predict")
        network = self.network.to(self.device).eval()
        features = self._conditions(spots.features(self.plan.encoder)[:, None], spots.sections)[:, 0]
        started = self.started(spots)
        with tqdm(total=len(spots), desc=f"{self.model} draws", unit="spot", mininterval=1, leave=False) as bar:
            for start in range(0, len(spots), 512):
                rows = slice(start, min(start + 512, len(spots)))
                drawn = stem_diffusion.draw(
                    network,
                    features[rows],
                    spots.names[rows],
                    samples=self.plan.samples,
                    sampler=self.plan.sampler,
                    steps=self.plan.sampler_steps,
                    opposite=self.plan.opposite,
                    seed=self.seed,
                    device=self.device,
                    progress=bar.update,
                )
                if self.base is not None and self.plan.mean == "start":
                    drawn -= drawn.mean(axis=1, keepdims=True)
                yield rows, drawn + started[rows, None]

    def started(self, spots: Spots) -> np.ndarray:
        """Return what is added to every draw, (n, G, T) float32; zero where all of expression is drawn."""
        if self.base is None:
            return np.zeros((len(spots), len(self.panel), len(self.transforms)), dtype=np.float32)
        return self._by_gene(self.base.predict(spots))

    def _by_gene(self, values: np.ndarray) -> np.ndarray:
        """Return (n, outputs) as (n, G, T) float32."""
        by_transform = np.asarray(values, dtype=np.float32).reshape(len(values), len(self.transforms), len(self.panel))
        return np.ascontiguousarray(by_transform.transpose(0, 2, 1))

    def _fit_features(self, features: np.ndarray, sections: np.ndarray) -> None:
        """Fit standardisation and components to the training spots' (n, d) features."""
        mean, sd = mean_and_sd(features, sections, by_section=self.settings.normalise_by_section)
        self._state = {"mean": mean, "sd": sd}
        if self.plan.components:
            scores = self._conditions(features[:, None], sections)[:, 0].numpy()
            pca = principal_components(scores, self.plan.components)
            # Scaled by one number, so that the network sees values of about 1 whose order of size is kept.
            scale = np.sqrt(pca.explained_variance_.mean())
            self._state |= {
                "centre": pca.mean_.astype(np.float32),
                "axes": np.ascontiguousarray(pca.components_.T / scale, dtype=np.float32),
            }

    def _conditions(self, features: np.ndarray, sections: np.ndarray) -> torch.Tensor:
        """Return what conditions the network, (n, V, D), of features (n, V, d) whose first view is the tile itself."""
        state, by_section = self._state, self.settings.normalise_by_section
        scores = standardise(features, sections, state["mean"], state["sd"], by_section=by_section)
        if "axes" in state:
            scores = (scores - state["centre"]) @ state["axes"]
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))

    def _lesson(self, spots: Spots, features: np.ndarray) -> stem_diffusion.Lesson:
        values = torch.from_numpy(self._by_gene(spots.targets) - self.started(spots))
        return stem_diffusion.Lesson(spots.names, self._conditions(features, spots.sections), values)
