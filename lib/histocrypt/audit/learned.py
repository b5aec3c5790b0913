"""The learned attack: a classifier that has seen, on shadow models, what members look like beside their truth.

For maps it is the attack of DiffGuard (npj Digital Medicine 2024, doi 10.1038/s41746-024-01290-7): a convolutional
network reads crops of the truth and of the predicted map, both one-hot, and the scores of nine crops are averaged. The
network is a small one, or DiffGuard's ResNet-50 (`PUBLISHED`). For expression a boosted classifier reads truth,
prediction and error of every output.

The shadows may hold the very patients that are audited: what is asked then is what an insider could learn. A model of
whole-set statistics (even a mean profile) can tell such an attacker which patients went into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from histocrypt.errors import InputError, unknown_name
from histocrypt.training.loop import Trainer

GRID = 3
"""Crops a side when a case is scored: nine, evenly spread."""
BATCH, LEARNING_RATE, WIDTH = 64, 1e-3, 16
NETWORKS = ("small", "resnet50")
PUBLISHED: dict[str, Any] = {
    "network": "resnet50",
    "side": 256,
    "crop": 128,
    "batch": 64,
    "learning_rate": 3e-4,
    "epochs": 500,
}
"""DiffGuard's own options of `train_map_attack`: hours on a CPU, minutes on a GPU."""
HEAD = 256
"""Width between ResNet-50's 2048 features and its two outputs, as in DiffGuard."""
SMALLEST_ERROR = 1e-8


def map_inputs(truth: np.ndarray, predicted: np.ndarray, *, levels: int) -> np.ndarray:
    """Return what the attack on maps sees: (n, 2 * levels, h, w) float32 in [-1, 1].

    Parameters
    ----------
    truth
        (n, h, w) levels of the true masks.
    predicted
        (n, h, w) predicted levels, as the reference's attack has them, or (n, levels, h, w) probabilities, which tell
        an attacker more.
    levels
        Number of levels.

    Raises
    ------
    InputError
        If shapes do not fit, or a level is unknown.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    sizes = {truth.shape, (len(truth), levels, *truth.shape[1:])}
    if truth.ndim != 3 or predicted.shape not in sizes:
        raise InputError("maps do not fit the truth", value=predicted.shape, expected=f"one of {sorted(sizes)}")
    known = np.arange(levels)[:, None, None]

    def one_hot(maps: np.ndarray) -> np.ndarray:
        if maps.size and not (0 <= maps.min() and maps.max() < levels):
            raise InputError("maps have unknown levels", value=int(maps.max()), expected=f"0 to {levels - 1}")
        return maps[:, None] == known

    parts = [one_hot(truth), one_hot(predicted) if predicted.ndim == 3 else predicted]
    return np.concatenate([2 * np.asarray(part, dtype=np.float32) - 1 for part in parts], axis=1)


def value_inputs(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return what the attack on expression sees: (n, 3 q + 1) of truth, prediction, log error, and their mean error.

    Parameters
    ----------
    truth, prediction
        (n, q), standardised alike for all models.
    """
    truth, prediction = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    squared = np.square(prediction - truth)
    errors = np.log(np.maximum(squared, SMALLEST_ERROR))
    mean = np.log(np.maximum(squared.mean(axis=1, keepdims=True), SMALLEST_ERROR))
    return np.concatenate([truth, prediction, errors, mean], axis=1).astype(np.float32)


@dataclass(frozen=True)
class MapAttack:
    """A trained attack on maps."""

    network: nn.Module
    crop: int
    """Side of its crops in pixels."""
    side: int | None = None
    """Side that maps are resized to before they are cut; None: as they are."""

    def crop_scores(self, inputs: np.ndarray) -> np.ndarray:
        """Return (n, crops) scores of the crops of `map_inputs` (n, channels, h, w), nine where maps are larger.

        DiffGuard takes its AUC over crops; crops of one record are no independent witnesses.
        """
        size = (self.side, self.side) if self.side else inputs.shape[2:]
        places = [np.unique(np.linspace(0, length - self.crop, GRID).round().astype(int)) for length in size]
        device, parts = next(self.network.parameters()).device, []
        self.network.eval()
        with torch.inference_mode():
            for start in range(0, len(inputs), BATCH):
                maps = _resized(inputs[start : start + BATCH], self.side).to(device)
                crops = [
                    maps[:, :, top : top + self.crop, left : left + self.crop]
                    for top in places[0].tolist()
                    for left in places[1].tolist()
                ]
                parts.append(np.stack([_margin(self.network(crop)).double().cpu().numpy() for crop in crops], axis=1))
        return np.concatenate(parts) if parts else np.empty((0, len(places[0]) * len(places[1])))

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """Return one score for each of (n, channels, h, w) maps of `map_inputs`, higher: more likely a member."""
        return self.crop_scores(inputs).mean(axis=1)


