"""QuPath's GeoJSON: each spot a detection with its values, coloured by one gene.

A FeatureCollection in full-resolution pixels from the top left corner, as QuPath's File > Import objects reads it. Of a
feature QuPath reads ``id`` (a UUID), ``geometry``, and of ``properties`` objectType, name, color, classification and
measurements, a number by name (QuPath, "Exporting annotations", https://qupath.readthedocs.io/en/stable/docs/advanced/
exporting_annotations.html; its PathObjectTypeAdapter). An object's own colour is shown before that of its class:
the colour is the value's, the class its fifth, so that a fifth can be chosen or hidden. GeoJSON lets other members
stand beside ``features`` (RFC 7946, 6.1): ``histocrypt`` says what was predicted and how far to trust each gene.
Regions that others drew keep outlines and names; how they were classed is ``metadata``, which QuPath keeps from 0.5 on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from histocrypt.evaluation.maps import VALUES, colour_limits
from histocrypt.export.content import MADE, Content, Format
from histocrypt.files import says

FIFTHS = 5
DIGITS = 5
"""Significant digits of a value: far more than a prediction has."""


def write(content: Content, path: Path) -> None:
    """Write a section's spots as detections, one a line, so that memory does not grow with them."""
    with path.open("w", encoding="utf-8") as file:
        about = json.dumps(_about(content), ensure_ascii=False, allow_nan=False)
        file.write(f'{{"type": "FeatureCollection", "histocrypt": {about}, "features": [')
        for number, feature in enumerate(_features(content)):
            file.write(",\n" if number else "\n")
            json.dump(feature, file, ensure_ascii=False, allow_nan=False)
        file.write("\n]}\n")


def _about(content: Content) -> dict[str, Any]:
    import pandas as pd

    names = pd.DataFrame({"id": content.genes, "name": content.names})
    genes = json.loads(names.join(content.told.reset_index(drop=True)).to_json(orient="records"))
    named = {"section": content.section, "model": content.model, "values": content.transform}
    return {"made": MADE, **named, "coloured_by": str(content.names[content.shown]), "genes": genes}


def _features(content: Content) -> Any:
    colours, fifths = colours_of(content.values[:, content.shown])
    classes = _classes(str(content.names[content.shown]))
    kinds = content.kinds.tolist()
    names, more = content.names.tolist(), content.more.columns.tolist()
    beyond = content.more.to_numpy(dtype=np.float64)
    for row, (barcode, pieces) in enumerate(zip(content.barcodes.tolist(), content.pieces(), strict=True)):
        values = [*content.values[row].tolist(), *beyond[row].tolist()]
        pairs = zip([*names, *more], values, strict=True)
        yield {
            "type": "Feature",
            "id": str(uuid5(NAMESPACE_URL, f"histocrypt:{content.section}:{barcode}")),
            "geometry": _geometry(pieces),
            "properties": {
                "objectType": "detection",
                "name": barcode,
                "color": colours[row].tolist(),
                "classification": classes[fifths[row]],
                "measurements": {name: float(f"{value:.{DIGITS}g}") for name, value in pairs if np.isfinite(value)},
                **({"metadata": {"class before": kinds[row]}} if kinds[row] else {}),
            },
        }


def _geometry(pieces: list[list[np.ndarray]]) -> dict[str, Any]:
    """Return a geometry of RFC 7946, its lines closed."""
    closed = [
        [[*(line := np.round(ring, 2).tolist()), *([line[0]] if line[0] != line[-1] else [])] for ring in piece]
        for piece in pieces
    ]
    if len(closed) == 1:
        return {"type": "Polygon", "coordinates": closed[0]}
    return {"type": "MultiPolygon", "coordinates": closed}


def colours_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 3) uint8 colours of (n,) values, and (n,) int which fifth of the colours' range each lies in, from 0.

    The range leaves out 2 % of the values at each end, as maps do.
    """
    from matplotlib import colormaps

    low, high, _ = colour_limits(values, values)
    share = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
    return colormaps[VALUES](share, bytes=True)[:, :3], np.minimum((share * FIFTHS).astype(int), FIFTHS - 1)


def _classes(gene: str) -> list[dict[str, Any]]:
    from matplotlib import colormaps

    middles = colormaps[VALUES]((np.arange(FIFTHS) + 0.5) / FIFTHS, bytes=True)[:, :3].tolist()
    return [{"name": f"{gene} {fifth} of {FIFTHS}", "color": colour} for fifth, colour in enumerate(middles, start=1)]


FORMAT = Format(".geojson", write, mine=lambda path: says(path, MADE), on_slide=True)
