"""Controls above one picture. The picture is an ordinary output of the cell, so it is there without any controls."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from ipywidgets import Widget
    from matplotlib.figure import Figure

DPI = 120
HINT = "Controls appear here where this notebook runs in JupyterLab; the picture below is the first view."


class Board:
    """Controls, a sentence and a picture that follow each other.

    Parameters
    ----------
    controls
        ipywidgets by the name that ``draw`` knows their value by; their descriptions are their labels.
    draw
        Called with every control's value; returns a figure and the sentence that says what it shows. An `InputError`
        that it raises is shown in place of the sentence, and the last picture stays.
    """

    def __init__(self, controls: dict[str, Widget], draw: Callable[..., tuple[Figure, str]]) -> None:
        import ipywidgets

        self.controls = controls
        self.draw = draw
        self.said = ipywidgets.HTML()
        self.picture = b""
        """The picture as it was drawn last, PNG."""
        self._handle: Any = None
        row = ipywidgets.HBox(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget = ipywidgets.VBox([row, self.said])
        for control in controls.values():
            control.observe(self._changed, names="value")

    def show(self) -> None:
        """Display controls and picture; names that the first view does not know stop the notebook, as they should."""
        from IPython.display import display

        self._redraw()
        bundle = self.widget._repr_mimebundle_() or {}
        # Where no widgets can be drawn, readers get this sentence instead of a list of Python objects.
        display({**bundle, "text/plain": HINT}, raw=True)
        self._handle = display(self._image(), display_id=True)

    def save(self, path: Path) -> None:
        """Write the picture as it is now, PNG, atomically."""
        from histocrypt.atomic import atomic_path

        with atomic_path(path) as temporary:
            temporary.write_bytes(self.picture)

    def _changed(self, _: Any) -> None:
        try:
            self._redraw()
        except InputError as error:
            self._say(str(error))
            return
        if self._handle is not None:
            self._handle.update(self._image())

    def _redraw(self) -> None:
        figure, sentence = self.draw(**{name: control.value for name, control in self.controls.items()})
        self.picture = as_png(figure)
        self._say(sentence)

    def _say(self, sentence: str) -> None:
        from html import escape

        self.sentence = sentence
        self.said.value = f'<span role="status" style="display: block; line-height: 1.4">{escape(sentence)}</span>'

    def _image(self) -> Any:
        from IPython.display import Image

        return Image(self.picture, format="png", alt=self.sentence)


def as_png(figure: Figure) -> bytes:
    """Return a figure as PNG on white, readable on dark pages too, and close it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    plt.close(figure)
    return buffer.getvalue()


def labelled(kind: str, label: str, *, width: str = "auto", **settings: Any) -> Widget:
    """Return an ipywidget of a kind (``"Dropdown"``) whose label is never cut off."""
    import ipywidgets

    style = {"description_width": "initial"}
    layout = ipywidgets.Layout(width=width, min_width="15em", margin="2px 12px 2px 2px")
    return getattr(ipywidgets, kind)(description=label, style=style, layout=layout, **settings)


def opacity_slider() -> Widget:
    """Return the control of how strongly the H&E shows under the spots, 0 to 1."""
    from histocrypt.evaluation.maps import FADED

    settings = {"value": FADED, "min": 0.0, "max": 1.0, "step": 0.05, "continuous_update": False}
    return labelled("FloatSlider", "H&E under spots", width="24em", **settings)


def spot_sizes() -> Widget:
    """Return the control of spot size: False as large as on the tissue, True touching each other."""
    return labelled("Dropdown", "Spots", options=[("as large as on the tissue", False), ("touching", True)])


def gene_box(names: list[str], value: str, *, label: str = "Gene") -> Widget:
    """Return a box for a gene's symbol or id, with suggestions."""
    return labelled("Combobox", label, options=names, value=value, ensure_option=False, continuous_update=False)
