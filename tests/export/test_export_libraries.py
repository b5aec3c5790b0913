"""Stores and pictures read back by the libraries of their formats; where they are not installed, nothing is tested."""

import json

import anndata as ad
import numpy as np
import pytest

from histocrypt.errors import InputError
from histocrypt.export.registry import export


@pytest.mark.parametrize("squares", [True, False])
def test_spatialdata_reads_its_store(make, squares):
    spatialdata = pytest.importorskip("spatialdata")
    path = make(points="of a grid" if squares else None)
    out = path.with_suffix(".zarr")
    export(path, out, to="spatialdata")
    store = spatialdata.read_zarr(out)
    table = spatialdata.match_table_to_element(store, "spots", "table")
    assert table.shape == (24, 4)
    assert table.obs_names.tolist() == store["spots"].index.tolist()
    extents = [spatialdata.get_extent(store[name]) for name in ("image", "spots")]
    assert extents[0]["x"] == pytest.approx((0, 360), abs=0.5)
    assert extents[1]["x"] == pytest.approx((0, 300) if squares else (10, 290))
    np.testing.assert_allclose(
        np.column_stack([store["spots"].geometry.centroid.x, store["spots"].geometry.centroid.y]), table.obsm["spatial"]
    )
    with pytest.raises(InputError) as refused:  # a person may have put more into it
        export(path, out, to="spatialdata")
    assert (refused.value.file, refused.value.field) == (out, "--output")
    export(path, out, to="spatialdata", genes=["ERBB2"], overwrite=True)
    assert spatialdata.read_zarr(out)["table"].n_vars == 1
    assert not list(out.parent.glob(".*"))


def test_regions_are_the_polygons_of_who_drew_them(make, tmp_path):
    spatialdata, geopandas = pytest.importorskip("spatialdata"), pytest.importorskip("geopandas")
    path, drawn = make(points="regions that others drew"), tmp_path / "cells.geojson"
    prediction = ad.read_h5ad(path)[:2].copy()
    square, hole = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]], [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
    far = [[20, 20], [30, 20], [30, 30], [20, 20]]
    shapes = [("Polygon", [square, hole]), ("MultiPolygon", [[square, hole], [far]])]
    features = [
        {"type": "Feature", "id": name, "geometry": {"type": kind, "coordinates": lines}, "properties": {}}
        for name, (kind, lines) in zip(prediction.obs["barcode"], shapes, strict=True)
    ]
    drawn.write_text(json.dumps(features))
    prediction.uns["regions"] = {"file": str(drawn)}
    prediction.write_h5ad(path)
    export(path, path.with_suffix(".zarr"), to="spatialdata")
    export(path, path.with_suffix(".geojson"), to="geojson")
    store = spatialdata.read_zarr(path.with_suffix(".zarr"))
    for shown in (store["spots"], geopandas.read_file(path.with_suffix(".geojson"))):
        assert shown.geometry.is_valid.all()
        assert shown.geometry.area.tolist() == pytest.approx([96, 146])


def test_a_folder_that_is_no_store_is_never_replaced(make, tmp_path):
    pytest.importorskip("spatialdata")
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "notes.txt").write_text("kept")
    with pytest.raises(InputError):
        export(make(), tmp_path / "mine.zarr", to="spatialdata", overwrite=True)
    assert (tmp_path / "mine.zarr" / "notes.txt").read_text() == "kept"


def test_squidpy_draws_its_file(make):
    squidpy = pytest.importorskip("squidpy")
    import anndata as ad
    import matplotlib.pyplot as plt

    path = make()
    export(path, path.with_name("sq.h5ad"), to="squidpy")
    figure, axes = plt.subplots()
    squidpy.pl.spatial_scatter(ad.read_h5ad(path.with_name("sq.h5ad")), color="ERBB2", ax=axes)
    assert axes.images
    assert axes.collections
    plt.close(figure)


def test_ome_types_reads_the_maps(make):
    ome_types = pytest.importorskip("ome_types")
    path = make()
    export(path, path.with_name("maps.ome.tif"), to="ome-tiff")
    pixels = ome_types.from_tiff(path.with_name("maps.ome.tif")).images[0].pixels
    assert [channel.name for channel in pixels.channels][0] == "ERBB2"
    assert (pixels.physical_size_x, pixels.physical_size_x_unit.value) == (pytest.approx(25.0), "µm")


def test_geopandas_reads_the_detections(make):
    geopandas = pytest.importorskip("geopandas")
    path = make()
    export(path, path.with_suffix(".geojson"), to="geojson")
    found = geopandas.read_file(path.with_suffix(".geojson"))
    assert found.is_valid.all()
    assert found.area.to_numpy() == pytest.approx(np.pi * 15**2, rel=0.02)
