"""Segmentation: networks that learn masks from images, real or synthetic, and how well masks agree with true ones.

A trained network is a folder: ``segmenter.json`` says how it came about, ``weights.safetensors`` holds it. The loss is
half cross-entropy, half 1 - Dice: Dice of the probabilities, pooled over the batch, the mean over levels that the batch
has. Order, flips and dropout are drawn from generators seeded by (seed, epoch).

Dice of a level is ``2 |truth and prediction| / (|truth| + |prediction|)``, pixels pooled over all images of a
patient; then the mean over patients. A level that is neither in a patient's truth nor in its prediction is left out
there: nothing was asked, and nothing is counted as right. Records without a mask are left out. Mean Dice is the mean
over levels but background of these means.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from histocrypt.errors import InputError, unknown_name
from histocrypt.evaluation.bootstrap import draw_weights
from histocrypt.files import atomic_path, read_json, write_json
from histocrypt.machine import choose_device
from histocrypt.synthesis.manifest import Scheme
from histocrypt.training.images import flip_and_turn
from histocrypt.training.loop import Trainer, generator_of, learning_rate, precision

if TYPE_CHECKING:
    from histocrypt.synthesis.manifest import Pairs

NETWORKS = ("unet", "vit_hybrid")
FORMAT, VERSION = "histocrypt segmenter", 1
AT_ONCE = 256
"""Images whose probabilities are in memory at once."""
BACKGROUND = 0


def pixel_counts(truth: np.ndarray, predicted: np.ndarray, n_levels: int) -> np.ndarray:
    """Return (n, 3, n_levels) float64 pixels of each image: in both, in the truth, in the prediction.

    Parameters
    ----------
    truth, predicted
        (n, h, w) integers, 0 to ``n_levels`` - 1.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"masks of {truth.shape} and predictions of {predicted.shape} do not belong together")
    flat = (truth.reshape(len(truth), -1), predicted.reshape(len(truth), -1))
    counts = np.empty((len(truth), 3, n_levels))
    for level in range(n_levels):
        true, found = (values == level for values in flat)
        counts[:, :, level] = np.column_stack([(true & found).sum(1), true.sum(1), found.sum(1)])
    return counts


def dice(counts: np.ndarray) -> np.ndarray:
    """Return Dice (..., n_levels) of counts (..., 3, n_levels); NaN where a level is in neither."""
    both, true, found = np.moveaxis(counts, -2, 0)
    total = true + found
    return np.where(total > 0, 2 * both / np.maximum(total, 1), np.nan)


