"""What of a prediction file goes out: one section's spots and genes, their places and their picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unknown_name
from histocrypt.paths import RunFolder
from histocrypt.pipeline.predictions import as_mapping, read_h5ad, read_prediction, symbols_of, transforms_of
from histocrypt.pipeline.regions import read_regions
from histocrypt.sections.genes import GeneNames, meant_by
from histocrypt.sections.image import open_image
from histocrypt.sections.resolution import bin_size
from histocrypt.spatial import spot_pitch
from histocrypt.trust.genes import ranked, trusted

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MADE = "made by histocrypt export"
"""What a file says of its maker, where its format has a place for that: then the next export may replace it."""
LONGEST_SIDE = 2000
"""Pixels of the picture that goes with the spots; the slide itself stays where it is."""
Polygons = tuple[tuple[tuple[np.ndarray, ...], ...], ...]
NAMES_OF_SPOTS = ("section", "patient", "barcode")


@dataclass(frozen=True)
class Format:
    """One format that predictions are written in."""

    suffix: str
    """How names of its files end."""
    write: Callable[[Content, Path], None]
    """Writes a section to a path that nothing lies at."""
    mine: Callable[[Path], bool] | None = None
    """Whether a file says that `write` made it; None where the format has no place for that."""
    library: str | None = None
    """The module that it needs beyond requirements.lock: of the extra ``export``."""
    on_slide: bool = False
    """Means nothing without places on a slide."""
    in_um: bool = False
    """Means nothing without the size of a pixel."""


@dataclass(frozen=True)
class Content:
    """One section of a prediction file."""

    section: str
    model: str
    """Its title."""
    transform: str
    """The units of `values`, as `targets.transforms` names them."""
    barcodes: np.ndarray
    """(n,) str, the names of the spots within their section."""
    genes: np.ndarray
    """(g,) str, ids as the model names them."""
    names: np.ndarray
    """(g,) str, no two alike: symbols, with the id in brackets where two genes share one."""
    values: np.ndarray
    """(n, g) float32."""
    told: pd.DataFrame
    """(g, ...) what the prediction says of each gene beyond its names; where the model tells it, ``training_pearson``,
    the correlation on training sections left out."""
    kinds: np.ndarray
    """(n,) str, how who drew regions classed them; empty of spots."""
    more: pd.DataFrame
    """(n, ...) numbers of each spot beyond genes, such as the probability of tumour."""
    coords: np.ndarray
    """(n, 2) float64 x, y in full-resolution pixels."""
    size_px: float
    """Diameter of a spot, or side of a square, in full-resolution pixels."""
    square: bool
    polygons: Polygons | None
    """Of regions that others drew, their pieces, each an outline and its holes; None of spots, or where their file is
    no longer there."""
    on_slide: bool
    """False of patches, which do not say where they lie."""
    um_per_px: float | None
    picture: np.ndarray | None
    """(h, w, 3) uint8 of the whole slide, small."""
    scale: float
    """Pixels of `picture` for each full-resolution pixel."""
    shown: int
    """The gene that colours, as a column of `values`."""
    notes: tuple[str, ...]
    """What is to be said of what is missing or taken for granted."""

    def adata(self) -> AnnData:
        """Return an AnnData as scanpy's tools expect it: symbols as names, ids in ``var["gene_ids"]``; no ``uns``."""
        import anndata
        import pandas as pd

        var = self.told.set_axis(pd.Index(self.names.astype(str), name="gene"))
        var.insert(0, "gene_ids", self.genes)
        obs = self.more.set_axis(pd.Index(self.barcodes.astype(str), name="barcode")).assign(section=self.section)
        return anndata.AnnData(self.values, obs=obs, var=var, obsm={"spatial": self.coords})

    def pieces(self) -> Iterator[list[list[np.ndarray]]]:
        """Yield of each spot or region its pieces, each an outline and its holes: (k, 2) full-resolution pixels."""
        if self.polygons is None:
            yield from ([[outline]] for outline in self.outlines())
        else:
            yield from ([list(piece) for piece in region] for region in self.polygons)

    def outlines(self) -> np.ndarray:
        """Return (n, k, 2) float64 corners of each spot, in full-resolution pixels, the last one the first again."""
        if self.square:
            ring = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) / 2
        else:
            turn = np.linspace(0, 2 * np.pi, CORNERS + 1)
            ring = np.column_stack([np.cos(turn), np.sin(turn)]) / 2
            ring[-1] = ring[0]
        return self.coords[:, None, :] + self.size_px * ring


CORNERS = 24
"""Of the polygon that stands for a disc: its area is 1 % less."""


