"""What is sent back: JSON that says how far to trust each value, the prediction file, or what `export` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt import __version__
from histocrypt.errors import InputError, unknown_name
from histocrypt.export.registry import FORMATS, format_of
from histocrypt.pipeline.predictions import as_mapping, read_prediction, write_h5ad
from histocrypt.sections.genes import GeneNames, meant_by

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.export.content import Content

JSON, H5AD = "json", "h5ad"
EXPORTED = tuple(name for name in FORMATS if name != "spatialdata")
"""Formats of `export` that are one file."""
ANSWERS = (JSON, H5AD, *EXPORTED)
MEDIA = {JSON: "application/json", "geojson": "application/geo+json", "csv": "text/csv", "loupe-csv": "text/csv"}
"""Media types; of others ``application/octet-stream``."""
DIGITS = 6
"""Significant digits of numbers in JSON, about as many as float32 has."""


def suffix_of(form: str) -> str:
    """Return how names of files of a format end."""
    return {JSON: ".json", H5AD: ".h5ad"}.get(form) or format_of(form).suffix


def file_name(form: str) -> str:
    """Return what an answer in a format is called in the folder of its job."""
    return f"{form}{suffix_of(form)}"


def check_wanted(about: Mapping[str, Any], *, form: str, tiles: bool, genes: Sequence[str], layer: str | None) -> None:
    """Refuse what cannot be answered, before anything is predicted.

    Raises
    ------
    InputError
        If the format is none, its library is absent, it needs places on a slide, or a gene or a layer is not the
        model's.
    """
    if form not in ANSWERS:
        raise unknown_name("format", form, ANSWERS, field="format", value=form)
    if form in EXPORTED and format_of(form).on_slide and tiles:
        fix = "ask for json, h5ad, csv, loupe-csv or anndata"
        raise InputError("tiles have no positions on a slide", field="format", value=form, fix=fix)
    if layer is not None and layer not in about["transforms"]:
        raise unknown_name("layer", layer, about["transforms"], field="layer", value=layer)
    panel = about["panel"]
    places = meant_by(genes, GeneNames.of(panel["genes"], panel.get("symbols") or panel["genes"]))
    for gene, place in zip(genes, places.tolist(), strict=True):
        if place < 0:
            raise InputError("is not predicted", field="genes", value=gene, expected="genes that GET /v1/model lists")


def write_answers(
    prediction: Path,
    *,
    form: str,
    genes: Sequence[str],
    layer: str | None,
    notes: Sequence[str],
    tiles: Sequence[str] | None,
) -> None:
    """Write the answers to a job beside its prediction: `JSON` and `H5AD`, and the one that was asked for.

    Parameters
    ----------
    prediction
        As `predict` wrote it; it is replaced by what is answered.
    form
        Of `ANSWERS`.
    genes, layer
        As `export.content.read_content` takes them.
    notes
        What was to be noted while it was predicted.
    tiles
        What tiles are called, in the client's order; None: a slide.
    """
    from histocrypt.export.content import read_content
    from histocrypt.export.registry import export

    folder, how = prediction.parent, {"genes": genes, "layer": layer}
    adata = read_prediction(prediction)
    if tiles is not None:
        adata = _in_order(adata, tiles)
        write_h5ad(prediction, adata)
    if form in EXPORTED:
        export(prediction, folder / file_name(form), to=form, **how)
    about = dict(adata.uns["prediction"])
    about.pop("image", None)  # where it lay here is nobody's business
    adata.uns["prediction"] = about
    write_h5ad(folder / file_name(H5AD), adata)
    prediction.unlink()
    content = read_content(folder / file_name(H5AD), **how)
    with (folder / file_name(JSON)).open("w", encoding="utf-8") as file:
        file.write(json.dumps(_told(adata, content, notes), ensure_ascii=False, allow_nan=False)[:-1])
        file.write(', "values": [')
        for number, row in enumerate(content.values):
            file.write((",\n" if number else "\n") + json.dumps(_numbers(row)))
        file.write("\n]}\n")


def _in_order(adata: AnnData, tiles: Sequence[str]) -> AnnData:
    """Return the predictions of tiles in the client's order, each named by its number from 0."""
    place = {name: number for number, name in enumerate(tiles)}
    numbers = np.array([place[name] for name in adata.obs["barcode"].astype(str)])
    adata = adata[np.argsort(numbers)].copy()
    adata.obs["barcode"] = [str(number) for number in np.sort(numbers)]
    adata.obs_names = (adata.obs["section"].astype(str) + ":" + adata.obs["barcode"]).to_list()
    return adata


def _told(adata: AnnData, content: Content, notes: Sequence[str]) -> dict[str, Any]:
    """Return what is said beside the values."""
    about = adata.uns["prediction"]
    judged = about.get("slide")
    slide = None
    if judged is not None:
        measured = {name: float(value) for name, value in judged.items() if name not in ("verdict", "why")}
        reasons = np.atleast_1d(judged["why"]).astype(str).tolist()
        slide = {"verdict": str(judged["verdict"]), "reasons": reasons, "measured": measured}
    names = content.told.reset_index(drop=True)
    names.insert(0, "name", content.names)
    names.insert(0, "id", content.genes)
    spots: dict[str, list[Any]] = {"name": content.barcodes.tolist()}
    if content.on_slide:
        spots |= {"x_px": _numbers(content.coords[:, 0]), "y_px": _numbers(content.coords[:, 1])}
    for column in adata.obs.columns.difference(["section", "patient", "barcode"], sort=False):
        spots[str(column)] = json.loads(adata.obs[column].to_json(orient="values"))
    known = as_mapping(about.get("predictability"))
    return {
        "name": content.section,
        "histocrypt": __version__,
        "model": {
            "title": content.model,
            "weights_sha256": str(about["weights_sha256"]),
            "learnt_from": str(about.get("origin", "")),
        },
        "slide": slide,
        "notes": list(notes),
        "um_per_px": content.um_per_px,
        "um_per_px_source": str(about["um_per_px_source"]),
        "unit": content.transform,
        "intervals": str(about["intervals"]) if "intervals" in about else None,
        "predictability": {
            name: value if isinstance(value, str) else np.asarray(value).tolist() for name, value in known.items()
        },
        "genes": json.loads(names.to_json(orient="records", double_precision=DIGITS)),
        "spots": spots,
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """Return numbers as JSON may hold them: rounded, None where there is none."""
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in np.asarray(values).tolist()]
