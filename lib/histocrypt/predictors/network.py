"""Networks behind the interface of all predictors: trained on images, predicting from images."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histocrypt.data.features import PLACES
from histocrypt.data.load import Spots, room
from histocrypt.errors import InputError
from histocrypt.machine import choose_device
from histocrypt.models.fhe import set_share, watched
from histocrypt.options import Training
from histocrypt.predictors.base import Predictor
from histocrypt.predictors.registry import checked_options, model_class
from histocrypt.spatial import surroundings
from histocrypt.training.images import Images, flip_and_turn, predict, vary_contrast, vary_stain
from histocrypt.training.loop import Progress, Trainer, generator_of, mean_section_pearson, precision

CHUNK = 256
"""Tiles that are resized or predicted at once."""
SETTLED_AT_ONCE = 64
"""Tiles in a batch of `settle`."""
BOUND = 20.0
"""Standard deviations from the training mean that no prediction reaches; a network of squares may."""


def resized(tiles: np.ndarray, side: int) -> torch.Tensor:
    """Return tiles (n, S, S, 3) uint8 as (n, 3, side, side) uint8, bilinear with antialiasing; chunk by chunk.

    Many of them lie in a file that is mapped into memory, as the tiles themselves do: see `data.load.room`.
    """
    images = torch.from_numpy(room((len(tiles), 3, side, side)))
    for start in range(0, len(tiles), CHUNK):
        chunk = torch.tensor(np.ascontiguousarray(tiles[start : start + CHUNK])).permute(0, 3, 1, 2)
        if chunk.shape[-1] != side:
            chunk = torch.nn.functional.interpolate(chunk.float(), side, mode="bilinear", antialias=True)
            chunk = chunk.round_().clamp_(0, 255).to(torch.uint8)
        images[start : start + CHUNK] = chunk
    return images


def smoothed(predicted: np.ndarray, spots: Spots, um: float) -> np.ndarray:
    """Return (n, k) predictions, half each spot's own and half the mean of those around it in its section.

    Expression changes little from spot to spot, and what a network makes of a tile changes more. A spot that has none
    around it keeps its own.
    """
    places, around = spots.features(PLACES), np.empty_like(predicted)
    for section in np.unique(spots.sections):
        own = spots.sections == section
        around[own] = surroundings(places[own], um) @ predicted[own]
    return (predicted + around) / 2


def train_network(
    network: torch.nn.Module,
    data: Images,
    validation: Images | None,
    *,
    settings: Training,
    device: torch.device,
    **how: Any,
) -> Progress:
    """Train a network on images and leave it with its averaged weights at the best epoch.

    With a validation set, training stops when the score has not improved for ``settings.patience`` epochs. Without one,
    it runs for exactly ``epochs``, along the same schedule, and the last epoch is the best.

    Parameters
    ----------
    network
        Maps (B, 3, S, S) to (B, k). It is moved to ``device`` and changed.
    data, validation
        With targets.
    settings
        The schedule always spans ``settings.epochs``.
    how
        ``epochs``, ``seed``, and what else a `Trainer` is told.

    Raises
    ------
    InputError
        If there are fewer than two spots, or training diverges.
    """
    if len(data) < 2:
        raise InputError("a network cannot be trained on fewer than two spots", value=len(data))
    network.to(device)
    n_batches = max(1, round(len(data) / settings.batch_size))
    moving = round(settings.replace_over * settings.epochs)  # epochs until all activations are squares

    def batches(epoch: int, chance: torch.Generator) -> list[np.ndarray]:
        for each in (network, trainer.judged):
            set_share(each, min(1.0, epoch / (moving + 1)))
        return data.batches(torch.randperm(len(data), generator=chance).numpy(), n_batches)

    def loss(index: np.ndarray, chance: torch.Generator) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        def change(images: torch.Tensor) -> torch.Tensor:
            if settings.augment_flips:
                images = flip_and_turn(images, chance)
            return vary_stain(images, settings.augment_stain, chance) if settings.augment_stain else images

        images = data.batch(index, device, change)
        if settings.augment_contrast:
            images = vary_contrast(images, settings.augment_contrast, chance)
        with precision(device), watched(network) as ranges:
            plain = data.loss(network, images, index)
        return (plain + settings.range_penalty * sum(ranges.excess), plain) if ranges.excess else plain

    def judge(judged: torch.nn.Module) -> tuple[float | None, dict[str, float | None]]:
        if getattr(judged, "settled", False):
            settle(judged, data, device)
        if validation is None:
            return None, {}
        predicted, measured = predict(judged, validation, device), validation.targets.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            error = float(np.mean((predicted - measured) ** 2, dtype=np.float64))
            score = mean_section_pearson(predicted, measured, validation.sections)
        if not (math.isfinite(error) and math.isfinite(score)):  # predictions without bound
            return None, {}
        return score, {"validation_loss": error, "validation_pcc": score}

    trainer = Trainer.of(
        network,
        settings,
        steps=n_batches,
        validated=validation is not None,
        device=device,
        batches=batches,
        loss=loss,
        size=len,
        judge=judge,
        warm=moving,
        **how,
    )
    return trainer.fit()


def settle(network: torch.nn.Module, data: Images, device: torch.device) -> None:
    """Replace the running statistics of every batch norm by those of the training tiles, unaugmented.

    Running means follow the weights some batches late. A ReLU network does not mind; squares of squares turn a small
    error into a number without bound. So the statistics are found anew before such a network is judged.
    """
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    network.train()
    with torch.no_grad():
        for index in torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).split(SETTLED_AT_ONCE):
            network(data.batch(index.numpy(), device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


class PixelMoments:
    """Mean and standard deviation of the channels, summed up chunk by chunk in whole numbers (hence exactly)."""

    def __init__(self) -> None:
        self.n, self.total, self.squares = 0, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)

    def add(self, pixels: torch.Tensor) -> None:
        """Add (n, 3, S, S) uint8."""
        values = pixels.transpose(0, 1).flatten(1).to(torch.int32)
        self.n += values.shape[1]
        self.total += values.sum(dim=1)
        self.squares += (values * values).sum(dim=1)

    def result(self) -> np.ndarray:
        """Return (2, 3) float32: mean, and standard deviation (at least one grey level), of intensities in [0, 1]."""
        mean = self.total.double() / self.n
        sd = (self.squares.double() / self.n - mean**2).clamp_min(0).sqrt().clamp_min(1.0)
        return (torch.stack([mean, sd]) / 255).float().numpy()


class NetworkPredictor(Predictor):
    """A registered network, trained by `train_network`; parameters as of `registry.build`."""

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
        self.model, self.outputs, self.settings = model, tuple(outputs), settings
        self.plan = checked_options(model, options)
        self.device = choose_device() if device is None else torch.device(device)
        self.folder = folder
        network = model_class(model)
        self.input_px = settings.input_px or network.input_px
        multiple = getattr(network, "input_multiple", 1)
        if self.input_px and self.input_px % multiple:
            raise InputError(
                f"{model} splits its input and cannot take this side",
                field=f"models.{model}.input_px",
                value=self.input_px,
                expected=f"a multiple of {multiple}",
            )
        self.network: torch.nn.Module | None = None
        self.pixel_moments: np.ndarray | None = None
        """(2, 3): mean and sd of the training pixels; used where inputs are not normalised by section."""
        self.start: torch.nn.Module | None = None
        """A trained network whose weights are taken over before training, where the network knows how."""

    def _new_network(self) -> torch.nn.Module:
        network = model_class(self.model)
        side = {"side": self.input_px} if getattr(network, "sized", False) else {}
        try:
            return network(len(self.outputs), **side, **self.plan.model_dump())
        except (TypeError, ValueError) as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> InputError:
        given = self.plan.model_dump(exclude_unset=True)
        return InputError(
            f"the network does not accept these options ({error})", field=f"models.{self.model}", value=given
        )

    def fit(
        self, train: Spots, validation: Spots | None = None, *, seed: int, chosen: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Train; return what was chosen: ``{"epochs": n}``.

        With a validation set the number of epochs is chosen by early stopping; without one, training runs for exactly
        ``chosen["epochs"]`` (default: all of ``settings.epochs``).
        """
        stage = "refit" if validation is None else "fit"
        epochs = self.settings.epochs
        if validation is None and chosen:
            epochs = max(1, round(chosen["epochs"]))
        data, judged = self._lessons(train, validation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_of(seed, 0).initial_seed())
            self.network = self._new_network()
        if self.start is not None:
            self.network.take_over(self.start, data.batch(np.arange(min(CHUNK, len(data))), torch.device("cpu")))
        curves = None if self.folder is None else self.folder / "curves.csv"
        if curves is not None and stage == "refit" and curves.is_file():
            curves = curves.with_name("curves_refit.csv")  # those of the fit say more
        progress = self._train(
            self.network,
            data,
            judged,
            settings=self.settings,
            epochs=epochs,
            seed=seed,
            device=self.device,
            fingerprint=self._fingerprint([stage, epochs, seed], data, judged),
            state_file=self.folder and self.folder / "last" / f"{stage}.safetensors",
            curves_file=curves,
            label=" ".join(filter(None, (self.model, self.folder and self.folder.name, stage))),
            on_epoch=self.on_epoch,
        )
        return {"epochs": progress.best_epoch}

    _train = staticmethod(train_network)

    def _lessons(self, train: Spots, validation: Spots | None) -> tuple[Any, Any]:
        """Return what to learn from, and what to be judged by, as `_train` takes them."""
        return self._images(train, fit=True), None if validation is None else self._images(validation)

    @property
    def sees_tiles(self) -> bool:
        """Whether its input is the tile itself."""
        return True

    def predict(self, spots: Spots) -> np.ndarray:
        """Return (n, len(outputs)) float32; memory is bounded where ``spots.tiles`` is memory-mapped.

        Where inputs are normalised by section, the statistics are those of the spots given: give whole sections.
        """
        if self.network is None:
            raise RuntimeError("fit or load_state comes before predict")
        self.network.to(self.device).eval()
        moments = self._section_moments(spots) if self.settings.normalise_by_section else None
        parts = [np.empty((0, len(self.outputs)), np.float32)]
        for start in range(0, len(spots), CHUNK):
            rows = slice(start, start + CHUNK)
            pixels = resized(spots.tiles[rows], self.input_px)
            parts.append(predict(self.network, self._with(pixels, spots.sections[rows], moments), self.device))
        predicted = self._bounded(np.concatenate(parts))
        return smoothed(predicted, spots, self.settings.smooth_um) if self.settings.smooth_um else predicted

    def _bounded(self, predicted: np.ndarray) -> np.ndarray:
        """Put the training mean where a network of squares left every bound, and say for how many tiles."""
        if not getattr(self.network, "settled", False):
            return predicted
        with np.errstate(invalid="ignore"):
            beyond = ~(np.abs(predicted).max(axis=1, initial=0) <= BOUND)
        if beyond.any():
            where = f"{self.model}: {beyond.sum()} of {len(predicted)} tiles are unlike all training tiles"
            print(f"note: {where}, its squares have no bound there; they get the training mean", file=sys.stderr)
        return np.where(beyond[:, None], np.float32(0), predicted)

    def inputs(self, spots: Spots) -> torch.Tensor:
        """Return (n, 3, input_px, input_px) float32: what the network sees of these spots; give whole sections."""
        images = self._images(replace(spots, targets=None))
        return images.batch(np.arange(len(spots)), torch.device("cpu"))

    def state(self) -> dict[str, Any]:
        """Return all that `predict` needs: named arrays, and what JSON can hold."""
        weights = {f"network.{key}": value.detach().cpu().numpy() for key, value in self.network.state_dict().items()}
        return {**weights, **self._besides()}

    def _besides(self) -> dict[str, Any]:
        """Return what the state holds besides weights."""
        return {"pixel_moments": self.pixel_moments}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` gave; names or shapes that do not fit are an `InputError`."""
        named = ((key.removeprefix("network."), value) for key, value in state.items() if key.startswith("network."))
        weights = {key: torch.tensor(value) for key, value in named}
        try:
            self._take(state)
            network = self._new_network()
            network.load_state_dict(weights)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the weights do not fit {self.model} ({' '.join(str(error).split())[:300]})",
                fix="train the model again",
            ) from error
        self.network = network.eval()

    def _take(self, state: dict[str, Any]) -> None:
        """Take what `_besides` gave."""
        self.pixel_moments = np.asarray(state["pixel_moments"], dtype=np.float32).reshape(2, 3)

    def _images(self, spots: Spots, *, fit: bool = False) -> Images:
        pixels = resized(spots.tiles, self.input_px)
        if fit:
            every = PixelMoments()
            for start in range(0, len(pixels), CHUNK):
                every.add(pixels[start : start + CHUNK])
            self.pixel_moments = every.result()
        moments = self._section_moments(spots, pixels) if self.settings.normalise_by_section else None
        return self._with(pixels, spots.sections, moments, spots.targets)

    def _section_moments(self, spots: Spots, pixels: torch.Tensor | None = None) -> dict[str, np.ndarray]:
        """Return each section's own pixel moments; no label is looked at."""
        found = {section: PixelMoments() for section in np.unique(spots.sections).tolist()}
        for section, moments in found.items():
            rows = np.flatnonzero(spots.sections == section)
            for start in range(0, len(rows), CHUNK):
                own = rows[start : start + CHUNK]
                moments.add(
                    resized(spots.tiles[own], self.input_px) if pixels is None else pixels[torch.as_tensor(own)]
                )
        return {section: moments.result() for section, moments in found.items()}

    def _with(
        self,
        pixels: torch.Tensor,
        sections: np.ndarray,
        moments: dict[str, np.ndarray] | None,
        targets: np.ndarray | None = None,
    ) -> Images:
        if moments is None:
            values = self.pixel_moments[None]
        else:
            values = np.stack([moments[section] for section in np.asarray(sections).tolist()])
        mean, sd = (torch.tensor(values[:, i, :, None, None]) for i in (0, 1))
        learned = None if targets is None else torch.tensor(np.asarray(targets, dtype=np.float32))
        return Images(pixels, mean, sd, np.asarray(sections), learned)

    def _fingerprint(self, facts: list[Any], *lessons: Any) -> str:
        """Hash whatever the weights depend on: settings, seed and the very data; not the number of processes."""
        facts = [*facts, self.model, self._learnt(), self.settings.model_dump(), self.outputs, self.device.type]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for lesson in filter(None, lessons):
            for array in lesson.arrays():
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _learnt(self) -> dict[str, Any]:
        """Return the options that weights depend on."""
        return self.plan.model_dump(mode="json")