def read_content(
    path: str | Path,
    *,
    section: str | None = None,
    genes: Sequence[str] = (),
    layer: str | None = None,
    colour: str | None = None,
    image: str | Path | None = None,
    um_per_px: float | None = None,
) -> Content:
    """Read what is to be exported of a prediction file.

    Parameters
    ----------
    path
        Predictions (``.h5ad``), of ``histocrypt predict`` or of a run.
    section
        Which section, where the file holds several.
    genes
        Ids or symbols, in the order wanted; none: all, those first that are trusted.
    layer
        Transform; None: the main one.
    colour
        Id or symbol of the gene that colours; None: the first one.
    image
        The slide, where the file does not name it, or it has moved.
    um_per_px
        Micrometres per full-resolution pixel, where the file does not tell.

    Raises
    ------
    InputError
        If the file is no prediction, or section, gene, layer or image are not there.
    """
    prediction = read_prediction(Path(path))
    about = prediction.uns["prediction"]
    if um_per_px is not None and not 0 < um_per_px < np.inf:
        expected = "micrometres, above 0"
        raise InputError("is not a pixel size", field="--um-per-px", value=um_per_px, expected=expected)
    mine = _section(prediction, section, path)
    prediction = prediction[mine].copy()
    name = str(prediction.obs["section"].iloc[0])
    transforms = transforms_of(prediction)
    if layer is not None and layer not in transforms:
        raise unknown_name("layer", layer, transforms, file=path, field="--layer")
    transform = layer or transforms[0]
    told = _told(prediction.var, transform, transforms)
    chosen = _genes(prediction, genes, ranked(prediction.var, transform), path)
    shown = 0
    if colour is not None:
        (wanted,) = _columns(prediction, [colour], path, "--colour")
        if wanted not in chosen:
            where = {"file": path, "field": "--colour", "value": colour}
            raise InputError("is the colour gene, but is not exported", **where, fix="name it in --genes, too")
        shown = chosen.tolist().index(wanted)
    if "spatial" not in prediction.obsm:
        raise InputError("lacks the positions of spots", file=path, field="obsm['spatial']")
    coords = np.asarray(prediction.obsm["spatial"], dtype=np.float64)[:, :2]
    cleaned = _section_of_run(Path(path), about, name)
    worth = trusted(prediction.var, transform)
    size, square, notes = _shape(coords, prediction, about, cleaned)
    polygons, why = _drawn(prediction)
    notes += [why] if why else []
    pixel = um_per_px or about.get("um_per_px") or as_mapping(cleaned.uns.get("preprocessing")).get("um_per_px")
    picture, scale = _picture(about, image, cleaned, RunFolder(_run_of(Path(path))).tiles(name))
    if picture is None:
        notes.append("without a picture of the slide: its file is not known, or no longer there; --image names it")
    if worth is not None:
        notes.append(f"{int(worth[chosen].sum())} of {len(chosen)} genes are worth trusting (docs/trust.md)")
    return Content(
        section=name,
        model=str(about.get("title", about.get("model", "unknown"))),
        transform=transform,
        barcodes=prediction.obs["barcode"].to_numpy(dtype=str),
        genes=prediction.var_names.to_numpy(dtype=str)[chosen],
        names=_names(prediction)[chosen],
        values=np.asarray(prediction.layers[transform], dtype=np.float32)[:, chosen],
        told=told.iloc[chosen],
        kinds=_kinds(prediction),
        more=prediction.obs.drop(columns=list(NAMES_OF_SPOTS), errors="ignore").select_dtypes("number"),
        coords=coords,
        size_px=size,
        square=square,
        polygons=polygons,
        on_slide="places" not in about,
        um_per_px=float(pixel) if pixel else None,
        picture=picture,
        scale=scale,
        shown=shown,
        notes=tuple(notes),
    )


def _section(prediction: AnnData, section: str | None, path: str | Path) -> np.ndarray:
    here = prediction.obs["section"].astype(str).to_numpy()
    known = sorted(set(here))
    if not known:
        raise InputError("has no spots", file=path, field="obs")
    if section is None and len(known) > 1:
        expected = "one of " + ", ".join(known[:10])
        raise InputError(f"holds {len(known)} sections", file=path, field="--section", expected=expected)
    if section is not None and section not in known:
        raise unknown_name("section", section, known, file=path, field="--section")
    return here == (section or known[0])


def _genes(prediction: AnnData, wanted: Sequence[str], order: np.ndarray | None, path: str | Path) -> np.ndarray:
    if wanted:
        return np.array(list(dict.fromkeys(_columns(prediction, wanted, path, "--genes"))))
    return np.arange(prediction.n_vars) if order is None else order


