"""Spots on their tissue: measured, predicted and residual values side by side, over a picture of the section.

For the report, the viewers and single genes. Values are drawn in viridis, residuals in purple and orange: both can be
told apart by colour-blind readers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.evaluation.figures import save
from histocrypt.figure_style import INK, MUTED, RESIDUALS, VALUES, bare, canvas, style
from histocrypt.files import claim, says
from histocrypt.pipeline.predictions import read_h5ad, symbols_of
from histocrypt.sections.genes import GeneNames, meant_by
from histocrypt.spatial import spot_pitch
from histocrypt.trust import genes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_SIDE, GENE_MAP_LONGEST_SIDE = 640, 1400
"""Pixels of the picture under side-by-side maps, and under the map of a single gene."""
TOUCHING = 0.92  # of the spot pitch: spots drawn as large as they can be without overlapping
FADED = 0.35
RASTER_SIDE = 640
"""Pixels along the longest side of spots that are drawn as pixels."""
TUMOUR = "tumour"
MADE = "made by histocrypt map"
"""What a picture says of its maker, so that the next one may take its place."""
UNITS = {"log1p_cp10k": "ln(1 + counts per 10,000)", "log1p": "ln(1 + counts)", "log2p1": "log2(1 + counts)"}


def backdrop(section: AnnData, tiles: Path) -> tuple[np.ndarray | None, float]:
    """Return a picture of the section and its scale.

    Parameters
    ----------
    section
        A cleaned section; ``uns["spatial"]`` may hold a small image.
    tiles
        Its tile file, which may be absent.

    Returns
    -------
    (h, w, 3) uint8 and picture pixels per full-resolution pixel; (None, 1.0) where there is no picture.
    """
    found = _stored(section)
    if found is None and Path(tiles).is_file():
        found = _from_tiles(tiles)
    if found is None:
        return None, 1.0
    image, scale = found
    step = max(1, max(image.shape[:2]) // LONGEST_SIDE)
    return np.ascontiguousarray(image[::step, ::step]), scale / step


def _stored(section: AnnData) -> tuple[np.ndarray, float] | None:
    libraries = section.uns.get("spatial")
    for library in libraries.values() if isinstance(libraries, Mapping) else ():
        if not isinstance(library, Mapping):
            continue
        for name in ("hires", "lowres", "downscaled_fullres"):
            image = library.get("images", {}).get(name)
            scale = library.get("scalefactors", {}).get(f"tissue_{name}_scalef")
            if image is None or scale is None or np.ndim(image) != 3:
                continue
            image = np.asarray(image)[..., :3]
            if image.dtype != np.uint8:
                image = np.clip(image * (255 if image.max() <= 1 else 1), 0, 255).astype(np.uint8)
            return image, float(scale)
    return None


def _from_tiles(path: Path) -> tuple[np.ndarray, float]:
    import h5py

    with h5py.File(path) as file:
        coords = np.asarray(file["coords"], dtype=np.float64)
        side_px = float(file.attrs["tile_um"]) / float(file.attrs["um_per_px"])
        scale = LONGEST_SIDE / float((coords.max(axis=0) + side_px).max())
        side = max(1, round(side_px * scale))
        width, height = np.ceil((coords.max(axis=0) + side_px) * scale).astype(int) + 1
        canvas = np.full((height, width, 3), 255, dtype=np.uint8)
        rows = np.linspace(0, file["img"].shape[1] - 1, side).astype(int)
        for tile, (x, y) in zip(file["img"], np.round(coords * scale).astype(int), strict=True):
            top, left = max(y, 0), max(x, 0)
            piece = tile[rows][:, rows][top - y :, left - x :][: height - top, : width - left]
            canvas[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return canvas, scale


def side_by_side(
    panels: list[dict[str, Any]],
    coords: np.ndarray,
    *,
    um_per_unit: float,
    spacing: float,
    image: np.ndarray | None,
    diameter: float | None = None,
    opacity: float = FADED,
    alpha: float = 1.0,
    residual: bool = True,
    width: float = 7.4,
    raster: bool = False,
) -> Figure:
    """Draw the section's picture beside measured, predicted and residual maps of a few genes.

    Parameters
    ----------
    panels
        One a gene: ``title``, ``true`` (n,), ``predicted`` (n,); ``doubted`` makes the title grey.
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
    alpha
        Opacity of the spots, 0 to 1.
    residual
        Whether a last column shows predicted less measured values.
    width
        Of the whole, inches.
    raster
        Draw spots as pixels: several times faster where there are thousands, and too coarse to be enlarged.
    """
    low, high = window(coords, spacing)
    aspect = (high[1] - low[1]) / (high[0] - low[0])
    columns = 2 + residual + (image is not None)
    tall = len(panels) * (width / columns * aspect * 0.8 + 0.12) + 0.3
    with style():
        figure, axes = canvas(len(panels), columns, figsize=(width, tall), squeeze=False)
        for row, panel in zip(axes, panels, strict=True):
            true, predicted = panel["true"], panel["predicted"]
            least, most, reach = colour_limits(true, predicted)
            look = {"diameter": diameter or TOUCHING * spacing, "image": image, "opacity": opacity, "alpha": alpha}
            look["raster"] = raster
            if image is not None:
                row[0].imshow(image, interpolation="bilinear")
            first = int(image is not None)
            spot_map(row[first], coords, true, limits=(least, most), bar=False, **look)
            spot_map(row[first + 1], coords, predicted, limits=(least, most), **look)
            if residual:
                spot_map(row[-1], coords, predicted - true, limits=(-reach, reach), cmap=RESIDUALS, **look)
            for one in row:
                frame(one, low, high)
            row[0].set_ylabel(panel["title"], fontsize=9, **({"color": MUTED} if panel.get("doubted") else {}))
            scale_bar(row[0], low, high, um_per_unit)
        names = ["H&E"] * (image is not None) + ["measured", "predicted", "predicted − measured"][: 2 + residual]
        for one, name in zip(axes[0], names, strict=True):
            one.set_title(name, fontsize=9)
    return figure


def spot_map(
    axes: Axes,
    coords: np.ndarray,
    values: np.ndarray,
    *,
    diameter: float,
    limits: tuple[float, float] | None = None,
    cmap: str = VALUES,
    alpha: float = 1.0,
    image: np.ndarray | None = None,
    opacity: float = FADED,
    bar: bool = True,
    raster: bool = False,
) -> Any:
    """Draw (n,) ``values`` as discs of ``diameter`` at (n, 2) ``coords``, over a faded picture, with a colour bar.

    ``limits`` of the colours are those of the values if not given. Returns the bar, or None without one.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import Normalize

    if image is not None:
        axes.imshow(image, alpha=opacity, interpolation="bilinear")
    colours = ScalarMappable(Normalize(*(limits or colour_limits(values, values)[:2])), cmap)
    if raster:
        where, extent = disc_pixels(coords, diameter)
        rgba = np.vstack([colours.to_rgba(values, alpha=alpha, bytes=True), np.zeros((1, 4), np.uint8)])
        axes.imshow(rgba[where], extent=extent, interpolation="antialiased")
        return _bar(axes, colours) if bar else None
    size = np.full(len(coords), diameter)
    discs = EllipseCollection(
        size,
        size,
        np.zeros(len(coords)),
        units="x",
        offsets=coords,
        offset_transform=axes.transData,
        array=values,
        cmap=cmap,
        alpha=alpha,
        linewidths=0.2,
        edgecolors=MUTED,
    )
    axes.add_collection(discs)
    discs.set_norm(colours.norm)
    return _bar(axes, discs) if bar else None


