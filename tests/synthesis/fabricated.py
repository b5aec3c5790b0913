"""Tiles of made-up patients: each has a tint of its own, and every tile dark discs of its own."""

from dataclasses import replace

import numpy as np

from histocrypt.synthesis.manifest import TISSUE, Pairs

SIDE = 24


def tiles(patients, *, each=24, seed=0):
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images, masks, labels, owners = [], [], [], []
    for patient in patients:
        tint = np.array([220, 150, 190]) + rng.normal(0, 4, 3)
        for tile in range(each):
            label = TISSUE.classes[tile % 2]
            mask = np.full((SIDE, SIDE), 1 + 2 * (label == "tumour"))
            for x, y in rng.uniform(0, SIDE, (rng.integers(4, 9) + 6 * (label == "tumour"), 2)):
                mask[np.hypot(rows - y, columns - x) < rng.uniform(1.5, 3.5)] = 2
            colour = np.where((mask == 2)[:, :, None], rng.normal((90, 60, 140), 12), tint + rng.normal(0, 6, 3))
            images.append(colour + rng.normal(0, 5, colour.shape))
            masks.append(mask)
            labels.append(label)
            owners.append(patient)
    n = len(images)
    return Pairs(
        TISSUE,
        ids=np.array([f"S_{owner}:{i}x{seed}" for i, owner in enumerate(owners)]),
        labels=np.array(labels),
        patients=np.array(owners),
        images=np.clip(images, 0, 255).astype(np.uint8),
        masks=np.array(masks, dtype=np.uint8),
        has_mask=np.ones(n, dtype=bool),
    )


def synthetic(pairs, *, prefix="synthetic:0", change=lambda images: images):
    """Return tiles as if drawn by a generator: nobody's, with names of their own."""
    images = np.clip(np.rint(change(pairs.images.astype(float))), 0, 255).astype(np.uint8)
    ids = np.array([f"{prefix}:{i}" for i in range(len(pairs))])
    return replace(pairs, ids=ids, patients=np.full(len(pairs), ""), images=images)