def over_patients(each: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis, patients, of those that are numbers; NaN where none is."""
    known = np.isfinite(each)
    total = np.where(known, each, 0).sum(axis=0)
    return np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan)


def mean_dice(levels: np.ndarray) -> np.ndarray:
    """Return the mean (...) of Dice (..., n_levels) over levels but background that are numbers."""
    return over_patients(np.moveaxis(np.delete(levels, BACKGROUND, axis=-1), -1, 0))


def score(counts: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return Dice of each level, (n_levels,): pooled over a patient's images, then the mean over patients."""
    return over_patients(np.stack([dice(counts[patients == patient].sum(axis=0)) for patient in np.unique(patients)]))


def draws_of(counts: np.ndarray, weights: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return `score` in every draw, (draws, n_levels).

    Parameters
    ----------
    counts
        (n, 3, n_levels).
    weights
        From `patient_draws`.
    """
    each = []
    for rows, drawn in weights.values():
        own = counts[rows]
        each.append(dice((drawn @ own.reshape(len(own), -1)).reshape(-1, *own.shape[1:])))
    return over_patients(np.stack(each))


def patient_draws(
    patients: np.ndarray, blocks: np.ndarray | None, *, draws: int, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for each patient its rows, (m,) int, and how often each draw has them, (draws, m) float.

    Parameters
    ----------
    patients
        (n,) str.
    blocks
        (n,) names of what is drawn together: squares of tissue, since neighbouring tiles resemble one another (and may
        overlap). None: each image by itself.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for patient in np.unique(patients).tolist():
        rows = np.flatnonzero(patients == patient)
        names = rows if blocks is None else blocks[rows]
        code = np.unique(names, return_inverse=True)[1].ravel()
        found[patient] = rows, draw_weights(code.max() + 1, draws, rng)[:, code]
    return found


@dataclass(frozen=True)
class SegmenterPlan:
    """How a segmentation network is trained."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of the network, see `models.unet.UNet` and `models.unet.ViTHybrid`."""
    batch: int = 16
    learning_rate: float = 2e-3
    """The highest; it rises shortly, then falls as half a cosine."""
    weight_decay: float = 1e-4
    patience: int = 10
    """Epochs without a better validation score after which training stops."""
    steps: int | None = None
    """Steps of an epoch; None: as many as all images make. Images are drawn anew when all have been seen."""


class Segmenter:
    """A trained segmentation network."""

    def __init__(
        self, network: torch.nn.Module, about: dict[str, Any], scheme: Scheme, *, device: torch.device
    ) -> None:
        self.network, self.about, self.scheme, self.device = network.to(device).eval(), about, scheme, device

    def probabilities(self, pairs: Pairs) -> np.ndarray:
        """Return (n, levels, side, side) float32; they sum to 1 over levels."""
        self._check(pairs)
        side = pairs.images.shape[1]
        probabilities = np.empty((len(pairs), len(self.scheme.levels), side, side), dtype=np.float32)
        step = self.about["plan"]["batch"]
        with torch.inference_mode():
            for start in range(0, len(pairs), step):
                images = torch.from_numpy(pairs.subset(slice(start, start + step)).signals()[0]).to(self.device)
                probabilities[start : start + step] = self.network(images).float().softmax(dim=1).cpu().numpy()
        return probabilities

    def predict(self, pairs: Pairs) -> np.ndarray:
        """Return the most probable level of each pixel, (n, side, side) uint8. True masks are not looked at."""
        parts = [
            self.probabilities(pairs.subset(slice(start, start + AT_ONCE))).argmax(axis=1).astype(np.uint8)
            for start in range(0, len(pairs), AT_ONCE)
        ]
        return np.concatenate([np.empty((0, *pairs.masks.shape[1:]), np.uint8), *parts])

    def _check(self, pairs: Pairs) -> None:
        if pairs.scheme != self.scheme:
            raise InputError(
                "the images' classes or levels are not those that the network was trained with",
                value=list(pairs.scheme.levels),
                expected=", ".join(self.scheme.levels),
            )
        found, known = list(pairs.images.shape[1:]), [self.about["side"]] * 2 + [self.about["channels"]]
        if found != known:
            raise InputError(
                "the images are not of the size that the network was trained with", value=found, expected=str(known)
            )


def train_segmenter(
    pairs: Pairs,
    validation: Pairs | None,
    *,
    network: str = "unet",
    epochs: int,
    seed: int,
    folder: Path | None = None,
    weights: Path | None = None,
    plan: SegmenterPlan | None = None,
    device: str | torch.device | None = None,
) -> Segmenter:
    """Train a network to outline images as their masks do.

    Parameters
    ----------
    pairs
        What to learn from; records without a mask are left out.
    validation
        Training stops when mean Dice on these has not improved for ``plan.patience`` epochs; the best epoch is kept.
        None: all epochs, and the last is kept.
    network
        ``unet`` or ``vit_hybrid``.
    epochs
        At most; the learning rate's schedule spans them.
    folder
        Where the trained network (``segmenter.json``, ``weights.safetensors``), ``curves.csv`` and the state are kept.
        A finished training with the same settings and data is not done again, an interrupted one goes on.
    weights
        A ``.safetensors`` file to start from, see `take_weights`.

    Raises
    ------
    InputError
        If there are fewer than two masks, the network does not accept these options, a file of weights does not fit, or
        the loss is no longer a number.
    """
    plan = plan or SegmenterPlan()
    pairs = pairs.subset(pairs.has_mask)
    if len(pairs) < 2:
        raise InputError("segmentation cannot be learned from fewer than two masks", value=len(pairs))
    if validation is not None:
        validation = validation.subset(validation.has_mask)
        if validation.scheme != pairs.scheme or not (validation.masks > 0).any():
            raise InputError(
                "validation images have no mask of this scheme with anything but background", value=len(validation)
            )
    if weights is not None and not Path(weights).is_file():
        raise InputError("there are no weights here", file=weights, expected="a .safetensors file")
    device = choose_device() if device is None else torch.device(device)
    asked = {
        "format": FORMAT,
        "version": VERSION,
        "network": network,
        "plan": asdict(plan),
        "epochs": epochs,
        "seed": seed,
        "side": pairs.images.shape[1],
        "channels": pairs.images.shape[3],
        "scheme": asdict(pairs.scheme),
        "images": len(pairs),
        "data": [digest(part) for part in (pairs, validation) if part is not None],
        "start": None if weights is None else hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
    }
    asked = json.loads(json.dumps(asked))  # as it will be read back
    if folder is not None and (folder / "segmenter.json").is_file():
        done = read_json(folder / "segmenter.json")
        if isinstance(done, dict) and all(done.get(key) == value for key, value in asked.items()):
            return load_segmenter(folder, device=device)
    fingerprint = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_of(seed, 0).initial_seed())
        built = build_network(network, asked["scheme"]["levels"], asked["side"], asked["channels"], plan.options)
    if weights is not None:
        asked["taken"] = str(take_weights(built, weights))
        print(f"{network}: {asked['taken']}", file=sys.stderr)
    segmenter = Segmenter(built, asked, pairs.scheme, device=device)

    def judge(_: torch.nn.Module) -> tuple[float, dict[str, float]]:
        built.eval()  # as it will predict: batch norms keep what they have, nothing is dropped
        counts = pixel_counts(validation.masks, segmenter.predict(validation), len(pairs.scheme.levels))
        dice_now = float(mean_dice(score(counts, validation.patients)))
        return dice_now, {"validation_dice": dice_now}

    def loss(batch: tuple[torch.Tensor, torch.Tensor], _: Any) -> torch.Tensor:
        images, masks = batch
        with precision(device):
            logits = built(images.to(device))
        return segmentation_loss(logits.float(), masks.to(device))

    steps = plan.steps or max(1, math.ceil(len(pairs) / plan.batch))
    progress = Trainer(
        network=built,
        optimiser=torch.optim.AdamW(built.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay),
        device=device,
        batches=lambda _, chance: _batches(pairs, steps, plan.batch, chance),
        steps=steps,
        epochs=epochs,
        loss=loss,
        rate=lambda step: learning_rate(step, epochs * steps, plan.learning_rate),
        seed=seed,
        judge=judge if validation is not None else None,
        patience=plan.patience if validation is not None else None,
        scores=("validation_dice",),
        state_file=None if folder is None else folder / "last" / "state.safetensors",
        curves_file=None if folder is None else folder / "curves.csv",
        fingerprint=fingerprint,
        label=" ".join(filter(None, (network, folder and folder.name))),
        setting="learning_rate",
    ).fit()
    segmenter.about |= {
        "best_epoch": progress.best_epoch,
        "steps": progress.epoch * steps,
        "validation_dice": progress.best_score if validation is not None else None,
    }
    if folder is not None:
        save_segmenter(folder, segmenter)
        shutil.rmtree(folder / "last", ignore_errors=True)
    return segmenter


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return half cross-entropy, half 1 - Dice of logits (B, L, S, S) against masks (B, S, S) of levels, int64."""
    entropy = torch.nn.functional.cross_entropy(logits, masks)
    probability = logits.float().softmax(dim=1)
    truth = torch.nn.functional.one_hot(masks, logits.shape[1]).movedim(-1, 1).to(probability)
    both, true, found = ((part.sum(dim=(0, 2, 3))) for part in (probability * truth, truth, probability))
    there = true > 0  # a level that the batch lacks is the cross-entropy's business alone
    return 0.5 * entropy + 0.5 * (1 - (2 * both[there] / (true + found)[there]).mean())


def _batches(
    pairs: Pairs, n_steps: int, batch: int, chance: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield images (B, C, S, S) float32 and masks (B, S, S) int64, each pair flipped and turned alike."""
    rounds = math.ceil(n_steps * batch / len(pairs))
    order = torch.cat([torch.randperm(len(pairs), generator=chance) for _ in range(rounds)]).numpy()
    size = min(batch, max(2, math.ceil(len(order) / n_steps)))
    for number in range(n_steps):
        own = pairs.subset(order[np.arange(number * size, (number + 1) * size) % len(order)])
        images, masks = torch.from_numpy(own.signals()[0]), torch.from_numpy(own.masks.astype(np.float32))
        both = flip_and_turn(torch.cat([images, masks[:, None]], dim=1), chance)
        yield both[:, :-1].contiguous(), both[:, -1].long()


def take_weights(network: torch.nn.Module, file: str | Path) -> str:
    """Put the weights of a ``.safetensors`` file into a network, by name; return in words how many were taken.

    The others stay as they were drawn. A network with a method ``adopt`` says under which other names it knows weights
    (`models.unet.ViTHybrid`).

    Raises
    ------
    InputError
        If the file cannot be read, has nothing that the network knows, or a tensor of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        reason, expected = " ".join(str(error).split()), "a .safetensors file"
        raise InputError(f"weights cannot be read ({reason})", file=file, expected=expected) from error
    own = network.state_dict()
    known = network.adopt(weights) if hasattr(network, "adopt") else {k: v for k, v in weights.items() if k in own}
    if not known:
        raise InputError(
            "holds no tensor that this network knows",
            file=file,
            value=next(iter(weights), None),
            expected=f"names such as {next(iter(own))}",
        )
    for name, value in known.items():
        if value.shape != own[name].shape:
            raise InputError(
                "has another shape than in this network",
                file=file,
                field=name,
                value=tuple(value.shape),
                expected=str(tuple(own[name].shape)),
                fix="set the network's options as the file's",
            )
    network.load_state_dict(known, strict=False)
    return f"{len(known)} of {len(own)} tensors taken over, {len(weights) - len(known)} of the file not used"


def build_network(name: str, levels: list[str], side: int, channels: int, options: dict[str, Any]) -> torch.nn.Module:
    """Return an untrained network by name; options that it refuses are an `InputError`."""
    from histocrypt.models.unet import UNet, ViTHybrid

    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    try:
        if name == "unet":
            network = UNet(len(levels), channels=channels, **options)
        else:
            network = ViTHybrid(len(levels), channels=channels, side=side, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"the network does not accept these options ({error})", field=name, value=options) from error
    if side < network.least_side:
        raise InputError(
            "images are too small for this network",
            field=name,
            value=side,
            expected=f"at least {network.least_side} px per side",
        )
    return network


def save_segmenter(folder: Path, segmenter: Segmenter) -> None:
    """Write a trained network: weights first, then ``segmenter.json``, which holds their checksum."""
    from safetensors.torch import save_file

    (folder / "segmenter.json").unlink(missing_ok=True)
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file({key: value.cpu().contiguous() for key, value in segmenter.network.state_dict().items()}, temporary)
    checksum = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    write_json(folder / "segmenter.json", {**segmenter.about, "weights": checksum})


def load_segmenter(folder: str | Path, *, device: str | torch.device | None = None) -> Segmenter:
    """Load a trained network.

    Raises
    ------
    InputError
        If either file is missing, of another version, or does not belong to the other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder, again = Path(folder), "train the network again"
    about = read_json(folder / "segmenter.json")
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (FORMAT, VERSION):
        raise InputError(
            "does not describe a segmentation network of this version", file=folder / "segmenter.json", fix=again
        )
    try:
        scheme = Scheme.of(about["scheme"])
        stored = (folder / "weights.safetensors").read_bytes()
        options = about["plan"]["options"]
        network = build_network(about["network"], scheme.levels, about["side"], about["channels"], options)
        if hashlib.sha256(stored).hexdigest() != about["weights"]:
            raise InputError(
                "weights are not those that segmenter.json describes", file=folder / "weights.safetensors", fix=again
            )
        network.load_state_dict(load(stored))
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, AttributeError) as error:
        raise InputError(
            f"the network cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            file=folder,
            fix=again,
        ) from error
    return Segmenter(network, about, scheme, device=choose_device() if device is None else torch.device(device))


def digest(pairs: Pairs) -> str:
    """Return the SHA-256 of ids, images and masks."""
    found = hashlib.sha256("\n".join(pairs.ids.tolist()).encode())
    for array in (pairs.images, pairs.masks):
        found.update(f"{array.shape}".encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