def train_map_attack(
    inputs: np.ndarray,
    member: np.ndarray,
    *,
    crop: int | None = None,
    epochs: int = 30,
    seed: int = 0,
    network: str = "small",
    side: int | None = None,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
) -> MapAttack:
    """Train the attack on maps of shadow segmenters; never on the audited one's.

    Parameters
    ----------
    inputs
        (n, channels, h, w) from `map_inputs`: what shadow segmenters made of records they saw and did not see.
    member
        (n,) bool: whether the shadow saw the record.
    crop
        Side of the random crops; half of the smaller side if not given, as in the reference.
    epochs
        Passes over the maps.
    seed
        Of weights, order, crops and flips.
    network
        ``small``: three convolutions, on the CPU. ``resnet50``: DiffGuard's, as wide at its input as the maps have
        channels, from random weights, without flips, on the best device. ``**PUBLISHED`` gives all of its options.
    side
        Side that maps are resized to before crops are cut, by the nearest pixel; None: as they are.
    batch, learning_rate
        Of AdamW.

    Raises
    ------
    InputError
        If there is only one side, the crop is larger than the maps, or the network is unknown.
    """
    from histocrypt.machine import choose_device

    _both(member)
    if network not in NETWORKS:
        raise unknown_name("network of the attack", network, NETWORKS, field="network")
    height, width = (side, side) if side else inputs.shape[2:]
    crop = min(height, width) // 2 if crop is None else crop
    if not 8 <= crop <= min(height, width):
        raise InputError(
            "no crop of this side is possible", field="crop", value=crop, expected=f"8 to {min(height, width)}"
        )
    device = torch.device("cpu") if network == "small" else choose_device()
    labels = torch.tensor(np.asarray(member, dtype=np.float32), device=device)
    positive = torch.tensor(float((~member).sum() / member.sum()), device=device)  # both sides weigh the same
    rng, steps = np.random.default_rng([seed, 6]), -(-len(inputs) // batch)

    def batches(*_: Any) -> Iterator[np.ndarray]:
        return iter(np.array_split(rng.permutation(len(inputs)), steps))

    def loss(rows: np.ndarray, _: None) -> torch.Tensor:
        top, left = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
        maps = _resized(inputs[rows], side)[:, :, top : top + crop, left : left + crop]
        maps = maps.flip(3) if network == "small" and rng.random() < 0.5 else maps
        # Of two outputs, this is the cross-entropy of their softmax.
        logits = _margin(built(maps.contiguous().to(device)))
        return nn.functional.binary_cross_entropy_with_logits(logits, labels[rows], pos_weight=positive)

    with torch.random.fork_rng(devices=[]):  # dropout draws while training
        torch.manual_seed(seed)
        built = (_network if network == "small" else _resnet50)(inputs.shape[1]).to(device)
        Trainer(
            network=built,
            optimiser=torch.optim.AdamW(built.parameters(), lr=learning_rate),
            device=device,
            batches=batches,
            loss=loss,
            steps=steps,
            epochs=epochs,
            label="attack on maps",
        ).fit()
    return MapAttack(built, crop, side)


def _margin(outputs: torch.Tensor) -> torch.Tensor:
    """Return (n,) log odds of one output, or of the second against the first."""
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs[:, 1] - outputs[:, 0]


def _resized(inputs: np.ndarray, side: int | None) -> torch.Tensor:
    maps = torch.from_numpy(np.ascontiguousarray(inputs))
    return maps if side is None else nn.functional.interpolate(maps, (side, side), mode="nearest")


def _network(channels: int) -> nn.Module:
    layers, width = [], channels
    for wider in (WIDTH, 2 * WIDTH, 4 * WIDTH):
        layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(4, wider), nn.ReLU()]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(width, 1))


def _resnet50(channels: int) -> nn.Module:
    """Return torchvision's ResNet-50 (He et al. 2016) with DiffGuard's input and head."""
    import histocrypt.torchvision_ops  # noqa: F401 - lets torchvision be imported beside a CPU-only torch

    from torchvision.models import resnet50  # isort: skip

    network = resnet50(weights=None)
    network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network.fc = nn.Sequential(nn.Linear(2048, HEAD), nn.ReLU(), nn.Linear(HEAD, 2))
    return network


@dataclass(frozen=True)
class ValueAttack:
    """A trained attack on vectors, e.g. predicted expression."""

    classifier: Any

    def scores(self, inputs: np.ndarray) -> np.ndarray:
        """Return (n,) log odds."""
        return self.classifier.decision_function(inputs)


def train_value_attack(inputs: np.ndarray, member: np.ndarray, *, rounds: int = 100, seed: int = 0) -> ValueAttack:
    """Train the attack on vectors from shadow models: gradient-boosted trees of scikit-learn.

    Parameters
    ----------
    inputs
        (n, d) from `value_inputs`: what shadow models made of records they saw and did not see.
    member
        (n,) bool: whether the shadow saw the record.
    rounds
        Trees.
    seed
        Of the trees.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    _both(member)
    classifier = HistGradientBoostingClassifier(
        max_iter=rounds,
        learning_rate=0.1,
        max_leaf_nodes=15,
        min_samples_leaf=20,
        early_stopping=False,
        max_features=0.2,
        random_state=seed,
    )
    return ValueAttack(classifier.fit(inputs, member))


def on_shadows(
    inputs: np.ndarray,
    inside: np.ndarray,
    train: Callable[[np.ndarray, np.ndarray], MapAttack | ValueAttack],
) -> np.ndarray:
    """Return (shadows, n) scores: each shadow attacked by what was learnt on the others, but for its complement.

    As in `shadow.target_scores`, each record is then inside as many of the others as it is outside.

    Parameters
    ----------
    inputs
        (shadows, n, ...) from `map_inputs` or `value_inputs`, of shadows in the order of `shadow.shadow_losses`.
    inside
        (shadows, n) bool.
    train
        `train_map_attack` or `train_value_attack`, with its options.
    """
    scores = np.empty(inside.shape)
    for first in range(0, len(inputs), 2):
        others = np.arange(len(inputs)) // 2 != first // 2
        attack = train(inputs[others].reshape(-1, *inputs.shape[2:]), inside[others].ravel())
        for number in (first, first + 1):
            scores[number] = attack.scores(inputs[number])
    return scores


def _both(member: np.ndarray) -> None:
    if np.asarray(member).dtype != bool or member.all() or not member.any():
        raise InputError(
            "does not tell members from non-members of the shadow models", field="member", expected="bool, some of each"
        )
