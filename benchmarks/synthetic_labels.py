"""Why does a label learned from drawn tiles fail on real ones? Four questions to the tiles that a study has drawn.

Run after ``histocrypt run STUDY --until 58_generators`` and notebook 60, which writes the real tiles:
``python benchmarks/synthetic_labels.py OUTPUTS/STUDY/synthesis/fold_1``. Every AUC is of tumour against normal.

1. *Is the class obeyed?* A classifier of real training tiles, applied to drawn tiles: AUC against the class asked for.
2. *Is the label the class of the mask?* Share of the tumour region in drawn and real masks, by class.
3. *What differs?* Mean colour, and the part of a tile finer than a pixel (its residue after a blur), by class.
4. *What is lost?* A classifier of drawn tiles, applied to real ones: as is; and with real and drawn features each
   standardised by themselves, which needs real tiles without labels. Colours beside the frozen encoder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from histocrypt.encoders.described import colour_features
from histocrypt.encoders.encoders import encode
from histocrypt.synthesis.manifest import TISSUE, Pairs, load_pairs
from histocrypt.synthesis.utility import ENCODER, fit_classifier


def scaled(features: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return features (n, d) standardised by the mean and spread of others."""
    return (features - of.mean(axis=0)) / np.maximum(of.std(axis=0), 1e-6)


def fine(images: np.ndarray) -> float:
    """Return the standard deviation, in grey levels, of what a blur of one pixel takes away."""
    return float(np.std(images - gaussian_filter(images.astype(float), (0, 1, 1, 0))))


def main(folder: Path) -> None:
    """Print the four answers for the tiles below ``folder``."""
    side = load_pairs_side(folder / "real" / "train")
    sets: dict[str, Pairs] = {
        name: load_pairs(folder / path / "manifest.json", scheme=TISSUE, side=side)
        for name, path in {"train": "real/train", "drawn": "samples/joint", "test": "real/test"}.items()
    }
    truth = {name: pairs.labels == "tumour" for name, pairs in sets.items()}
    for name, pairs in sets.items():
        for label in TISSUE.classes:
            own = pairs.subset(pairs.labels == label)
            colour = own.images.mean(axis=(0, 1, 2)).round(1).tolist()
            share = (own.masks == 3).mean()
            print(f"{name:6} {label:7} n {len(own):4} RGB {colour} fine {fine(own.images):.1f} tumour {share:.2f}")
    families = {
        "colour": {name: colour_features(pairs.images) for name, pairs in sets.items()},
        "encoder": {name: encode(pairs.images, ENCODER, progress=False) for name, pairs in sets.items()},
    }
    for family, features in families.items():
        own = {name: scaled(each, each) for name, each in features.items()}
        real = {name: scaled(each, features["train"]) for name, each in features.items()}
        ways = {
            "real to test": (features, "train", "test"),
            "real to drawn": (features, "train", "drawn"),
            "real to drawn, own scale": (own, "train", "drawn"),
            "drawn to test": (features, "drawn", "test"),
            "drawn to test, scale of real": (real, "drawn", "test"),
            "drawn to test, own scale": (own, "drawn", "test"),
        }
        for way, (seen, learned, asked) in ways.items():
            fitted = fit_classifier(seen[learned], sets[learned].labels, classes=TISSUE.classes, validation=None)
            auc = roc_auc_score(truth[asked], fitted.probabilities(seen[asked])[:, 1])
            print(f"{family:8} {way:29} {auc:.3f}", flush=True)


def load_pairs_side(folder: Path) -> int:
    """Return the side of the first image of a folder."""
    from PIL import Image

    with Image.open(next((folder / "images").glob("*.png"))) as image:
        return image.width


if __name__ == "__main__":
    main(Path(sys.argv[1]))
