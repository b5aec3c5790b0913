"""Writes small stores in the layout of SpatialData, with zarr and anndata alone."""

import struct
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from scipy import sparse

IDENTITY = {"type": "identity"}


def system(name, axes, unit="unit"):
    """Return a coordinate system as SpatialData writes it."""
    return {"name": name, "axes": [{"name": axis, "type": "space", "unit": unit} for axis in axes]}


def to(name, transformation, axes, unit="unit"):
    """Return a transformation with its input and output."""
    return {**transformation, "input": system("own", axes), "output": system(name, axes, unit)}


def point(x, y):
    return struct.pack("<BIdd", 1, 1, x, y)


def square(x, y, half=2.0):
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    flat = [value for corner in [*corners, corners[0]] for value in corner]
    return struct.pack("<BIII10d", 1, 3, 1, 5, *flat)


def write_shapes(store, name, centres, transformations, *, index=None, old=False, shape=point):
    """Write circles or polygons: as parquet, or ``old``, as arrays."""
    group = store.require_group("shapes").create_group(name)
    group.attrs["coordinateTransformations"] = transformations
    group.attrs["encoding-type"] = "ngff:shapes"
    index = np.arange(len(centres)) if index is None else index
    if old:
        group["coords"], group["Index"], group["radius"] = centres, np.asarray(index), np.ones(len(centres))
        return
    frame = pd.DataFrame(
        {"geometry": [shape(x, y) for x, y in centres], "radius": 1.0}, index=pd.Index(index, name="i")
    )
    pq.write_table(pa.Table.from_pandas(frame), Path(str(group.store_path.store.root)) / group.path / "shapes.parquet")


def write_image(store, name, pixels, transformations):
    """Write one level of (height, width, channels)."""
    group = store.require_group("images").create_group(name)
    array = np.moveaxis(pixels, -1, 0)
    group.create_array("0", data=array, chunks=(array.shape[0], 64, 64))
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    about = [
        {"name": name, "version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    ]
    about[0]["coordinateTransformations"] = transformations
    if store.metadata.zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", "multiscales": about}
    else:
        group.attrs["multiscales"] = about


def write_table(store, name, counts, region, instances, *, grid=None, obs=None):
    """Write the table of a region; ``region``: its name, or one a row."""
    regions = [region] * len(counts) if isinstance(region, str) else list(region)
    table = pd.DataFrame({"region": pd.Categorical(regions), "instance_id": instances} | (obs or {}))
    table.index = [f"spot{number}" for number in range(len(table))]
    if grid is not None:
        table["array_row"], table["array_col"] = grid.T
    adata = anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=table)
    adata.var_names = [f"ENSG{number:011d}" for number in range(adata.n_vars)]
    names = sorted(set(regions))
    adata.uns["spatialdata_attrs"] = {
        "region": names if len(names) > 1 else names[0],
        "region_key": "region",
        "instance_key": "instance_id",
    }
    anndata.io.write_elem(store.require_group("tables"), name, adata)


def new_store(path, version=3):
    return zarr.open_group(path, mode="w", zarr_format=version)
