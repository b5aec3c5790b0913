"""Toy pairs in which everything is known: discs on a ground, darker dots in them where they are tumour."""

import numpy as np

from histocrypt.synthesis.manifest import TISSUE, Pairs


def discs(n, seed, *, side=24, channels=3, patients=("P1",), noise=12.0):
    rng = np.random.default_rng(seed)
    labels = np.array(["normal", "tumour"])[np.arange(n) % 2]
    yy, xx = np.mgrid[:side, :side]
    images, masks = np.empty((n, side, side, 3)), np.zeros((n, side, side), np.uint8)
    colours = np.array([[240, 240, 240], [230, 150, 190], [90, 60, 140], [180, 120, 190]], float)
    for row in range(n):
        x, y = rng.uniform(side * 0.35, side * 0.65, 2)
        tumour = labels[row] == "tumour"
        radius = rng.uniform(0.25, 0.4) * side
        masks[row][np.hypot(xx - x, yy - y) < radius] = 3 if tumour else 1
        for _ in range(9 if tumour else 3):
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0, radius * 0.7)
            masks[row][np.hypot(xx - x - far * np.cos(angle), yy - y - far * np.sin(angle)) < 1.8] = 2
        images[row] = colours[masks[row]] + rng.normal(0, noise, (side, side, 3))
    images = np.clip(images, 0, 255).astype(np.uint8)
    return Pairs(
        TISSUE,
        np.array([f"s{seed}:{row}" for row in range(n)]),
        labels,
        np.array(patients)[np.arange(n) // 2 % len(patients)],
        images if channels == 3 else images.mean(axis=3, keepdims=True).astype(np.uint8),
        masks,
        np.ones(n, bool),
    )
