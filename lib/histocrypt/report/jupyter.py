"""Viewers for JupyterLab: controls above one picture.

The picture is an ordinary output of the cell, so it is there without any controls. `view_results` shows predictions of
held-out sections, `view_sections` raw sections, for looking; nothing is chosen by either.

A lasso is drawn in the browser (``lasso.js``), which tells its corners to the kernel; the kernel draws it into the
picture and shows the spots inside below it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.spatial import spot_pitch

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from histocrypt.report.views import View
    from histocrypt.sections.section import Section, SectionFiles
    from histocrypt.study import Study

DPI = 120
STORED = "stored"
"""Values as they are in the file."""
OF_COUNTS = {
    "log1p_cp10k": "depth-normalised, ln(1 + counts per 10 000)",
    "log1p": "raw, ln(1 + count)",
    "log2p1": "raw, log2(1 + count)",
    STORED: "raw counts",
}
OF_MATRIX = {"proportion": "proportion", "spot_rank": "rank within the spot", STORED: "as stored"}
MAX_SIDE = 900
TABLES = (
    "<style>.histocrypt-spots table { line-height: 1.3; border-spacing: 0 }"
    ".histocrypt-spots :is(th, td) { text-align: right; padding: 0 0 0 1.4em; font-variant-numeric: tabular-nums }"
    ".histocrypt-spots :is(th, td):first-child { text-align: left; padding: 0 }</style>"
    '<div class="histocrypt-spots" style="display: flex; flex-wrap: wrap; gap: 0.5em 3em; line-height: 1.6">'
)
LISTED_SPOTS = 8
"""Spots inside a lasso that are shown; the file holds all."""
LASSO_HINT = "Draw around spots in the picture, on any of its maps, to see their values; a click takes the lasso away."
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
    lasso
        What shows the spots inside a lasso that is drawn over the picture; None: no lasso.
    """

    def __init__(
        self, controls: dict[str, Widget], draw: Callable[..., tuple[Figure, str]], *, lasso: Lasso | None = None
    ) -> None:
        import ipywidgets

        self.controls = controls
        self.draw = draw
        self.lasso = lasso
        self.said = ipywidgets.HTML()
        self.picture = b""
        """The picture as it was drawn last, PNG."""
        self._handle: Any = None
        self._axes: list[Axes] = []
        search = [one for name, one in controls.items() if name == "gene"]
        rest = ipywidgets.VBox([one for name, one in controls.items() if name != "gene"])
        row = ipywidgets.HBox([*search, rest], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget = ipywidgets.VBox([row, self.said])
        for control in controls.values():
            control.observe(self._changed, names="value")
        if lasso is not None:
            lasso.corners.observe(self._lassoed, names="value")

    def show(self) -> None:
        """Display controls and picture; names that the first view does not know stop the notebook, as they should."""
        from IPython.display import display

        self._redraw()
        bundle = self.widget._repr_mimebundle_() or {}
        # Where no widgets can be drawn, readers get this sentence instead of a list of Python objects.
        display({**bundle, "text/plain": HINT}, raw=True)
        self._handle = display(self._image(), display_id=True)
        if self.lasso is not None:
            bundle = self.lasso.widget._repr_mimebundle_() or {}
            display({**bundle, "text/plain": LASSO_HINT}, raw=True)
            script = (Path(__file__).parent / "lasso.js").read_text(encoding="utf-8")
            display({"application/javascript": script, "text/plain": ""}, raw=True)

    def save(self, path: Path) -> None:
        """Write the picture as it is now, PNG, atomically."""
        from histocrypt.files import atomic_path

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
        from histocrypt.report.views import tissues

        figure, sentence = self.draw(**{name: control.value for name, control in self.controls.items()})
        self.picture = as_png(figure)
        self._axes = tissues(figure)
        self._say(sentence)

    def _lassoed(self, change: dict[str, Any]) -> None:
        corners = np.array(json.loads(change["new"])["corners"]).reshape(-1, 2)
        self.lasso.polygon = on_tissue(corners, self._axes) if len(corners) else None
        self._changed(change)

    def _say(self, sentence: str) -> None:
        self.sentence = sentence
        self.said.value = f'<span role="status" style="display: block; line-height: 1.4">{escape(sentence)}</span>'

    def _image(self) -> Any:
        from IPython.display import Image

        return Image(self.picture, format="png", alt=self.sentence)


def on_tissue(corners: np.ndarray, axes: list[Axes]) -> np.ndarray:
    """Return (k, 2) corners as places on the tissue, from shares of the picture's width and height, from its top left.

    They are on the map where the lasso began; where it began beside all of them, on the nearest.
    """
    from_below = np.column_stack([corners[:, 0], 1 - corners[:, 1]])
    places = [one.get_position() for one in axes]
    away = [np.hypot(*(from_below[0] - np.clip(from_below[0], place.min, place.max))) for place in places]
    one, place = axes[int(np.argmin(away))], places[int(np.argmin(away))]
    low, high = np.column_stack([one.get_xlim(), one.get_ylim()])
    return low + (from_below - place.min) / place.size * (high - low)


class Lasso:
    """What stands below the picture: the spots inside a lasso, their values, and a button that writes them to a file.

    Parameters
    ----------
    folder
        Where files go.
    """

    def __init__(self, folder: Path) -> None:
        import ipywidgets

        self.folder = folder
        self.polygon: np.ndarray | None = None
        """(k, 2) corners, picture pixels of the section that is shown."""
        self.corners = ipywidgets.Textarea(continuous_update=False, layout=ipywidgets.Layout(display="none"))
        self.corners.add_class("histocrypt-lasso")
        self.said = ipywidgets.HTML(LASSO_HINT)
        settings = {"disabled": True, "icon": "download", "layout": ipywidgets.Layout(width="auto")}
        self.export = ipywidgets.Button(description="Write these spots to a file (CSV)", **settings)
        self.written = ipywidgets.HTML()
        self.export.on_click(lambda _: self._write())
        row = ipywidgets.HBox([self.export, self.written])
        self.tables = ipywidgets.HTML()
        self.widget = ipywidgets.VBox([self.said, row, self.tables, self.corners])
        self._view: View | None = None
        self.rows = np.zeros(0, dtype=np.int64)
        """Numbers of the spots inside."""

    def outline(self, section: str) -> np.ndarray | None:
        """Return the lasso's corners on a section; one that was drawn on another section is taken away."""
        if self._view is not None and self._view.section != section:
            self.polygon = None
        return self.polygon

    def show(self, view: View) -> None:
        """Say what the spots inside hold of a view."""
        from histocrypt.report import selection

        before = self._shown(), self.rows.tolist()
        self._view, self.rows = view, selection.inside(view.coords, self.polygon)
        if (self._shown(), self.rows.tolist()) != before:
            self.written.value = ""
        self.export.disabled = not len(self.rows)
        self.said.value = LASSO_HINT
        if self.polygon is not None:
            self.said.value = f'<span role="status">{escape(selection.sentence(view, self.rows))}</span>'
        self.tables.value = self._tables(view) if len(self.rows) else ""

    def _tables(self, view: View) -> str:
        from histocrypt.evaluation.wording import TRANSFORM_WORDS
        from histocrypt.report import selection

        look = {"float_format": "%.2f", "na_rep": "\u2013", "border": 0}
        about = selection.summary(view, self.rows).to_html(**look)
        spots = selection.table(view, self.rows)[["barcode", "x_px", "y_px", "measured", "predicted"]]
        each = spots.head(LISTED_SPOTS).to_html(index=False, **look)
        rest = len(spots) - LISTED_SPOTS
        more = f"{rest} more are in the file. " if rest > 0 else ""
        units = escape(TRANSFORM_WORDS.get(view.transform, view.transform))
        return f"{TABLES}<div>{about}</div><div>{each}{more}x, y: full-resolution pixels; values: {units}.</div></div>"

    def _shown(self) -> tuple[str, ...]:
        one = self._view
        return () if one is None else (one.model, one.section, one.gene, one.transform)

    def _write(self) -> None:
        from histocrypt.report import selection

        try:
            path = selection.write(self._view, self.rows, self.folder)
        except OSError as error:
            self.written.value = escape(f"Nothing is written: {error}.")
            return
        self.written.value = f'<span role="status">Written: <code>{escape(str(path))}</code></span>'


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
    return labelled("FloatSlider", "Opacity of H&E", width="27em", **settings)


def spot_opacity() -> Widget:
    """Return the control of how opaque the spots are, 0 to 1."""
    settings = {"value": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "continuous_update": False}
    return labelled("FloatSlider", "Opacity of spots", width="27em", **settings)


def spot_sizes() -> Widget:
    """Return the control of spot size: False as large as on the tissue, True touching each other."""
    return labelled("Dropdown", "Spots", options=[("as large as on the tissue", False), ("touching", True)])


def view_results(study: Study, *, model: str = "", section: str = "", gene: str = "", transform: str = "") -> Board:
    """Return the viewer of a study's predictions of held-out sections; ``show()`` displays it.

    Parameters
    ----------
    study
        A study whose models have predicted held-out sections; it need not be scored.
    model, section, gene, transform
        What to open with; the gene by symbol or id. Empty: the study's last model, its first section, the gene that it
        trusts most (where it does not tell, the first of its panel), its main transform.

    Raises
    ------
    InputError
        If nothing is predicted yet, or (in ``show()``) a name is unknown or not predicted in this section.
    """
    from histocrypt.evaluation.scores import title_of
    from histocrypt.evaluation.wording import TRANSFORM_WORDS
    from histocrypt.report.gene_search import GeneSearch
    from histocrypt.report.views import Views, draw, sentence
    from histocrypt.targets.matrix import noun

    every = Views(study)
    model = model or every.models[-1]
    first = {"model": model, "section": section or every.predicted(model)[0]}
    first["transform"] = transform or every.transforms[0]
    gene = gene or every.genes[every.ranked(**first)[0]]
    values = [(TRANSFORM_WORDS.get(name, name), name) for name in every.transforms]
    controls = {
        "gene": GeneSearch(noun(study.target.matrix).capitalize(), gene),
        "model": labelled("Dropdown", "Model", options=[(title_of(name), name) for name in every.models]),
        "section": labelled("Dropdown", "Section", options=every.sections),
        "transform": labelled("Dropdown", "Values", options=values),
        "touching": spot_sizes(),
        "opacity": opacity_slider(),
        "alpha": spot_opacity(),
    }
    lasso = Lasso(study.run.viewer)
    for name, value in first.items():
        controls[name].value = value

    def view(*, gene: str, touching: bool, opacity: float, alpha: float, **chosen: str) -> tuple[Figure, str]:
        controls["gene"].offer(*every.offered(**chosen))
        seen = every.view(gene=gene, **chosen)
        outline = lasso.outline(seen.section)
        lasso.show(seen)
        return draw(seen, touching=touching, opacity=opacity, alpha=alpha, polygon=outline), sentence(seen)

    return Board(controls, view, lasso=lasso)


def view_sections(
    files: list[SectionFiles], *, matrix: str | None = None, section: str = "", gene: str = "", transform: str = ""
) -> Board:
    """Return the viewer of sections as their readers give them; ``show()`` displays it.

    Sections are read when they are picked, and only the last is kept.

    Parameters
    ----------
    files
        From `histocrypt.explore.survey.study_sections`.
    matrix
        The study's ``target.matrix``, e.g. ``obsm:celltype_prop_major``; None for the counts.
    section, gene, transform
        What to open with; the gene (or cell type) by symbol or id. Empty: the first section that measured it, its
        most abundant gene, depth-normalised (or its most abundant cell type's proportions).

    Raises
    ------
    InputError
        If a name is unknown, or no section measured the gene.
    """
    from histocrypt.report.gene_search import GeneSearch
    from histocrypt.targets.matrix import noun

    by_id = {one.id: one for one in files}
    if section and section not in by_id:
        raise unknown_name("section", section, by_id, field="section")
    values_of = OF_COUNTS if matrix is None else OF_MATRIX
    transform = transform or next(iter(values_of))
    if transform not in values_of:
        raise unknown_name("transform", transform, values_of, field="transform")

    @lru_cache(maxsize=1)
    def read(name: str) -> tuple[Section, list[str], np.ndarray, float]:
        from histocrypt.sections.read import read_section

        one = read_section(by_id[name])
        return one, most_abundant(one, matrix), *one.image.thumbnail(MAX_SIDE)

    def start() -> tuple[str, str]:
        refused: InputError | None = None
        for name in [section] if section else by_id:
            try:
                one, common, *_ = read(name)
                given = gene or common[0]
                readable = gene_values(one, given, STORED, matrix)[0]
                unique = _names(one, matrix)[1].count(readable) == 1
                return name, readable if unique else given
            except InputError as error:
                refused = refused or error
        raise refused or InputError("there is no section to look at")

    section, gene = start()
    values = [(words, name) for name, words in values_of.items()]
    controls = {
        "gene": GeneSearch(noun(matrix).capitalize(), gene),
        "section": labelled("Dropdown", "Section", options=list(by_id), value=section),
        "transform": labelled("Dropdown", "Values", options=values, value=transform),
        "touching": spot_sizes(),
        "opacity": opacity_slider(),
    }

    def view(*, section: str, gene: str, transform: str, touching: bool, opacity: float) -> tuple[Figure, str]:
        one, common, thumbnail, scale = read(section)
        controls["gene"].offer({name: name for name in common}, "Largest first.")
        name, values = gene_values(one, gene, transform, matrix)
        figure = draw(one, values, thumbnail, scale, title=name, touching=touching, opacity=opacity)
        return figure, sentence(one, name, values, values_of[transform])

    return Board(controls, view)


def most_abundant(section: Section, matrix: str | None = None) -> list[str]:
    """Return the readable names of the genes with the most counts (or of the largest cell types), largest first."""
    from histocrypt.targets.matrix import raw_values

    ids, names = _names(section, matrix)
    if matrix is None:
        totals = np.asarray(section.adata.X.sum(axis=0)).ravel()
    else:
        totals = raw_values(section.adata, ids, matrix=matrix, section=section.id).sum(axis=0)
    order = np.argsort(-totals, kind="stable")
    return list(dict.fromkeys(names[i] for i in order))


def _names(section: Section, matrix: str | None) -> tuple[list[str], list[str]]:
    """Return the ids and the readable names of what a section measured."""
    from histocrypt.pipeline.predictions import symbols_of
    from histocrypt.targets.matrix import names_of, noun

    ids = names_of(section.adata, matrix, section=section.id).tolist()
    if not ids:
        raise InputError(f"section {section.id} measured no {noun(matrix)}", fix="pick another section")
    return ids, ids if matrix is not None else symbols_of(section.adata).tolist()


def gene_values(section: Section, gene: str, transform: str, matrix: str | None = None) -> tuple[str, np.ndarray]:
    """Return the readable name of a gene and its (n,) values; depth is over all genes of the section.

    Raises
    ------
    InputError
        If the section did not measure it.
    """
    from histocrypt.report.views import find_gene
    from histocrypt.targets.matrix import raw_values, targets_of

    ids, names = _names(section, matrix)
    found = find_gene(ids, names, gene, where=f"in section {section.id}")
    about = {"matrix": matrix, "section": section.id}
    asked = [found] if matrix is None else ids  # ranks within a spot are among all columns of a matrix
    if transform == STORED:
        values = raw_values(section.adata, asked, **about)
    else:
        values = targets_of(section.adata, asked, [transform], **about)[transform]
    return names[ids.index(found)], np.asarray(values[:, asked.index(found)], dtype=np.float64)


def sentence(section: Section, name: str, values: np.ndarray, units: str) -> str:
    """Return what the picture shows, in words."""
    seen = 100 * (values > 0).mean()
    flat = " It has the same value at every spot." if np.ptp(values) == 0 else ""
    return (
        f"{name} in section {section.id} of patient {section.patient} ({units}): found at {seen:.0f} % of "
        f"{section.n_spots} spots, median {np.median(values):.2f}, highest {values.max():.2f}.{flat}"
    )


def draw(
    section: Section,
    values: np.ndarray,
    thumbnail: np.ndarray,
    scale: float,
    *,
    title: str,
    touching: bool = False,
    opacity: float,
) -> Figure:
    """Draw the H&E beside the values of a gene over the same tissue, with a scale bar.

    Parameters
    ----------
    section
        The section as read.
    values
        (n,) values of one gene.
    thumbnail, scale
        (h, w, 3) uint8, and its pixels per full-resolution pixel.
    title
        Name of the gene.
    touching
        Draw spots so large that they nearly touch, instead of as large as they are on the tissue.
    opacity
        Of the H&E under the spots, 0 to 1.
    """
    from histocrypt.evaluation import maps
    from histocrypt.evaluation.figures import canvas, style
    from histocrypt.tissue.preprocess import spot_diameter_um

    coords = section.coords * scale
    spacing = spot_pitch(coords)
    low, high = maps.window(coords, spacing)
    diameter = maps.TOUCHING * spacing if touching else spot_diameter_um(section) / section.um_per_px * scale
    with style():
        figure, axes = canvas(1, 2, figsize=(8.0, 0.4 + 3.5 * (high[1] - low[1]) / (high[0] - low[0])))
        axes[0].imshow(thumbnail, interpolation="bilinear")
        maps.spot_map(axes[1], coords, values, diameter=diameter, image=thumbnail, opacity=opacity)
        for axis, name in zip(axes, ("H&E", title), strict=True):
            maps.frame(axis, low, high)
            axis.set_title(name, fontsize=10)
        maps.scale_bar(axes[0], low, high, section.um_per_px / scale)
    return figure