def _bar(axes: Axes, colours: Any) -> Any:
    drawn = axes.figure.colorbar(colours, ax=axes, shrink=0.75, pad=0.02, aspect=18)
    drawn.outline.set_visible(False)
    drawn.ax.tick_params(labelsize=7, length=2)
    return drawn


def disc_pixels(coords: np.ndarray, diameter: float) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Return which of n spots each pixel shows, -1 for none, and the extent of the pixels as ``imshow`` takes it.

    The longest side has `RASTER_SIDE` pixels; a spot has at least one.
    """
    low, high = coords.min(axis=0) - diameter, coords.max(axis=0) + diameter
    unit = (high - low).max() / RASTER_SIDE
    width, height = np.maximum(np.ceil((high - low) / unit).astype(int), 1)
    reach = int(np.ceil(diameter / 2 / unit))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.hypot(x, y) * unit <= max(diameter / 2, unit)
    centre = ((coords - low) / unit).astype(int)
    column = np.clip(centre[:, :1] + x[disc], 0, width - 1)
    row = np.clip(centre[:, 1:] + y[disc], 0, height - 1)
    where = np.full((height, width), -1)
    where[row, column] = np.arange(len(coords))[:, None]
    return where, (low[0], low[0] + width * unit, low[1] + height * unit, low[1])


def window(coords: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (x, y) of what is shown: all spots and a little around them."""
    return coords.min(axis=0) - 1.2 * spacing, coords.max(axis=0) + 1.2 * spacing


