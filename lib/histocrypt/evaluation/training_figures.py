"""What 30_training shows: tiles with what was measured on them, curves while a network learns, best and worst spots.

Nothing here looks at who is held out: spots are of training or validation sections.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.data.fold_statistics import read_clean_section
from histocrypt.data.load import tiles_of
from histocrypt.evaluation.figures import canvas, style, training_curves
from histocrypt.evaluation.maps import backdrop, frame, spot_map, window
from histocrypt.pipeline.train import coords_of
from histocrypt.spatial import spot_pitch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from histocrypt.data.load import FoldData, Spots
    from histocrypt.study import Study


def what_is_learned(study: Study, data: FoldData, *, gene: int = 0, n: int = 6) -> Figure:
    """Draw one gene over the first training section, and tiles from its lowest to its highest spots.

    Parameters
    ----------
    gene
        Column of the first transform's targets: the place in the panel.
    n
        Tiles.
    """
    spots = _section(data.train, data.train.sections[0])
    values, ranked = spots.targets[:, gene], np.argsort(spots.targets[:, gene], kind="stable")
    chosen = ranked[np.linspace(0, len(ranked) - 1, n).round().astype(int)]
    title = f"{data.panel.symbols[gene]} measured, {spots.sections[0]}"
    named = {f"{values[at]:.2f}": at for at in chosen}
    return _tissue_and_tiles(study, data, spots, values, {"lowest to highest": list(named.items())}, title=title)


def best_and_worst(study: Study, data: FoldData, predicted: np.ndarray, *, n: int = 4) -> Figure:
    """Draw the error of every spot over the first validation section, and tiles of its best and worst spots.

    The error of a spot is the mean over outputs of ``|predicted - measured|``, each output in its own standard
    deviations over these spots; ``predicted`` (n, k) is in the units of the targets.
    """
    section = data.validation.sections[0]
    spots, own = _section(data.validation, section), data.validation.sections == section
    spread = np.maximum(spots.targets.std(axis=0), 1e-6)
    error = (np.abs(predicted[own] - spots.targets) / spread).mean(axis=1)
    ranked = np.argsort(error, kind="stable")
    n = min(n, len(ranked) // 2)
    rows = {"best": ranked[:n], "worst": ranked[::-1][:n]}
    named = {name: [(f"{error[at]:.2f}", at) for at in chosen] for name, chosen in rows.items()}
    return _tissue_and_tiles(study, data, spots, error, named, title=f"error, {section}")


class Live:
    """Redraws loss and validation score below a cell while a network learns, every few seconds at most.

    Give it to `pipeline.train.fit_one` as ``on_epoch``. Outside a notebook it draws nothing.
    """

    def __init__(self, model: str, fold: str, *, seconds: float = 3.0) -> None:
        self.model, self.fold, self.seconds = model, fold, seconds
        self.drawn, self.place, self.curves = time.monotonic(), None, []

    def __call__(self, curves: list[dict[str, Any]]) -> None:
        """Draw the curves so far, unless they were drawn a moment ago."""
        self.curves = curves
        if time.monotonic() - self.drawn >= self.seconds:
            self.last()

    def last(self) -> None:
        """Draw what there is, in the place of what was drawn before."""
        import matplotlib.pyplot as plt
        import pandas as pd
        from IPython import get_ipython
        from IPython.display import display

        if not self.curves or get_ipython() is None:
            return
        figure = training_curves({self.model: {self.fold: pd.DataFrame(self.curves)}})
        if self.place is None:
            self.place = display(figure, display_id=True)
        else:
            self.place.update(figure)
        plt.close(figure)
        self.drawn = time.monotonic()


def _section(spots: Spots, section: str) -> Spots:
    return spots.subset(spots.sections == section)


def _tissue_and_tiles(
    study: Study,
    data: FoldData,
    spots: Spots,
    values: np.ndarray,
    rows: dict[str, list[tuple[str, int]]],
    *,
    title: str,
) -> Figure:
    """Draw (n,) values over the section's picture, and beside it rows of tiles: a caption and the spot's place each."""
    section = str(spots.sections[0])
    clean = read_clean_section(study.run.section(section), parts=("obs", "obsm", "uns"))
    image, scale = backdrop(clean, study.run.tiles(section))
    coords = coords_of(study, spots) * scale
    spacing = spot_pitch(coords)
    low, high = window(coords, spacing)
    across = max(map(len, rows.values()))
    with style():
        widths = [2.2 * len(rows), *[1.0] * across]
        figure, axes = canvas(
            len(rows), 1 + across, figsize=(7.4, 1.5 * len(rows) + 0.6), width_ratios=widths, squeeze=False
        )
        grid = axes[0, 0].get_gridspec()
        for one in axes[:, 0]:
            one.remove()
        whole = figure.add_subplot(grid[:, 0])
        spot_map(whole, coords, values, diameter=0.92 * spacing, image=image)
        frame(whole, low, high)
        whole.set_title(title, fontsize=9)
        for line, (name, chosen) in zip(axes[:, 1:], rows.items(), strict=True):
            tiles = tiles_of(study, data.fold, spots.names[[at for _, at in chosen]])
            for one, tile, (caption, _) in zip(line, tiles, chosen, strict=False):
                one.imshow(tile)
                one.set_title(caption, fontsize=8, loc="center")
            for one in line:
                one.set(xticks=[], yticks=[])
                one.spines[:].set_visible(False)
            line[0].set_ylabel(name, fontsize=8.5)
    return figure
