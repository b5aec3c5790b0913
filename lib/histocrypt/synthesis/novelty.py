"""How new an image is: the distance to its nearest training record, against that of patients not learnt from.

Images of unseen patients lie at some distance from the training images. What lies nearer than nearly all of them is
closer to a training record than another patient's tissue comes by itself, and may be a copy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from histocrypt.errors import InputError
from histocrypt.synthesis.pairs import Pairs
from histocrypt.synthesis.realism import Reconstruction

Features = Callable[[Pairs], np.ndarray]
"""From n images to (n, d) features that are compared by Euclidean distance."""
_AT_ONCE = 512


def distances(features_a: np.ndarray, features_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each row of (n_a, d) features, the distance to the nearest row of (n_b, d), and which one that is.

    Exact, also where both are the same; (n_a,) float64 and (n_a,) int.
    """
    from scipy.spatial.distance import cdist

    if not len(features_b):
        raise InputError("there is no record to compare with")
    nearest = np.empty(len(features_a))
    index = np.empty(len(features_a), dtype=np.int64)
    for start in range(0, len(features_a), _AT_ONCE):
        found = cdist(features_a[start : start + _AT_ONCE], features_b)
        index[start : start + _AT_ONCE] = found.argmin(axis=1)
        nearest[start : start + _AT_ONCE] = found.min(axis=1)
    return nearest, index


def threshold(train: np.ndarray, held_out: np.ndarray, *, quantile: float) -> float:
    """Return the distance to training features below which ``quantile`` of the held-out features lie."""
    if not 0 < quantile < 1:
        raise InputError("is no share", field="novelty quantile", value=quantile, expected="between 0 and 1")
    if not len(held_out):
        raise InputError("without held-out images nothing says how near is too near")
    return float(np.quantile(distances(held_out, train)[0], quantile))


def check_apart(train: Pairs, held_out: Pairs) -> None:
    """Refuse a patient on both sides: tiles of one section share pixels, and all of a patient resemble one another."""
    both = sorted(set(train.patients.tolist()) & set(held_out.patients.tolist()) - {""})
    if both:
        msg = f"patient {both[0]} is among the training and the held-out images"
        raise InputError(msg, fix="hold out whole patients")


def with_encoder(reconstruction: Reconstruction, train: Pairs, *, encoder: str = "efficientnet_lite0_128") -> Features:
    """Return features of the autoencoder beside those of a frozen encoder, both with the same weight.

    The encoder's are averaged over four turns and their mirror images, and scaled by their spread on ``train``.
    """
    plain = _encoded(train, encoder)
    mean, spread = plain.mean(axis=0), plain.std(axis=0) + 1e-6

    def features(pairs: Pairs) -> np.ndarray:
        own = reconstruction.features(pairs)
        other = (_encoded(pairs, encoder) - mean) / spread
        return np.concatenate([own / np.sqrt(own.shape[1]), other / np.sqrt(other.shape[1])], axis=1)

    return features


def _encoded(pairs: Pairs, encoder: str) -> np.ndarray:
    from histocrypt.encoders import encode

    images = np.repeat(pairs.images, 3, axis=3) if pairs.images.shape[3] == 1 else pairs.images
    turned = [np.rot90(images, turn, (1, 2)) for turn in range(4)]
    views = [view for one in turned for view in (one, one[:, :, ::-1])]
    return np.mean([encode(np.ascontiguousarray(view), encoder, progress=False) for view in views], axis=0)
