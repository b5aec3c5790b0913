"""Matrix products in double precision: by BLAS, or by torch on a graphics card where there is one.

All sums are whole numbers below 2^53, so that every order of additions gives the same: bit for bit, whatever the
device. torch is imported where the machine has a driver of CUDA only, and an evaluator runs without it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache

import numpy as np

Product = Callable[[np.ndarray, np.ndarray], None]
"""Writes the product of a fixed matrix (O, I) and another one (I, B) to a third, (O, B): all float64."""


def product_with(weights: np.ndarray, *, device: str | None = None) -> Product:
    """Return what multiplies by a matrix (O, I) float64.

    Parameters
    ----------
    weights
        The matrix; it is put on the device once.
    device
        ``cpu``, ``cuda`` or another one that torch knows: by torch there. If not given, by torch on a graphics card,
        or by BLAS where there is none.
    """
    device = device or graphics()
    if device is None:

        def by_blas(values: np.ndarray, out: np.ndarray) -> None:
            np.matmul(weights, values, out=out)

        return by_blas
    import torch

    held = torch.from_numpy(weights).to(device)

    def by_torch(values: np.ndarray, out: np.ndarray) -> None:
        torch.from_numpy(out).copy_(held @ torch.from_numpy(values).to(device))

    return by_torch


@cache
def graphics() -> str | None:
    """Return ``cuda`` where both a driver and a torch that uses it are there."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        import torch
    except (OSError, ImportError):
        return None
    return "cuda" if torch.cuda.is_available() else None
