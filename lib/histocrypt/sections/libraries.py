"""Several slides in one table of spots: told apart by what the table says, or refused, but never overlaid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.identity import id_text, safe_id

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

NAMING = (
    "section",
    "section_id",
    "library_id",
    "library",
    "slide",
    "slide_id",
    "sample_id",
    "sample",
)
"""Columns of ``obs`` that name the slide of a spot; the first with several values is heeded."""
HINTING = ("batch", "orig.ident", "dataset", "image_id")
"""Columns that may name it, or something else; they are heeded where spots lie over each other."""
CORE = re.compile(r"[ACGT]{12,}|\d+x\d+")
"""What of a barcode is the spot's own on every slide; what stands before and behind it tells slides apart."""
GEM_WELL = re.compile(r"[ACGT]{14,}(-\d+)\Z")
"""A barcode of 10x Genomics with the number of its slide, which is -1 in every run of one slide."""


@dataclass(frozen=True)
class Slides:
    """Which spot belongs to which slide."""

    names: list[str]
    labels: np.ndarray
    """(n,) str, a name each."""
    field: str
    """Where it is written."""
    own: bool = True
    """Whether the names are those of slides, and not numbers of parts such as 0 and 1."""

    def section_id(self, name: str, stem: str) -> str:
        """Return the section id of a slide in the file ``stem``."""
        return safe_id(name if self.own else f"{stem}_{name}")


def slides_in(adata: AnnData, file: Path) -> Slides | None:
    """Return the slides of a table; None where it is of one.

    Parameters
    ----------
    adata
        ``obs``, names of spots, ``uns["spatial"]`` and, where they are known, coordinates; counts are not looked at.
    file
        What errors name.

    Raises
    ------
    InputError
        If there are several slides and nothing says which spot is of which.
    """
    libraries = libraries_in(adata)
    by_lower = {str(name).lower(): name for name in adata.obs.columns}
    named = [found for name in NAMING if name in by_lower and (found := _by_column(adata, by_lower[name], file))]
    for one in named[:1]:
        _check_within(one, named[1:], file)
        return one
    crowded = _crowded(adata)
    if not crowded and len(libraries) < 2:
        return None
    if by_barcode := _by_barcode(adata, libraries, surely=bool(crowded)):
        return by_barcode
    for name in HINTING if crowded else ():
        if name in by_lower and (found := _by_column(adata, by_lower[name], file)):
            return Slides(found.names, found.labels, found.field, own=False)
    if crowded:
        raise InputError(
            f"spots are of several slides: {crowded}, and nothing says which spot is of which slide",
            file=file,
            field="obs",
            expected="a column library_id with the slide of each spot",
            fix="write one file per slide",
        )
    return None


def own_slide(adata: AnnData, part: str, section: str, file: Path) -> tuple[AnnData, str, bool]:
    """Return the spots of one slide with its own library alone, where that is written, and whether it has company.

    Parameters
    ----------
    part
        Name of the slide; "" where the file is of one.
    section
        Section id, which may be the name of the library.

    Raises
    ------
    InputError
        If there are several slides and none is named, an unknown one is named, or several libraries might be its own.
    """
    slides = slides_in(adata, file)
    if slides is not None and part not in slides.names:
        raise InputError(
            f"holds {len(slides.names)} slides" if not part else f"holds no slide {part!r}",
            file=file,
            field=slides.field,
            value=slides.names[:5],
            fix=f"name one as {file.name}/{slides.names[0]}",
        )
    field, alone = "", True
    if slides is not None:
        chosen = slides.labels == part
        alone = len(libraries_in(adata)) < 2 and not _boxes_overlap(adata, slides)
        field = f"{slides.field} = {part!r}, one of {len(slides.names)}"
        adata = adata[chosen].copy()
    _keep_library(adata, part, section, file, alone=alone)
    return adata, field, alone


def gem_wells(names: Iterable[str]) -> list[str]:
    """Return the endings, -1 and -2 for example, of barcodes of several slides; none where they are of one."""
    wells = set()
    for name in names:
        match = GEM_WELL.search(str(name))
        if match is None:
            return []
        wells.add(match[1])
    return sorted(wells) if len(wells) > 1 else []


def libraries_in(adata: AnnData) -> list[str]:
    """Return the names of the libraries in ``uns["spatial"]``."""
    spatial = adata.uns.get("spatial")
    if not isinstance(spatial, Mapping):
        return []
    return [str(name) for name, content in spatial.items() if isinstance(content, Mapping)]


def _keep_library(adata: AnnData, part: str, section: str, file: Path, *, alone: bool) -> None:
    """Leave in ``uns["spatial"]`` the library of this slide, and none where it is not among several slides'."""
    libraries = libraries_in(adata)
    if not libraries or (len(libraries) == 1 and alone):
        return
    lower = {str(name).lower(): name for name in adata.obs.columns}
    written = {
        id_text(value) for name in (*NAMING, *HINTING) if name in lower for value in adata.obs[lower[name]].unique()
    }
    own = [name for name in libraries if name in {part, *written}] or [
        name for name in libraries if safe_id(name) == section
    ]
    if len(own) > 1 or (not own and alone):
        raise InputError(
            f"holds {len(libraries)} libraries, and nothing says which is that of the spots",
            file=file,
            field="uns['spatial']",
            value=libraries[:5],
            expected="a column obs['library_id'] that names it",
            fix="keep the one that belongs to the spots",
        )
    spatial = adata.uns["spatial"]
    adata.uns["spatial"] = {name: spatial[name] for name in own}


