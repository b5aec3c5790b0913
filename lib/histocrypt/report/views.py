"""What a viewer shows of a study: one gene of one held-out section, as measured and as one model predicts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.data.folds import RUN_FIRST
from histocrypt.errors import InputError, unknown_name
from histocrypt.evaluation import maps, wording
from histocrypt.evaluation.figures import INK
from histocrypt.evaluation.maps import backdrop
from histocrypt.evaluation.metrics import is_constant, pearson
from histocrypt.evaluation.scores import read_folds, title_of
from histocrypt.pipeline.predictions import Joined, PredictionFile, as_mapping, join, read_h5ad, symbols_of
from histocrypt.spatial import spot_pitch
from histocrypt.targets.matrix import noun
from histocrypt.trust import genes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from histocrypt.study import Study

WIDTH = 9.2
"""Inches of the four maps."""
MANY = 2_000
"""Spots from which on they are drawn as pixels, not as discs."""


@dataclass(frozen=True)
class Tissue:
    """What lies under the spots of a section."""

    picture: np.ndarray | None
    """(h, w, 3) uint8, or None."""
    scale: float
    """Picture pixels per full-resolution pixel; 1 without a picture."""
    um_per_unit: float
    """Micrometres per picture pixel."""
    diameter: float | None
    """Diameter of a spot in picture pixels; None where it is not known."""


@dataclass(frozen=True)
class View:
    """One gene of one section: measured, and predicted by one model that never saw this patient."""

    model: str
    section: str
    patient: str
    gene: str
    symbol: str
    transform: str
    barcodes: np.ndarray
    """(n,) str."""
    coords: np.ndarray
    """(n, 2) x, y in picture pixels."""
    true: np.ndarray
    """(n,) measured values, in units of the transform."""
    predicted: np.ndarray
    """(n,) predicted values, in units of the transform."""
    pearson: float
    """Correlation over the spots; 0 for a constant prediction, NaN where the measured values do not vary."""
    notes: tuple[str, ...]
    """What a reader must know of this view."""
    doubted: bool
    """The model says that this gene is not worth trusting (`trust.genes`)."""
    tissue: Tissue


class Unfinished(InputError):
    """There is nothing to look at yet: in a notebook one sentence, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Views:
    """Every view of a study whose models have predicted held-out sections. Files are read as they are asked for.

    Parameters
    ----------
    study
        The study.
    models
        Those to be seen; None for all that have predicted a fold.

    Raises
    ------
    Unfinished
        If no model of the study has predicted a held-out section yet.
    """

    def __init__(self, study: Study, *, models: Sequence[str] | None = None) -> None:
        self.study = study
        if not study.run.folds.is_file():
            raise Unfinished("nobody has said yet which patients are held out", file=study.run.folds, fix=RUN_FIRST)
        folds = read_folds(study)
        self.fold_of = {section: fold["name"] for fold in folds for section in fold["test_sections"]}
        """Held-out section -> the fold that held it out."""
        self._folds = [fold["name"] for fold in folds]
        self.models = [
            model
            for model in (study.scored_names if models is None else models)
            if any(study.run.prediction(model, f).is_file() for f in self._folds)
        ]
        """Models with predictions, in the study's order."""
        if not self.models:
            problem = "no model of this study has predicted a held-out section"
            raise Unfinished(problem, file=study.run.root / "predictions", fix=RUN_FIRST)
        # Two of each: a person compares two models, or two sections, back and forth. Of files, names alone are kept.
        self.section = lru_cache(maxsize=2)(self._section)
        self.prediction = lru_cache(maxsize=64)(self._prediction)
        self.joined = lru_cache(maxsize=2)(self._joined)
        self.pearson = lru_cache(maxsize=2)(self._pearson)
        self.tissue = lru_cache(maxsize=2)(self._tissue)
        self.offered = lru_cache(maxsize=8)(self._offered)

    @property
    def sections(self) -> list[str]:
        """Held-out sections, by name."""
        return sorted(self.fold_of)

    def predicted(self, model: str) -> list[str]:
        """Return the held-out sections of the folds that a model has predicted; all where it has not predicted any."""
        there = {fold for fold in self._folds if self.study.run.prediction(model, fold).is_file()}
        return [name for name in self.sections if self.fold_of[name] in there] or self.sections

    @property
    def transforms(self) -> list[str]:
        """Target transforms, the main one first."""
        return list(self.study.target.transforms)

    @property
    def genes(self) -> dict[str, str]:
        """Every gene of any fold's panel: id -> readable name."""
        if not hasattr(self, "_genes"):
            self._genes = {gene: name for fold in self._folds for gene, name in self._panel(fold)}
        return self._genes

    def _panel(self, fold: str) -> list[tuple[str, str]]:
        import anndata as ad
        import h5py
        from anndata.io import read_elem

        files = [path for path in (self.study.run.prediction(m, fold) for m in self.models) if path.is_file()]
        if not files:
            return []
        with h5py.File(files[0]) as file:
            var = read_elem(file["var"])
        return list(zip(map(str, var.index), symbols_of(ad.AnnData(var=var)), strict=True))

    def _section(self, section: str) -> AnnData:
        if section not in self.fold_of:
            raise unknown_name("held-out section", section, self.fold_of, field="section")
        return read_h5ad(self.study.run.section(section), what="cleaned section", fix="run the study again")

    def _prediction(self, model: str, fold: str) -> PredictionFile:
        if model not in self.models:
            raise unknown_name("model", model, self.models, field="model")
        return PredictionFile(self.study.run.prediction(model, fold), fix="train this model on this fold first")

    def _joined(self, model: str, section: str, transform: str) -> Joined:
        if transform not in self.transforms:
            raise unknown_name("transform", transform, self.transforms, field="transform")
        annotated = self.section(section)
        prediction = self.prediction(model, self.fold_of[section]).of(section)
        if not prediction.n_obs:
            raise InputError(
                f"{title_of(model)} has no prediction of section {section}",
                fix="pick another model or section, or predict this fold again",
            )
        return join(prediction, annotated, section, transforms=[transform])

    def _pearson(self, model: str, section: str, transform: str) -> np.ndarray:
        """Return (g,) correlations of the joined genes."""
        both = self.joined(model, section, transform)
        return pearson(both.true[transform], both.predicted[transform])

    def _tissue(self, section: str) -> Tissue:
        annotated = self.section(section)
        picture, scale = backdrop(annotated, self.study.run.tiles(section))
        about = as_mapping(annotated.uns.get("preprocessing"))
        um_per_px, spot_um = float(about.get("um_per_px", 1.0)), about.get("spot_diameter_um")
        diameter = float(spot_um) / um_per_px * scale if spot_um else None
        return Tissue(picture, scale, um_per_px / scale, diameter)

    def ranked(self, model: str, section: str, transform: str) -> list[str]:
        """Return the ids of the genes that a model predicts in a section: trusted first, as far as it tells."""
        there = self.joined(model, section, transform).genes.tolist()
        order = self.prediction(model, self.fold_of[section]).ranked(transform)
        return there if order is None else [gene for gene in order if gene in set(there)]

    def _offered(self, model: str, section: str, transform: str) -> tuple[dict[str, str], str]:
        """Return names to pick from, trusted first, each with how far it may be trusted, and what order that is.

        Where two genes share a symbol, each goes by its id. Genes of other folds' panels come last.
        """
        there = self.ranked(model, section, transform)
        file = self.prediction(model, self.fold_of[section])
        shared = {name for name, count in Counter(self.genes.values()).items() if count > 1}
        named = {gene: gene if name in shared else name for gene, name in self.genes.items()}
        labels = {named[gene]: named[gene] + genes.mark(file.var, transform, gene) for gene in there}
        kind = noun(self.study.target.matrix)
        others = {name: f"{name} (not predicted here)" for gene, name in named.items() if gene not in set(there)}
        worth, told = file.trusted(transform), file.ranked(transform) is not None
        if worth is not None:
            count = int(worth[there].sum())
            order = (
                f"Trusted first: {count} of the {len(there)} predicted here are worth trusting; r is that of training."
            )
        else:
            order = "In the order of r in training." if told else f"This model does not say which {kind}s to trust."
        return labels | others, order

    def view(self, model: str, section: str, gene: str, *, transform: str | None = None) -> View:
        """Return one view; the gene is given by id or by symbol.

        Raises
        ------
        InputError
            If a name is unknown, the section has no prediction by this model, or the gene none in this section.
        """
        transform = transform or self.transforms[0]
        both = self.joined(model, section, transform)
        gene = find_gene(list(self.genes), list(self.genes.values()), gene, where="in any panel of this study")
        name = self.genes[gene]
        column = np.flatnonzero(both.genes == gene)
        if not len(column):
            why = (
                f"{name} was not measured in section {section}"
                if gene in both.unscored_genes
                else f"{name} is not in the panel of {self.fold_of[section]}, so no model predicts it in {section}"
            )
            raise InputError(why, fix=f"pick another {noun(self.study.target.matrix)} or section")
        true, predicted = both.true[transform][:, column[0]], both.predicted[transform][:, column[0]]
        tissue = self.tissue(section)
        said = self.prediction(model, self.fold_of[section]).trust_words(transform, gene)
        return View(
            model=model,
            section=section,
            patient=both.patient,
            gene=gene,
            symbol=name,
            transform=transform,
            barcodes=np.array([spot.removeprefix(f"{section}:") for spot in both.spots]),
            coords=both.coords * tissue.scale,
            true=true,
            predicted=predicted,
            pearson=float(self.pearson(model, section, transform)[column[0]]),
            notes=notes_on(true, predicted, unpredicted=len(both.unpredicted_spots), trust=said),
            doubted=said.startswith(genes.DOUBTED),
            tissue=tissue,
        )


