"""Attacks on generators: the noise of a record that is known too well, and synthetic records that lie too close.

Both give one number a record; with the sign turned (`audit.membership` reads a high score as "more likely a member")
they are scores. The first needs the generator itself, the second synthetic records alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from histocrypt.errors import InputError
from histocrypt.synthesis.noise import noised, seeded

if TYPE_CHECKING:
    from histocrypt.synthesis.generator import Generator
    from histocrypt.synthesis.pairs import Pairs

LEVELS = (0.9, 0.7, 0.5, 0.3)
"""Shares of signal at which losses are asked for: in much noise all records are alike, in little all are easy."""

BATCH = 64


def denoising_loss(
    generator: Generator, pairs: Pairs, *, levels: tuple[float, ...] = LEVELS, draws: int = 4, seed: int = 0
) -> np.ndarray:
    """Return how badly the generator tells the noise in each record.

    Parameters
    ----------
    pairs
        Of the generator's side, colours and classes; with masks where it is joint.
    levels
        Shares of the signal's variance that are left, each between 0 and 1.
    draws
        Of noise, for each level. The noise depends on the seed and the record's name alone.

    Returns
    -------
    (n,) float64
        Mean squared error of the noise over levels and draws. Minus this is a membership score.

    Raises
    ------
    InputError
        If the pairs do not suit the generator, or a level is out of range.
    """
    _check(generator, pairs, levels, draws)
    signals, classes = generator.signals(pairs), generator.known_classes(pairs.labels).to(generator.device)
    total = np.zeros(len(pairs))
    chance = [seeded(seed, name) for name in pairs.ids.tolist()]
    with torch.inference_mode():
        for level in np.repeat(levels, draws).tolist():
            for start in range(0, len(pairs), BATCH):
                rows = slice(start, start + BATCH)
                clean = signals[rows].to(generator.device)
                noise = torch.stack([torch.randn(signals.shape[1:], generator=each) for each in chance[rows]])
                noise, kept = noise.to(clean), torch.full((len(clean),), level).to(clean)
                found = generator.noise_in(noised(clean, kept, noise), kept, classes[rows])
                total[rows] += (found - noise).square().mean(dim=(1, 2, 3)).double().cpu().numpy()
    return total / (len(levels) * draws)


def closest_record(synthetic: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the distance of each record to the nearest synthetic one, (n,). Minus this is a membership score.

    Parameters
    ----------
    synthetic
        (m, d) features of synthetic records; m at least 1.
    features
        (n, d) features of the records that are asked about.
    """
    from sklearn.neighbors import NearestNeighbors

    synthetic, features = np.asarray(synthetic, dtype=np.float64), np.asarray(features, dtype=np.float64)
    if not len(synthetic):
        msg = "there is no synthetic record to be near to"
        raise InputError(msg, value=0)
    if synthetic.shape[1:] != features.shape[1:]:
        msg = "synthetic and real records have different features"
        raise InputError(msg, value=(synthetic.shape, features.shape))
    return NearestNeighbors(n_neighbors=1).fit(synthetic).kneighbors(features)[0][:, 0]


def _check(generator: Generator, pairs: Pairs, levels: tuple[float, ...], draws: int) -> None:
    """Refuse pairs that the generator cannot have been trained on, and levels without noise or signal."""
    found, known = pairs.images.shape[1:], (generator.side, generator.side, generator.colours)
    if found != known:
        msg = "images have another size than the generator's"
        raise InputError(msg, value=found, expected=str(known))
    if pairs.scheme != generator.scheme:
        msg = "images have other classes or mask levels than the generator's"
        raise InputError(msg, value=list(pairs.scheme.classes), expected=", ".join(generator.scheme.classes))
    if generator.plan.kind == "joint" and not pairs.has_mask.all():
        msg = "the generator knows images with masks, and some have none"
        raise InputError(msg, value=str(pairs.ids[~pairs.has_mask][0]))
    if draws < 1 or not levels or not all(0 < level < 1 for level in levels):
        msg = "levels must lie between 0 and 1, and draws be at least one"
        raise InputError(msg, value=(tuple(levels), draws))