def _by_column(adata: AnnData, column: str, file: Path) -> Slides | None:
    """Return the slides by a column; None where it holds fewer than two names, or one for nearly every spot."""
    codes, values = adata.obs[column].factorize()
    texts = np.array([*(id_text(value) for value in values), ""], dtype=object)  # code -1 is an empty cell
    labels = texts[codes].astype(str)
    names = sorted({*texts.tolist()} - {""})
    if not 1 < len(names) <= max(2, adata.n_obs // 2):
        return None
    if (labels == "").any():
        raise InputError(
            f"no slide is named for {int((labels == '').sum())} of {adata.n_obs} spots",
            file=file,
            field=f"obs[{column!r}]",
            value=str(adata.obs_names[int((labels == "").argmax())]),
            expected="the slide of every spot where there are several",
        )
    return Slides(names, labels, f"obs[{column!r}]")


def _check_within(slides: Slides, others: list[Slides], file: Path) -> None:
    """Refuse a slide that another column parts: C1 of one sample and C1 of another are two."""
    for other in others:
        pairs = set(zip(slides.labels.tolist(), other.labels.tolist(), strict=True))
        if len(pairs) > len(slides.names):
            name = next(one for one in slides.names if sum(pair[0] == one for pair in pairs) > 1)
            raise InputError(
                f"{slides.field} and {other.field} divide the spots differently: {name!r} is several in the latter",
                file=file,
                field=slides.field,
                value=sorted(pair[1] for pair in pairs if pair[0] == name)[:5],
                fix="write one file per slide, or one column that names it",
            )


def _by_barcode(adata: AnnData, libraries: list[str], *, surely: bool) -> Slides | None:
    """Return the slides by what stands beside the barcode proper, such as the ``-slide1`` that scanpy adds."""
    rests = [CORE.sub("", name, count=1).strip("-_:. ") for name in adata.obs_names.astype(str)]
    shared = [name for name in libraries if any(rest == name or rest.endswith(name) for rest in set(rests))]
    if len(shared) > 1:
        longest = sorted(shared, key=len, reverse=True)
        rests = [next((name for name in longest if rest.endswith(name)), "") for rest in rests]
    names, labels = sorted(set(rests)), np.array(rests, dtype=str)
    if "" in names or not 1 < len(names) <= adata.n_obs // 2 or not (surely or len(shared) > 1):
        return None
    return Slides(names, labels, "obs_names", own=len(shared) > 1)


def _crowded(adata: AnnData) -> str:
    """Return by what spots are seen to be of several slides; empty where they are not."""
    names = adata.obs_names.astype(str)
    cores = [found[0] for name in names if (found := CORE.search(name))]
    if len(cores) == len(names) > len(set(cores)):
        return f"{len(names)} spots have {len(set(cores))} barcodes"
    if wells := gem_wells(names):
        return f"barcodes end in {' and '.join(wells)}"
    if {"array_row", "array_col"} <= set(adata.obs):
        array = adata.obs[["array_row", "array_col"]]
        if (array.nunique() > 1).all() and array.dropna().duplicated().any():
            row, column = array.dropna()[array.dropna().duplicated()].iloc[0]
            return f"array position {row}, {column} is taken more than once"
    return _too_near(adata)


def _too_near(adata: AnnData) -> str:
    """Return that many spots lie within others, where the table says how wide a spot is."""
    from scipy.spatial import cKDTree

    try:
        coords = np.asarray(adata.obsm["spatial"], dtype=float)
    except (KeyError, TypeError, ValueError):  # said properly by the validation
        return ""
    if coords.ndim != 2 or coords.shape[1] != 2 or len(coords) < 3:
        return ""
    coords = coords[np.isfinite(coords).all(axis=1)]
    spatial = adata.uns.get("spatial")
    factors = [
        content["scalefactors"].get("spot_diameter_fullres")
        for content in (spatial.values() if isinstance(spatial, Mapping) else ())
        if isinstance(content, Mapping) and isinstance(content.get("scalefactors"), Mapping)
    ]
    widths = [float(width) for width in factors if isinstance(width, (int, float, np.number))]
    nearest = cKDTree(coords).query(coords, k=2)[0][:, 1] if len(coords) > 2 else np.ones(1)
    least = 0.5 * min(widths) if widths else 0.0
    inside = float((nearest <= least).mean())
    if inside <= 0.1:
        return ""
    return f"{inside:.0%} of spots lie " + ("within another, by spot_diameter_fullres" if widths else "on another")


def _boxes_overlap(adata: AnnData, slides: Slides) -> bool:
    """Return whether the places of two slides overlap, so that they cannot be on one picture."""
    try:
        coords = np.asarray(adata.obsm["spatial"], dtype=float)[:, :2]
    except (KeyError, TypeError, ValueError, IndexError):
        return True
    boxes = []
    for name in slides.names:
        own = coords[slides.labels == name]
        own = own[np.isfinite(own).all(axis=1)]
        if len(own):
            boxes.append((own.min(axis=0), own.max(axis=0)))
    return any(
        bool((one[0] <= two[1]).all() and (two[0] <= one[1]).all())
        for number, one in enumerate(boxes)
        for two in boxes[number + 1 :]
    )