def frame(axes: Axes, low: np.ndarray, high: np.ndarray) -> None:
    """Show ``low`` to ``high`` with y downwards, without ticks or frame."""
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal")
    bare(axes)


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


def write_map(
    path: str | Path,
    gene: str | None = None,
    output: str | Path | None = None,
    *,
    section: str | None = None,
    overwrite: bool = False,
) -> str:
    """Draw a gene of a prediction file over the tissue and write the picture; return one line that says so.

    Parameters
    ----------
    path
        Predictions (``.h5ad``).
    gene
        Id or symbol, of a gene of any head; ``tumour`` for the probability of tumour; None: the one trusted most.
    output
        PNG, SVG or PDF; ``<gene>.png`` if not given.
    section
        Which section, where the file holds several.
    overwrite
        Replace a file that this command did not make.

    Raises
    ------
    InputError
        If something else lies at ``output``, the file is no prediction, or gene or section are not in it.
    """
    adata = read_h5ad(Path(path), what="prediction file")
    about = adata.uns.get("prediction")
    if about is None:
        raise InputError(
            "this is not a prediction file",
            file=path,
            field='uns["prediction"]',
            expected="a file written by `histocrypt predict`",
        )
    transform = str(about.get("transform", ""))
    if gene is None and (order := genes.ranked(adata.var, transform)) is None:
        raise InputError("does not tell which gene is trusted most", file=path, field="--gene", fix="name a gene")
    name, values, unit = values_of(adata, str(adata.var_names[order[0]]) if gene is None else gene, path)
    here = adata.obs["section"].astype(str).to_numpy()
    known = sorted(set(here))
    if section is None and len(known) > 1:
        raise InputError(
            f"holds {len(known)} sections", file=path, field="--section", expected="one of " + ", ".join(known[:10])
        )
    if section is not None and section not in known:
        raise unknown_name("section", section, known, file=path, field="--section")
    mine = here == (section or known[0])
    coords = np.asarray(adata.obsm["spatial"], dtype=np.float64)[mine]
    out = Path(output) if output is not None else Path(re.sub(r"[^A-Za-z0-9_.-]+", "-", name) + ".png")
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(
            "is not a picture format", file=out, field="--output", expected="a name that ends in .png, .svg or .pdf"
        )
    claim(out, inputs=(path, about.get("image")), mine=lambda there: says(there, MADE), overwrite=overwrite)
    image, scale = picture(about)
    um = None if "places" in about else about.get("um_per_px")
    title = f"{name} · {section or known[0]} · {about.get('title', about.get('model', ''))}"
    row = np.flatnonzero(symbols_of(adata) == name)
    said = genes.words(adata.var, transform, str(adata.var_names[row[0]])) if len(row) == 1 else ""
    how = {"title": title, "unit": unit, "um_per_px": um, "image": image, "scale": scale, "note": said}
    save(draw(coords, values[mine], **how), out, made=MADE)
    return f"{out}: {name} at {int(mine.sum())} spots" + (f"; {said}" if said else "")


