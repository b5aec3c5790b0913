"""Spots on their tissue: measured, predicted and residual side by side. For the report and the viewers.

Values are drawn in viridis, residuals in purple and orange: both can be told apart by colour-blind readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.evaluation.figures import INK, MUTED, canvas, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

VALUES, RESIDUALS = "viridis", "PuOr_r"
TOUCHING = 0.92  # of the spot pitch: spots drawn as large as they can be without overlapping
FADED = 0.35


def side_by_side(
    panels: list[dict[str, Any]],
    coords: np.ndarray,
    *,
    um_per_unit: float,
    spacing: float,
    image: np.ndarray | None,
    diameter: float | None = None,
    opacity: float = FADED,
) -> Figure:
    """Draw the section's picture beside measured, predicted and residual maps of a few genes.

    Parameters
    ----------
    panels
        One a gene: ``title``, ``true`` (n,), ``predicted`` (n,).
    coords
        (n, 2) x, y in picture pixels (or full-resolution pixels where there is no picture).
    um_per_unit
        Micrometres per unit of ``coords``.
    spacing
        Distance between neighbouring spots, in units of ``coords``.
    image
        (h, w, 3) uint8 picture, or None.
    diameter
        Diameter of a spot, in units of ``coords``; None draws them so large that they nearly touch.
    opacity
        Of the picture under the spots, 0 to 1.
    """
    low, high = window(coords, spacing)
    aspect = (high[1] - low[1]) / (high[0] - low[0])
    width = 7.4 / (3 if image is None else 4)
    with style():
        columns = 3 + (image is not None)
        figure, axes = canvas(
            len(panels), columns, figsize=(7.4, len(panels) * (width * aspect * 0.8 + 0.12) + 0.3), squeeze=False
        )
        for row, panel in zip(axes, panels, strict=True):
            values = [panel["true"], panel["predicted"], panel["predicted"] - panel["true"]]
            least, most, reach = colour_limits(panel["true"], panel["predicted"])
            scales = [(VALUES, least, most)] * 2 + [(RESIDUALS, -reach, reach)]
            if image is not None:
                row[0].imshow(image, interpolation="bilinear")
            for k, (one, value, (cmap, least, most)) in enumerate(zip(row[-3:], values, scales, strict=True)):
                if image is not None:
                    one.imshow(image, alpha=opacity, interpolation="bilinear")
                drawn = spots(one, coords, value, diameter=diameter or TOUCHING * spacing, cmap=cmap)
                drawn.set_clim(least, most)
                if k > 0:
                    bar = figure.colorbar(drawn, ax=one, shrink=0.75, pad=0.02, aspect=18)
                    bar.outline.set_visible(False)
                    bar.ax.tick_params(labelsize=7, length=2)
            for one in row:
                frame(one, low, high)
            row[0].set_ylabel(panel["title"], fontsize=9)
            scale_bar(row[0], low, high, um_per_unit)
        names = ["H&E"] * (image is not None) + ["measured", "predicted", "predicted − measured"]
        for one, name in zip(axes[0], names, strict=True):
            one.set_title(name, fontsize=9)
    return figure


def window(coords: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (x, y) of what is shown: all spots and a little around them."""
    return coords.min(axis=0) - 1.2 * spacing, coords.max(axis=0) + 1.2 * spacing


def frame(axes: Axes, low: np.ndarray, high: np.ndarray) -> None:
    """Show ``low`` to ``high`` with y downwards, without ticks or frame."""
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def spots(
    axes: Axes, coords: np.ndarray, values: np.ndarray, *, diameter: float, cmap: str, alpha: float = 1.0
) -> EllipseCollection:
    """Draw (n,) ``values`` as discs of ``diameter`` (in units of ``coords``) at their places on the tissue."""
    from matplotlib.collections import EllipseCollection

    size = np.full(len(coords), diameter)
    drawn = EllipseCollection(
        size, size, np.zeros(len(coords)), units="x", offsets=coords, offset_transform=axes.transData,
        array=values, cmap=cmap, alpha=alpha, linewidths=0.2, edgecolors=MUTED,
    )  # fmt: skip
    axes.add_collection(drawn)
    return drawn


def colour_limits(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float, float]:
    """Return least, most and reach: one scale for measured and predicted values, and +-reach for their difference.

    2 % of the values at each end are clipped, so that one odd spot does not wash out the others; where that leaves
    nothing (a gene that is zero nearly everywhere), nothing is clipped.
    """
    both = np.concatenate([true, predicted])
    least, most = np.quantile(both, [0.02, 0.98])
    if least == most:
        least, most = both.min(), both.max()
    away = np.abs(predicted - true)
    reach = np.quantile(away, 0.98) or away.max() or 1.0
    return float(least), float(most if most > least else least + 1.0), float(reach)


def pitch(coords: np.ndarray) -> float:
    """Return the distance between neighbouring spots: the median distance of (n, 2) ``coords`` to the nearest."""
    from scipy.spatial import cKDTree

    return float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1])) if len(coords) > 1 else 1.0


def scale_bar(axes: Axes, low: np.ndarray, high: np.ndarray, um_per_unit: float) -> None:
    """Draw a bar of a round length in the lower left corner of what is shown, ``low`` to ``high`` (x, y)."""
    length = bar_length((high[0] - low[0]) * um_per_unit)
    x0, y = low[0] + 0.04 * (high[0] - low[0]), high[1] - 0.03 * (high[1] - low[1])
    x1 = x0 + length / um_per_unit
    axes.plot([x0, x1], [y, y], color=INK, lw=2.5, solid_capstyle="butt")
    middle = ((x0 + x1) / 2, y)
    axes.annotate(length_words(length), middle, (0, 3), textcoords="offset points", ha="center", fontsize=7.5)


def bar_length(extent_um: float) -> int:
    """Return the length of a scale bar, micrometres: round, and at most a third of what is shown."""
    return max(step for step in (10, 50, 100, 200, 500, 1000, 2000, 5000) if step <= max(extent_um / 3, 10))


def length_words(length_um: int) -> str:
    """Return ``500 µm`` or ``2 mm``."""
    return f"{length_um} µm" if length_um < 1000 else f"{length_um // 1000} mm"
