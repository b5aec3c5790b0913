"""Pictures of an encrypted inference: a tile on its way, agreement with the clear model, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation.figures import CYCLE, INK, MUTED, canvas, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STAGES = {
    "compile": "compile (model owner, once)",
    "keygen": "make keys (hospital, once)",
    "encrypt": "cut, check, encrypt (hospital)",
    "evaluate": "predict on ciphertexts (evaluator)",
    "decrypt": "decrypt (hospital)",
}


def journey(
    tile: np.ndarray, ciphertext: bytes, symbols: Sequence[str], clear: np.ndarray, encrypted: np.ndarray
) -> Figure:
    """Draw one spot before, encrypted, and after.

    Parameters
    ----------
    tile
        (S, S, 3) uint8, what the hospital sees.
    ciphertext
        What the evaluator sees; the lowest byte of its last 65,536 coefficients is drawn as grey values.
    symbols
        Names of the genes.
    clear, encrypted
        (genes,) predictions of this spot.
    """
    with style():
        figure, (left, middle, right) = canvas(1, 3, figsize=(9.5, 3.2), width_ratios=[1, 1, 1.35])
        left.imshow(tile)
        left.set_title("what the hospital sees")
        pixels = (np.frombuffer(ciphertext[-8 * 65536 :], dtype="<u8") & 255).reshape(256, 256)
        middle.imshow(pixels, cmap="gray", interpolation="nearest")
        middle.set_title(f"what the evaluator sees ({len(ciphertext) / 2**20:.1f} MiB)")
        for axes in (left, middle):
            axes.set_xticks([])
            axes.set_yticks([])
        shown = np.argsort(-clear)[:12]
        rows = np.arange(len(shown))
        right.barh(rows, clear[shown], color=MUTED, label="in the clear")
        right.plot(encrypted[shown], rows, "D", color=CYCLE[1], markersize=5, label="decrypted")
        right.set_yticks(rows, [symbols[index] for index in shown])
        right.invert_yaxis()
        right.set_title("what the hospital gets")
        right.set_xlabel("predicted expression")
        right.legend(loc="lower right", fontsize=8)
    return figure


def agreement(genes: pd.DataFrame, clear: np.ndarray, encrypted: np.ndarray) -> Figure:
    """Draw encrypted against clear values, and the largest error of each gene.

    Parameters
    ----------
    genes
        From `evaluation.agreement.agreement`.
    clear, encrypted
        (n, genes) predictions.
    """
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(9.5, 3.4))
        left.plot(clear.ravel(), encrypted.ravel(), ".", color=CYCLE[0], markersize=2, alpha=0.4, rasterized=True)
        ends = [float(clear.min()), float(clear.max())]
        left.plot(ends, ends, color=INK, linewidth=0.8)
        left.set_xlabel("in the clear")
        left.set_ylabel("decrypted")
        left.set_title(f"{clear.size:,} predictions")
        errors = np.log10(np.maximum(genes["max_abs_error"], 1e-12))
        right.hist(errors, bins=20, color=CYCLE[0])
        right.axvline(-2, color=CYCLE[1], linewidth=1)
        right.annotate("limit", (-2, right.get_ylim()[1]), color=CYCLE[1], ha="right", va="top", rotation=90)
        right.set_xlabel("largest error of a gene, log10 of standard deviations")
        right.set_ylabel("genes")
    return figure


def cost(content: Mapping[str, Any]) -> Figure:
    """Draw seconds by step and memory by party; ``content`` as in ``agreement.json``."""
    with style():
        figure, (left, right) = canvas(1, 2, figsize=(9.5, 2.4), width_ratios=[1.6, 1])
        seconds = [content["seconds"][name] for name in STAGES]
        left.barh(list(STAGES.values()), seconds, color=CYCLE[0])
        for row, value in enumerate(seconds):
            left.annotate(f" {value:.1f} s", (value, row), va="center")
        left.invert_yaxis()
        left.set_xlim(0, 1.15 * max(seconds))
        left.set_xlabel(f"seconds, {content['spots']} spots")
        parties = {name.replace("_", " "): value for name, value in content["peak_gib"].items()}
        right.barh(list(parties), list(parties.values()), color=CYCLE[2])
        for row, value in enumerate(parties.values()):
            right.annotate(f" {value:.1f} GiB", (value, row), va="center")
        right.set_xlim(0, 1.3 * max(parties.values()))
        right.set_xlabel("largest memory, GiB")
    return figure
