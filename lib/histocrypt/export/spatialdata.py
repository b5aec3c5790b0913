"""A SpatialData store: the picture, the outlines of the spots and a table, in full-resolution pixels.

Written by the package spatialdata of the scverse project (Marconato et al., "SpatialData: an open and universal data
framework for spatial omics", Nat Methods 22:58, 2025), of the extra ``export``. In the coordinate system ``global`` a
unit is a pixel of the slide; the picture comes there by a scale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.export.content import Content, Format

SPOTS, IMAGE, TABLE = "spots", "image", "table"
"""What the elements are called."""


def write(content: Content, path: Path) -> None:
    """Write ``images/image`` where there is a picture, ``shapes/spots`` and ``tables/table``."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, TableModel
    from spatialdata.transformations import Scale

    images = {}
    if content.picture is not None:
        up = Scale([1 / content.scale, 1 / content.scale], axes=("x", "y"))
        pixels, colours = np.moveaxis(content.picture, -1, 0), ["r", "g", "b"]
        how = {"dims": ("c", "y", "x"), "c_coords": colours, "transformations": {"global": up}}
        images[IMAGE] = Image2DModel.parse(pixels, **how)
    table = content.adata()
    table.obs["spot"] = table.obs_names.astype(str)
    table.obs["region"] = np.full(table.n_obs, SPOTS)
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region=SPOTS, region_key="region", instance_key="spot")
    told = {"section": content.section, "model": content.model, "transform": content.transform}
    if content.um_per_px is not None:
        told["um_per_px"] = content.um_per_px
    store = SpatialData(
        images=images, shapes={SPOTS: _shapes(content)}, tables={TABLE: table}, attrs={"prediction": told}
    )
    store.write(path)


def _shapes(content: Content) -> Any:
    """Return circles, or squares and regions as polygons, indexed by the names of the spots."""
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    places = {"transformations": {"global": Identity()}}
    if not content.square and content.polygons is None:
        how = {"geometry": 0, "radius": content.size_px / 2, "index": content.barcodes.astype(object)}
        return ShapesModel.parse(content.coords, **how, **places)
    from geopandas import GeoDataFrame
    from shapely import MultiPolygon, Polygon

    shapes = [[Polygon(outline, holes) for outline, *holes in pieces] for pieces in content.pieces()]
    shapes = [one[0] if len(one) == 1 else MultiPolygon(one) for one in shapes]
    frame = GeoDataFrame({"geometry": shapes}, index=content.barcodes.astype(object))
    return ShapesModel.parse(frame, **places)


FORMAT = Format(".zarr", write, library="spatialdata")
