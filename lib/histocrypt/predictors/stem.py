"""The options of a diffusion model: what conditions it, how large it is, how it draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histocrypt.data.spots import Spots
from histocrypt.errors import InputError, unknown_name
from histocrypt.machine import choose_device
from histocrypt.models.stem import Stem
from histocrypt.options import Training
from histocrypt.predictors import stem_diffusion
from histocrypt.predictors.closed_form import LEAST_SHARE, mean_and_sd
from histocrypt.predictors.stem_diffusion import draw
from histocrypt.training import distributed
from histocrypt.training.loop import generator_of

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.targets.transforms import TargetStatistics

# ---- diffusion plan


SAMPLERS = ("ancestral", "ddim", "dpm++")
"""See `training.diffusion_sampling`."""


@dataclass(frozen=True)
class DiffusionPlan:
    """Options that a study may set; the published ones where nothing else is said."""

    encoder: str = "efficientnet_lite0"
    """Frozen encoder, or several: ``uni+conch``, ``prepared:<folder>#uni`` (see `training.conditions`)."""
    augmentations: int = 7
    """Turned and mirrored copies of each tile, 0 to 7; every epoch draws one of them, or the tile itself."""
    components: int = 0
    """Principal components of the features that condition the network; 0: all features, as published."""
    width: int = 384
    blocks: int = 12
    heads: int = 6
    samples: int = 20
    """Drawn for each spot."""
    sampler: str = "dpm++"
    sampler_steps: int = 10
    """Of 1000; ``ancestral`` is meant to take all of them. Ten of ``dpm++`` are the fastest whose scores lie within the
    ancestral sampler's own spread from seed to seed (benchmarks/stem_samplers.py)."""

    def __post_init__(self) -> None:
        """Check what types and names cannot tell."""
        if self.sampler not in SAMPLERS:
            raise unknown_name("sampler", self.sampler, SAMPLERS, field="models.stem.sampler")
        least = {"augmentations": 0, "components": 0, "samples": 2}
        for name in ("augmentations", "components", "width", "blocks", "heads", "samples", "sampler_steps"):
            value, low = getattr(self, name), least.get(name, 1)
            high = {"augmentations": 7, "sampler_steps": 1000}.get(name, 10**6)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                msg = "is out of range"
                expected = f"a whole number, {low} to {high}"
                raise InputError(msg, field=f"models.stem.{name}", value=value, expected=expected)

    @classmethod
    def of(cls, options: dict[str, Any]) -> DiffusionPlan:
        """Return the plan of a study's options; an unknown one is an `InputError`."""
        known = [one.name for one in fields(cls)]
        for name in options:
            if name not in known:
                raise unknown_name("option", name, known, field="models.stem")
        return cls(**options)


# ---- diffusion predictor
# Stem behind the interface of all predictors: a distribution of expression for every spot, and its mean.