def _told(var: pd.DataFrame, transform: str, transforms: Sequence[str]) -> pd.DataFrame:
    """Return the columns of ``var`` that are of all transforms, or of one, ``<column>:<transform>``; names left out."""
    import pandas as pd

    kept = {}
    for column in var:
        name, _, of = str(column).rpartition(":")
        if name and of in transforms:
            kept |= {name: var[column]} if of == transform else {}
        elif column not in ("symbol", "head"):
            kept[str(column)] = var[column]
    return pd.DataFrame(kept, index=var.index)


def _columns(prediction: AnnData, wanted: Sequence[str], path: str | Path, field: str) -> list[int]:
    names = GeneNames.of(prediction.var_names, symbols_of(prediction))
    found = meant_by(wanted, names).tolist()
    for gene, place in zip(wanted, found, strict=True):
        if place < 0:
            raise _unknown_gene(gene, symbols_of(prediction).tolist(), path, field)
    return found


def _unknown_gene(gene: str, known: list[str], path: str | Path, field: str) -> InputError:
    from difflib import get_close_matches

    if gene in known:
        return InputError("matches several genes", file=path, field=field, value=gene, fix="name one by its id")
    close = get_close_matches(gene.upper(), known, n=1)
    expected = f"one of {len(known)} genes, e.g. {', '.join(sorted(known)[:5])}"
    fix = f"did you mean {close[0]}?" if close else None
    return InputError("is not predicted", file=path, field=field, value=gene, expected=expected, fix=fix)


def _names(prediction: AnnData) -> np.ndarray:
    symbols, often = symbols_of(prediction).tolist(), Counter(symbols_of(prediction).tolist())
    pairs = zip(symbols, prediction.var_names.tolist(), strict=True)
    return np.array([name if often[name] == 1 else f"{name} ({gene})" for name, gene in pairs], dtype=str)


def _section_of_run(path: Path, about: Mapping[str, Any], name: str) -> AnnData:
    """Return the cleaned section that a run's prediction is of, which knows picture and sizes; empty without one."""
    import anndata

    run = RunFolder(_run_of(path))
    if "image" in about or not run.section(name).is_file():
        return anndata.AnnData()
    return read_h5ad(run.section(name), what="section file")


def _run_of(path: Path) -> Path:
    """Return the folder of the run in which a prediction may lie: ``<run>/predictions/<model>/<fold>.<part>.h5ad``."""
    return path.absolute().parent.parent.parent


def _shape(
    coords: np.ndarray, prediction: AnnData, about: Mapping[str, Any], cleaned: AnnData
) -> tuple[float, bool, list[str]]:
    """Return the size of a spot in pixels, whether it is a square, and what is taken for granted about it."""
    pitch = spot_pitch(coords, alone=100.0)
    if "regions" in prediction.uns:
        return pitch / 2, False, []
    if "points" in about or "places" in about or bin_size(prediction.obs["barcode"].astype(str)):
        return pitch, True, []
    told = as_mapping(cleaned.uns.get("preprocessing"))
    size, pixel = (about.get(one) or told.get(one) for one in ("spot_diameter_um", "um_per_px"))
    if size and pixel:
        return float(size) / float(pixel), False, []
    return pitch / 2, False, ["the file does not say how large spots are: they are half as wide as they lie apart"]


def _kinds(prediction: AnnData) -> np.ndarray:
    if "regions" in prediction.uns and "kind" in prediction.obs:
        return prediction.obs["kind"].astype(str).to_numpy()
    return np.full(prediction.n_obs, "")


def _drawn(prediction: AnnData) -> tuple[Polygons | None, str]:
    """Return the outlines of regions that others drew, as their own file holds them, or why they are not to be had."""
    if "regions" not in prediction.uns:
        return None, ""
    file = str(as_mapping(prediction.uns["regions"]).get("file", "no file that is named"))
    try:
        regions = read_regions(file)
        place = {name: number for number, name in enumerate(regions.names.tolist())}
        return tuple(regions.polygons[place[name]] for name in prediction.obs["barcode"].astype(str)), ""
    except InputError as error:
        why = error.problem
    except KeyError:
        why = "it no longer holds all of them"
    return None, f"regions are discs at their centres: their outlines lay in {file} ({why})"


def _picture(
    about: Mapping[str, Any], given: str | Path | None, cleaned: AnnData, tiles: Path
) -> tuple[np.ndarray | None, float]:
    """Return the slide, small, and its scale: as given, as the file names it, or of the run that the file lies in."""
    from histocrypt.evaluation.maps import backdrop

    if given is not None:
        return open_image(given).thumbnail(LONGEST_SIDE)
    if "image" in about:
        with suppress(InputError):  # it has moved, or is of patches, which only their section lays out
            return open_image(about["image"]).thumbnail(LONGEST_SIDE)
    return backdrop(cleaned, tiles if cleaned.n_obs else Path())
