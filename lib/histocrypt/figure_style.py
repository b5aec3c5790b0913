"""How every figure looks, in notebooks, in the report and in what commands draw: fonts, colours, and no boxes.

Draw inside ``with style():`` and take colours from here. They are of the Okabe-Ito palette, which colour-blind readers
can tell apart; no picture relies on colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, LINE, SOFT = "#22313a", "#5f6e76", "#d9e0e3", "#c9d3d8"
"""Text and what was measured; axes and second things; grids; areas behind what matters."""
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
VALUES, RESIDUALS, SPREAD = "viridis", "PuOr_r", "cividis"
"""Colour maps: of values, of differences around zero, of how sure or how high a rank is."""
STYLE = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "histocrypt",
    "text.parse_math": False,  # a gene called $a$ is no formula
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,  # what a notebook shows; files say their own
}


@contextmanager
def style() -> Iterator[Any]:
    """Apply these fonts and colours to what is drawn inside."""
    import matplotlib as mpl
    from cycler import cycler
    from matplotlib import font_manager

    there = set(font_manager.get_font_names())
    fonts = [name for name in ("Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans") if name in there]
    with mpl.rc_context({**STYLE, "font.family": fonts, "axes.prop_cycle": cycler(color=CYCLE)}):
        yield mpl


def canvas(*shape: int, **settings: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes."""
    import matplotlib.pyplot as plt

    return plt.subplots(*(shape or (1, 1)), **settings)


def bare(axes: Axes) -> None:
    """Leave an axes with what is drawn in it: no ticks, no frame. Its labels stay."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def log_scale(axes: Axes, *which: str) -> None:
    """Make the axes ``x`` or ``y`` logarithmic, with plain numbers: `STYLE` parses no formulas, as 10^2 would be."""
    from matplotlib.ticker import LogFormatter

    for name in which:
        getattr(axes, f"set_{name}scale")("log")
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
