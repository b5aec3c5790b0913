"""One new section predicted: from its image to what every head says of every spot, and the same as CSV files."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histocrypt.atomic import atomic_path
from histocrypt.errors import InputError
from histocrypt.models.spots import Spots
from histocrypt.sections.patches import PatchMosaic
from histocrypt.training.averaging import Views, predict_views, recut
from histocrypt.training.spots import spot_names

if TYPE_CHECKING:
    from histocrypt.sections.section import Section
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.training.artifacts import TrainedModel

Kind = Literal["section", "grid", "patches"]
"""What is predicted: a section's own spots, a grid over a slide, or single patches."""
PIXELS_A_PATCH = 4000
"""Pixels of a patch from which its section's stain is estimated."""


@dataclass(frozen=True)
class PredictedPart:
    """What was predicted of one section, or of several."""

    spots: Spots
    """Their names; tiles are gone when the temporary folder is."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    heads: dict[str, np.ndarray]
    """By head, (n, outputs)."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> spots without prediction."""

    @classmethod
    def joined(cls, parts: list[PredictedPart]) -> PredictedPart:
        """Return several sections as one, in order."""
        if len(parts) == 1:
            return parts[0]

        def all_of(name: str) -> np.ndarray:
            return np.concatenate([getattr(part.spots, name) for part in parts])

        named = {name: all_of(name) for name in ("names", "sections", "patients", "depth")}
        spots = replace(parts[0].spots, **named, tiles=np.empty((0, 1, 1, 3), np.uint8), features=None)
        heads = {name: np.concatenate([part.heads[name] for part in parts]) for name in parts[0].heads}
        return cls(spots, np.concatenate([part.coords for part in parts]), heads)


def predicted_part(
    model: TrainedModel, section: Section, folder: Path, views: Views, *, every: bool = False, kind: Kind = "section"
) -> PredictedPart:
    """Predict one section.

    Parameters
    ----------
    model
        The model.
    section
        With an image.
    folder
        Temporary; tiles are memory-mapped from there.
    views
        Over what to average.
    every
        Keep spots off tissue, too.
    kind
        The spots of a ``grid`` are where they should be, and are not aligned; ``patches`` are predicted as they are.
    """
    from histocrypt.tissue.stain import StainStatistics
    from histocrypt.training.apply import prepare_section

    about = model.about
    reference = StainStatistics.from_dict(about["stain"]["reference"], file="model")
    dropped: dict[str, int] = {}
    if kind == "patches":
        own, coords = _patch_stain(section.image), np.asarray(section.coords)
        spots = _bare(section, model.scaling.outputs)
    else:
        align = False if kind == "grid" else None
        spots, coords, report = prepare_section(about, section, folder, model.scaling.outputs, every=every, align=align)
        own, dropped = StainStatistics.load(folder / "s.json"), report.dropped

    def window(factor: float) -> Spots:
        if factor == 1 and kind != "patches":
            return spots
        return recut(
            spots, section.image, coords, um_per_px=section.um_per_px, tile_um=factor * about["geometry"]["tile_um"],
            about=about, own=own, reference=reference, file=folder / f"window_{factor:g}.bin",
        )  # fmt: skip

    return PredictedPart(spots, coords, predict_views(model, window, views), dropped)


def _bare(section: Section, outputs: tuple[str, ...]) -> Spots:
    n = section.n_spots
    return Spots(
        names=spot_names(section.id, section.adata.obs_names.to_numpy().astype(str)),
        sections=np.full(n, section.id),
        patients=np.full(n, section.patient or "", dtype=object).astype(str),
        tiles=np.empty((n, 1, 1, 3), np.uint8),
        depth=np.full(n, np.nan),
        outputs=outputs,
    )


def _patch_stain(image: PatchMosaic) -> StainStatistics:
    """Estimate the stain of a section from pixels of all its patches, evenly spread; the same for every call."""
    from histocrypt.tissue.stain import estimate

    found = []
    for index in range(image.n_patches):
        pixels = image.patch(index).reshape(-1, 3)
        found.append(pixels[:: max(1, len(pixels) // PIXELS_A_PATCH)])
    return estimate(np.concatenate(found))


def write_csv(folder: Path, prediction: Path) -> list[Path]:
    """Write a prediction as CSV files, one row a spot, in its order and with its gene names; return them.

    ``target_count_pred.csv`` and ``aux_count_pred.csv``: ``name`` and one column a gene. ``tumor_pred.csv``: ``name``
    and ``Annotation``, true where the probability of tumour is above 1/2. Only what the model has a head for.
    """
    import anndata
    import pandas as pd

    adata = anndata.read_h5ad(prediction)
    if folder.exists() and not folder.is_dir():
        raise InputError("is not a folder", file=folder, field="--csv")
    index = pd.Index(_csv_names(adata), name="name")
    tables: dict[str, Any] = {"target_count_pred.csv": pd.DataFrame(adata.X, index=index, columns=adata.var_names)}
    if "auxiliary" in adata.obsm:
        genes = list(map(str, adata.uns["auxiliary_names"]))
        tables["aux_count_pred.csv"] = pd.DataFrame(adata.obsm["auxiliary"], index=index, columns=genes)
    if "tumour_probability" in adata.obs:
        above = adata.obs["tumour_probability"].to_numpy() > 0.5
        tables["tumor_pred.csv"] = pd.DataFrame({"Annotation": above}, index=index)
    written = []
    for name, table in tables.items():
        with atomic_path(folder / name) as temporary:
            table.to_csv(temporary)
        written.append(folder / name)
    return written


def _csv_names(adata: Any) -> list[str]:
    """Return ``<section>_<barcode>``: the name of a patch's file, where there was one."""
    pairs = zip(adata.obs["section"].astype(str), adata.obs["barcode"].astype(str), strict=True)
    return [f"{section}_{barcode}" for section, barcode in pairs]
