"""One predicted gene over its tissue, as a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.evaluation import maps
from histocrypt.evaluation.figures import canvas, save, style
from histocrypt.pipeline.predictions import read_h5ad, symbols_of
from histocrypt.spatial import spot_pitch

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

TUMOUR = "tumour"
LONGEST_SIDE = 1400
UNITS = {"log1p_cp10k": "ln(1 + counts per 10,000)", "log1p": "ln(1 + counts)", "log2p1": "log2(1 + counts)"}


def write_map(path: str | Path, gene: str, output: str | Path | None = None, *, section: str | None = None) -> str:
    """Draw a gene of a prediction file over the tissue and write the picture; return one line that says so.

    Parameters
    ----------
    path
        Predictions (``.h5ad``).
    gene
        Id or symbol, of a gene of any head; ``tumour`` for the probability of tumour.
    output
        PNG, SVG or PDF; ``<gene>.png`` if not given.
    section
        Which section, where the file holds several.

    Raises
    ------
    InputError
        If the file is no prediction, the gene is not predicted, or the section is not in it.
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
    name, values, unit = values_of(adata, gene, path)
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
        raise InputError("is no picture", file=out, field="--output", expected="a name that ends in .png, .svg or .pdf")
    image, scale = picture(about)
    um = None if "places" in about else about.get("um_per_px")
    title = f"{name} · {section or known[0]} · {about.get('title', about.get('model', ''))}"
    save(draw(coords, values[mine], title=title, unit=unit, um_per_px=um, image=image, scale=scale), out)
    return f"{out}: {name} at {int(mine.sum())} spots"


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
            found = np.flatnonzero(np.char.upper(names.astype(str)) == gene.upper())
            if len(found):
                column = int(found[0])
                return str(symbols[column]), np.asarray(values[:, column], dtype=np.float64).ravel(), unit
    every = [str(one) for _, symbols, _, _ in heads for one in symbols]
    some = ", ".join(sorted(every)[:8])
    raise InputError(
        f"{gene} is not predicted", file=path, field="--gene", expected=f"one of {len(every)} names, e.g. {some}"
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
        image, scale = open_image(path).thumbnail(LONGEST_SIDE)
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
) -> Figure:
    """Draw (n,) values at (n, 2) places, in full-resolution pixels, over a picture of ``scale`` pixels per such pixel.

    Without ``um_per_px`` distances are not known, and there is no scale bar.
    """
    coords = coords * scale
    spacing = spot_pitch(coords)
    low, high = maps.window(coords, spacing)
    aspect = float((high[1] - low[1]) / (high[0] - low[0]))
    with style():
        figure, axes = canvas(figsize=(6.4, 5.4 * min(max(aspect, 0.4), 2.0) + 0.4))
        diameter = maps.TOUCHING * spacing
        bar = maps.spot_map(axes, coords, values, diameter=diameter, alpha=0.85, image=image, opacity=0.6)
        bar.set_label(unit)
        maps.frame(axes, low, high)
        if um_per_px is not None:
            maps.scale_bar(axes, low, high, float(um_per_px) / scale)
        axes.set_title(title)
    return figure
