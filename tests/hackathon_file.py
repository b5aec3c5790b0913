"""A made HDF5 file in exactly the hackathon's layout, small: what a spot looks like tells what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

TYPES, PITCH, SIDE = 35, 25.0, 8
"""Cell types; pixels between spots of the hexagonal array; spots along a side."""
LABELS = [f"C{number}" for number in range(1, TYPES + 1)]


def lattice(n_side: int = SIDE) -> np.ndarray:
    """Return hexagonal spot centres, (n, 2) x, y."""
    rows, columns = (axis.ravel() for axis in np.meshgrid(np.arange(n_side), np.arange(n_side), indexing="ij"))
    x = PITCH * (columns + 0.5 * (rows % 2) + 1.5)
    y = PITCH * (rows * np.sqrt(3) / 2 + 1.5)
    return np.column_stack([x, y])


def slide(rng: np.random.Generator, n_side: int = SIDE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image in [0, 1], spot centres, and abundances: tumour (C1) where nuclei are dense, CAFs (C2) else."""
    spots = lattice(n_side)
    side = int(PITCH * (n_side + 3))
    y, x = np.mgrid[:side, :side]
    phase = rng.uniform(0, 2 * np.pi, 2)
    dense = 0.5 + 0.5 * np.sin(x / 35 + phase[0]) * np.cos(y / 30 + phase[1])
    tissue = (np.abs(x - side / 2) < side / 2 - 12) & (np.abs(y - side / 2) < side / 2 - 12)
    nuclei = rng.random((side // 4 + 1, side // 4 + 1)).repeat(4, 0).repeat(4, 1)[:side, :side] < 0.1 + 0.6 * dense
    eosin, haematoxylin = np.array([0.90, 0.60, 0.75]), np.array([0.42, 0.28, 0.55])
    image = np.where(nuclei[..., None], haematoxylin, eosin) + rng.normal(0, 0.02, (side, side, 3))
    image = np.where(tissue[..., None], image, 0.95).clip(0, 1)
    share = dense[spots[:, 1].astype(int), spots[:, 0].astype(int)]
    amounts = rng.gamma(0.3, 0.02, (len(spots), TYPES))
    amounts[amounts < 0.002] = 0  # many zeros, and hence many ties
    amounts[:, 0] += 0.8 * share
    amounts[:, 1] += 0.8 * (1 - share)
    return image, spots, amounts / amounts.sum(axis=1, keepdims=True)


def write_hackathon(
    path: Path, *, train: int = 3, n_side: int = SIDE, seed: int = 0, scale: float = 1.0, dtype: type = np.float64
) -> Path:
    """Write ``train`` training slides and one test slide; abundances are ``scale`` times proportions."""
    import h5py

    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for number in range(1, train + 2):
            image, spots, amounts = slide(rng, n_side)
            part = "Train" if number <= train else "Test"
            stored = np.rint(image * 255).astype(np.uint8) if dtype == np.uint8 else image.astype(dtype)
            file[f"images/{part}/S_{number}"] = stored
            columns = {"x": spots[:, 0], "y": spots[:, 1]}
            if part == "Train":
                columns |= {name: scale * amounts[:, i] for i, name in enumerate(LABELS)}
            else:
                columns["Test_Set"] = rng.integers(1, 3, len(spots))
            kinds = [(name, np.int64 if name == "Test_Set" else np.float64) for name in columns]
            table = np.empty(len(spots), dtype=kinds)
            for name, values in columns.items():
                table[name] = values
            file[f"spots/{part}/S_{number}"] = table
    return path


def change_table(path: Path, part: str, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Rewrite the spots of a slide after an edit of its columns."""
    import h5py

    with h5py.File(path, "a") as file:
        table = file[f"spots/{part}"][:]
        columns = edit({name: table[name] for name in table.dtype.names})
        new = np.empty(len(next(iter(columns.values()))), dtype=[(name, v.dtype) for name, v in columns.items()])
        for name, values in columns.items():
            new[name] = values
        del file[f"spots/{part}"]
        file[f"spots/{part}"] = new
