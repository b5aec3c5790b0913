"""What stands beside segmentation networks, and the classifier of labels: nothing that has to be trained for long.

Colour alone is the yardstick of a house where masks are made by rule from colour: a network that a table of colours
equals has not learned shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from histocrypt.synthesis.pairs import Pairs

SHADES = 32
"""Shades of each channel that the table of colours tells apart."""
PIXELS = 60_000
"""Drawn to fit the table: a pixel more changes little."""
PENALTIES = (0.001, 0.01, 0.1, 1.0)
"""C of the logistic regression, of which the best on the validation images is taken."""
UNCHOSEN = 0.01
"""C where there is nothing to choose it on."""


def colours(images: np.ndarray) -> np.ndarray:
    """Return images (n, S, S, 1 or 3) uint8 with three channels; grey is repeated."""
    return images if images.shape[-1] == 3 else np.repeat(images, 3, axis=-1)


def majority_mask(train: Pairs, test: Pairs) -> np.ndarray:
    """Return the most frequent level of the training pixels everywhere, (n, side, side) uint8."""
    frequent = np.bincount(train.masks[train.has_mask].ravel(), minlength=len(train.scheme.levels)).argmax()
    return np.full(test.masks.shape, frequent, dtype=np.uint8)


def colour_mask(train: Pairs, test: Pairs, *, seed: int) -> np.ndarray:
    """Return each pixel's most probable level by its colour alone, (n, side, side) uint8.

    Boosted trees learn levels from the colours of training pixels and are written out as a table of colours.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(seed)
    pixels = colours(train.images[train.has_mask]).reshape(-1, 3)
    levels = train.masks[train.has_mask].ravel()
    chosen = rng.permutation(len(pixels))[:PIXELS]
    if len(np.unique(levels[chosen])) < 2:
        return majority_mask(train, test)
    trees = HistGradientBoostingClassifier(max_iter=60, early_stopping=False, random_state=seed)
    trees.fit(pixels[chosen] // (256 // SHADES), levels[chosen])
    table = trees.predict(np.indices((SHADES,) * 3).reshape(3, -1).T).astype(np.uint8).reshape((SHADES,) * 3)
    return table[tuple(np.moveaxis(colours(test.images) // (256 // SHADES), -1, 0))]


def encoder_features(pairs: Pairs, encoder: str) -> np.ndarray:
    """Return features of a frozen encoder (`histocrypt.encoders`), (n, d) float32."""
    from histocrypt.encoders import encode

    return encode(np.ascontiguousarray(colours(pairs.images)), encoder, progress=False)


def colour_statistics(pairs: Pairs) -> np.ndarray:
    """Return statistics of colour without any shape or texture, (n, 42) float32 (`models.colour_ridge`)."""
    from histocrypt.models.colour_ridge import colour_features

    return colour_features(np.ascontiguousarray(colours(pairs.images)))


@dataclass(frozen=True)
class Classifier:
    """A logistic regression on standardised features."""

    classes: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    regression: Any

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return (n, classes) probabilities; 0 for a class that training did not see."""
        found = np.zeros((len(features), len(self.classes)))
        columns = [self.classes.index(name) for name in self.regression.classes_]
        found[:, columns] = self.regression.predict_proba((features - self.mean) / self.sd)
        return found


def fit_classifier(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: tuple[str, ...],
    validation: tuple[np.ndarray, np.ndarray] | None,
) -> Classifier:
    """Fit labels to features, classes weighted equally; the penalty is chosen on ``validation`` (features, labels).

    Raises
    ------
    InputError
        If all images to learn from are of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    if len(np.unique(labels)) < 2:
        msg = "labels cannot be learned: all images are of one class"
        raise InputError(msg, value=str(labels[0]) if len(labels) else None, expected=" and ".join(classes))
    mean, sd = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)

    def fitted(penalty: float) -> Classifier:
        regression = LogisticRegression(C=penalty, class_weight="balanced", max_iter=2000)
        return Classifier(classes, mean, sd, regression.fit((features - mean) / sd, labels))

    judged = validation is not None and len(np.unique(validation[1])) > 1
    if not judged:
        return fitted(UNCHOSEN)

    def score(one: Classifier) -> tuple[float, float]:
        probability = one.probabilities(validation[0])
        truth = np.array([classes.index(name) for name in validation[1].tolist()])
        likely = np.log(np.maximum(probability[np.arange(len(truth)), truth], 1e-6)).mean()
        return balanced_accuracy_score(truth, probability.argmax(axis=1)), float(likely)

    return max((fitted(penalty) for penalty in PENALTIES), key=score)