def find_gene(ids: Sequence[str], symbols: Sequence[str], given: str, *, where: str) -> str:
    """Return the id of a gene given by id or by symbol (upper or lower case; the first where several share it).

    Raises
    ------
    InputError
        If there is none ``where`` it was looked for; the error names a few that look alike, not all.
    """
    if given in ids:
        return given
    wanted = given.strip().casefold()
    for gene, symbol in zip(ids, symbols, strict=True):
        if wanted in (gene.casefold(), symbol.casefold()):
            return gene
    close = get_close_matches(wanted.upper(), [symbol.upper() for symbol in symbols], n=3)
    fix = f"did you mean {' or '.join(close)}?" if close else f"{len(ids)} are there, such as {', '.join(symbols[:3])}"
    raise InputError(f"there is no {given!r} {where}", fix=fix)


def notes_on(true: np.ndarray, predicted: np.ndarray, *, unpredicted: int, trust: str = "") -> tuple[str, ...]:
    """Return what a reader must know of (n,) measured and predicted values: trust, constants, and spots left out."""
    notes = [f"What training says of it: {trust}."] if trust else []
    if is_constant(true[:, None])[0]:
        notes.append("The measured values are the same at every spot: no correlation can be computed.")
    elif is_constant(predicted[:, None])[0]:
        notes.append("The prediction is the same at every spot: its correlation counts as 0.")
    if unpredicted:
        notes.append(f"{wording.plural(unpredicted, 'spot')} of this section have no prediction and are not shown.")
    return tuple(notes)