QUANTILES = {"q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95}
"""Layers of a prediction file, of the main transform, beside ``sd``."""


class DiffusionPredictor:
    """A conditional diffusion model on frozen features. See `DiffusionPlan` for its options.

    Parameters
    ----------
    model
        Name in the registry.
    outputs
        Names of the predicted columns, transform by transform.
    settings
        Training settings; tiles are seen through frozen features, so that ``input_px`` and the random changes of images
        do not count.
    options
        Those of `DiffusionPlan`.
    device
        None: the best one present.
    folder
        Where ``curves.csv`` and, while training, ``last/`` are written; None writes nothing.
    """

    def __init__(
        self,
        model: str,
        outputs: tuple[str, ...],
        *,
        settings: Training,
        options: dict[str, Any] | None = None,
        device: str | torch.device | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.outputs, self.settings, self.options = model, tuple(outputs), settings, dict(options or {})
        self.plan = DiffusionPlan.of(self.options)
        self.device = choose_device() if device is None else torch.device(device)
        self.folder = folder
        named = [name.split(":", 1) for name in self.outputs]
        self.transforms = list(dict.fromkeys(transform for transform, _ in named))
        self.genes = [gene for transform, gene in named if transform == self.transforms[0]]
        self.network: Stem | None = None
        self._state: dict[str, np.ndarray] = {}
        self.seed = 0
        self._drawn: dict[str, np.ndarray] = {}
        """What was drawn for each spot, by name: (1 + quantiles, outputs): sd and quantiles in the loss's units."""

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train; return what was chosen: ``{"epochs": n}``, by early stopping where there is a validation part."""
        stage = "refit" if validation is None else "fit"
        epochs = self.settings.epochs
        if validation is None and chosen:
            epochs = max(1, round(chosen["epochs"]))
        self.seed = seed
        views = f"@{self.plan.augmentations + 1}"
        features = train.features(self.plan.encoder + views)
        self._fit_features(features[:, 0], train.sections)
        data = self._lesson(train, features)
        judged = None
        if validation is not None:
            judged = self._lesson(validation, validation.features(self.plan.encoder)[:, None])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_of(seed, 0).initial_seed())
            self.network = self._new_network(data.features.shape[-1])
        curves = None if self.folder is None else self.folder / "curves.csv"
        if curves is not None and stage == "refit" and curves.is_file():
            curves = curves.with_name("curves_refit.csv")  # those of the fit say more
        progress = stem_diffusion.train(
            self.network,
            data,
            judged,
            settings=self.settings,
            epochs=epochs,
            seed=seed,
            device=self.device,
            fingerprint=self._fingerprint(stage, epochs, seed, data, judged),
            state_file=self.folder and self.folder / "last" / f"{stage}.safetensors",
            curves_file=curves,
            label=" ".join(filter(None, (self.model, self.folder and self.folder.name, stage))),
        )
        return {"epochs": progress.best_epoch}

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

    def state(self) -> dict[str, Any]:
        """Return all that `predict` needs: named arrays, and the seed of the noise."""
        weights = {f"network.{key}": value.detach().cpu().numpy() for key, value in self.network.state_dict().items()}
        return {**weights, **self._state, "seed": self.seed}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` gave; names or shapes that do not fit are an `InputError`."""
        weights = {
            key.removeprefix("network."): torch.tensor(value)
            for key, value in state.items()
            if key.startswith("network.")
        }
        try:
            self.seed = int(state["seed"])
            self._state = {key: np.asarray(state[key]) for key in ("mean", "sd", "centre", "axes") if key in state}
            network = self._new_network(weights["tile.0.weight"].shape[1])
            network.load_state_dict(weights)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise InputError(
                f"the weights do not fit {self.model} ({' '.join(str(error).split())[:300]})",
                fix="train the model again",
            ) from error
        self.network = network.eval()

    def _new_network(self, n_features: int) -> Stem:
        size = {"width": self.plan.width, "blocks": self.plan.blocks, "heads": self.plan.heads}
        try:
            return Stem(len(self.genes), n_features=n_features, n_values=len(self.transforms), **size)
        except ValueError as error:
            raise InputError(f"the network refuses its options ({error})", field=f"models.{self.model}") from error

    def _samples(self, spots: Spots) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield row slices and the (s, K, G, T) samples of their spots."""
        from tqdm.auto import tqdm

        if self.network is None:
            raise RuntimeError("fit or load_state comes before predict")
        network = self.network.to(self.device).eval()
        features = self._conditions(spots.features(self.plan.encoder)[:, None], spots.sections)[:, 0]
        with tqdm(total=len(spots), desc=f"{self.model} draws", unit="spot", mininterval=1, leave=False) as bar:
            for start in range(0, len(spots), 512):
                rows = slice(start, min(start + 512, len(spots)))
                yield (
                    rows,
                    draw(
                        network,
                        features[rows],
                        spots.names[rows],
                        samples=self.plan.samples,
                        sampler=self.plan.sampler,
                        steps=self.plan.sampler_steps,
                        seed=self.seed,
                        device=self.device,
                        progress=bar.update,
                    ),
                )

    def _fit_features(self, features: np.ndarray, sections: np.ndarray) -> None:
        """Fit standardisation and components to the training spots' (n, d) features."""
        mean, sd = mean_and_sd(features, sections, by_section=self.settings.normalise_by_section)
        self._state = {"mean": mean, "sd": sd}
        if self.plan.components:
            from sklearn.decomposition import PCA

            scores = self._conditions(features[:, None], sections)[:, 0].double().numpy()
            kept = min(self.plan.components, len(scores) - 1, scores.shape[1])
            solver = "covariance_eigh" if len(scores) > scores.shape[1] else "full"  # exact ones only
            pca = PCA(n_components=max(kept, 1), svd_solver=solver).fit(scores)
            # Scaled by one number, so that the network sees values of about 1 whose order of size is kept.
            scale = np.sqrt(pca.explained_variance_.mean())
            self._state |= {
                "centre": pca.mean_.astype(np.float32),
                "axes": np.ascontiguousarray(pca.components_.T / scale, dtype=np.float32),
            }

    def _conditions(self, features: np.ndarray, sections: np.ndarray) -> torch.Tensor:
        """Return what conditions the network, (n, V, D), of features (n, V, d) whose first view is the tile itself."""
        state, scores = self._state, np.empty(features.shape, dtype=np.float32)
        if self.settings.normalise_by_section:
            for section in np.unique(sections):
                rows = sections == section
                own = features[rows, 0].astype(np.float64)
                spread = np.maximum(own.std(axis=0), LEAST_SHARE * state["sd"])
                scores[rows] = (features[rows] - own.mean(axis=0)) / spread
        else:
            scores = ((features - state["mean"]) / state["sd"]).astype(np.float32)
        if "axes" in state:
            scores = (scores - state["centre"]) @ state["axes"]
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))

    def _lesson(self, spots: Spots, features: np.ndarray) -> stem_diffusion.Lesson:
        values = np.asarray(spots.targets, dtype=np.float32).reshape(len(spots), len(self.transforms), len(self.genes))
        values = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 2, 1)))  # (n, G, T)
        return stem_diffusion.Lesson(spots.names, self._conditions(features, spots.sections), values)

    def _fingerprint(
        self, stage: str, epochs: int, seed: int, train: stem_diffusion.Lesson, validation: stem_diffusion.Lesson | None
    ) -> str:
        """Hash whatever the weights depend on: settings, seed and the very data; not the number of processes."""
        drawing = ("samples", "sampler", "sampler_steps")
        learnt = {key: value for key, value in vars(self.plan).items() if key not in drawing}
        facts = [stage, epochs, seed, self.model, learnt, self.settings.model_dump(), self.outputs, self.device.type]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for lesson in (train, validation):
            if lesson is not None:
                digest.update("\n".join(lesson.names.tolist()).encode())
                for part in (lesson.features, lesson.values):
                    digest.update(np.ascontiguousarray(part.numpy()).data)
        return digest.hexdigest()