def values_of(adata: AnnData, gene: str, path: str | Path) -> tuple[str, np.ndarray, str]:
    """Return a readable name, (n,) values and their unit, from whichever head predicts the gene."""
    if gene.lower() in (TUMOUR, "tumor") and "tumour_probability" in adata.obs:
        proxy = adata.uns["prediction"].get("label", {}).get("proxy", False)
        name = "tumour (proxy)" if proxy else "tumour"
        return name, adata.obs["tumour_probability"].to_numpy(dtype=np.float64), "probability"
    heads = [(adata.var_names.to_numpy(dtype=str), symbols_of(adata), adata.X, _unit(adata))]
    if "auxiliary" in adata.obsm:
        ids, symbols = (np.asarray(adata.uns[f"auxiliary_{one}"], dtype=str) for one in ("names", "symbols"))
        heads.append((ids, symbols, adata.obsm["auxiliary"], UNITS["log1p_cp10k"]))
    for ids, symbols, values, unit in heads:
        for names in (ids, symbols):
            found = np.flatnonzero(np.char.upper(names.astype(str)) == gene.upper()).tolist()
            if not found and names is symbols:  # an id with a version, or of a prefixed genome
                found = [place for place in meant_by([gene], GeneNames.of(ids, symbols)).tolist() if place >= 0]
            if found:
                column = found[0]
                return str(symbols[column]), np.asarray(values[:, column], dtype=np.float64).ravel(), unit
    every = [str(one) for _, symbols, _, _ in heads for one in symbols]
    some = ", ".join(sorted(every)[:8])
    close = get_close_matches(gene.upper(), every, n=1)
    raise InputError(
        f"{gene} is not predicted",
        file=path,
        field="--gene",
        expected=f"one of {len(every)} names, e.g. {some}",
        fix=f"did you mean {close[0]}?" if close else None,
    )


def _unit(adata: AnnData) -> str:
    transform = str(adata.uns["prediction"].get("transform", ""))
    return UNITS.get(transform, transform)


def picture(about: Any) -> tuple[np.ndarray | None, float]:
    """Return the slide's small image and its scale; (None, 1.0) where it is not known or no longer there."""
    from histocrypt.sections.image import open_image

    path = about.get("image")
    if not path or not Path(path).exists():
        return None, 1.0
    try:
        image, scale = open_image(path).thumbnail(GENE_MAP_LONGEST_SIDE)
    except InputError:
        return None, 1.0
    return image, scale


def draw(
    coords: np.ndarray,
    values: np.ndarray,
    *,
    title: str,
    unit: str,
    um_per_px: float | None,
    image: np.ndarray | None,
    scale: float = 1.0,
    note: str = "",
) -> Figure:
    """Draw (n,) values at (n, 2) places, in full-resolution pixels, over a picture of ``scale`` pixels per such pixel.

    A note stands below, in grey; the title is grey where the note begins with a doubt (`trust.genes.words`).
    Without ``um_per_px`` distances are not known, and there is no scale bar.
    """
    coords = coords * scale
    spacing = spot_pitch(coords)
    low, high = window(coords, spacing)
    aspect = float((high[1] - low[1]) / (high[0] - low[0]))
    with style():
        figure, axes = canvas(figsize=(6.4, 5.4 * min(max(aspect, 0.4), 2.0) + 0.4))
        diameter = TOUCHING * spacing
        bar = spot_map(axes, coords, values, diameter=diameter, alpha=0.85, image=image, opacity=0.6)
        bar.set_label(unit)
        frame(axes, low, high)
        if um_per_px is not None:
            scale_bar(axes, low, high, float(um_per_px) / scale)
        axes.set_title(title, **({"color": MUTED} if note.startswith(genes.DOUBTED) else {}))
        axes.set_xlabel(fill(note, 80), color=MUTED, fontsize=7.5)
    return figure