def draw(
    view: View,
    *,
    touching: bool = False,
    opacity: float = maps.FADED,
    alpha: float = 1.0,
    polygon: np.ndarray | None = None,
) -> Figure:
    """Draw the H&E, measured, predicted and residual values side by side.

    Parameters
    ----------
    view
        From `Views.view`.
    touching
        Draw spots so large that they nearly touch, instead of as large as they are on the tissue.
    opacity
        Of the picture under the spots, 0 to 1.
    alpha
        Opacity of the spots, 0 to 1.
    polygon
        (k, 2) corners of a lasso in picture pixels, drawn on each map.
    """
    title = f"{view.symbol}\nr = {wording.number(view.pearson, 2)}"
    figure = maps.side_by_side(
        [{"title": title, "true": view.true, "predicted": view.predicted, "doubted": view.doubted}],
        view.coords,
        um_per_unit=view.tissue.um_per_unit,
        spacing=spot_pitch(view.coords),
        image=view.tissue.picture,
        diameter=None if touching else view.tissue.diameter,
        opacity=opacity,
        alpha=alpha,
        width=WIDTH,
        raster=len(view.true) > MANY,
    )
    if polygon is not None:
        for axes in tissues(figure):
            for colour, weight in (("white", 3.5), (INK, 1.5)):
                axes.fill(*polygon.T, facecolor="none", edgecolor=colour, linewidth=weight)
    return figure


def tissues(figure: Figure) -> list[Axes]:
    """Return the axes that show tissue: all but colour bars."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def sentence(view: View) -> str:
    """Return what a view shows, in words: for captions and for readers who do not see it."""
    about = (
        f"{view.symbol} in section {view.section} of patient {view.patient}, {wording.plural(len(view.true), 'spot')}, "
        f"{wording.TRANSFORM_WORDS.get(view.transform, view.transform)}: Pearson's r between measured and predicted by "
        f"{title_of(view.model)} is {wording.number(view.pearson, 3)}."
    )
    return " ".join([about, *view.notes])
