"""Polygons that others drew: who lies in which, how each got its prediction, and what is no such file."""

import gzip
import json

import anndata
import numpy as np
import pandas as pd
import pytest

from histocrypt.errors import InputError
from histocrypt.pipeline.predictions import read_prediction
from histocrypt.pipeline.regions import INSIDE, NEAREST, check_on_image, predicted_regions, read_regions


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(*rings, kind="Polygon", **more):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": list(rings)}, "properties": {}, **more}


@pytest.fixture
def written(tmp_path):
    """Write features to a GeoJSON file."""

    def write(*features, name="cells.geojson", whole=None):
        text = json.dumps({"type": "FeatureCollection", "features": list(features)} if whole is None else whole)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.fixture
def prediction():
    """Points 0 to 9 in both directions, 10 pixels apart; the first gene is x, the second y."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(10), np.arange(10)))
    values = np.column_stack([x, y]).astype(np.float32)
    adata = anndata.AnnData(values, layers={"log1p": values}, var=pd.DataFrame(index=["X", "Y"]))
    adata.obs["section"], adata.obs["patient"], adata.obs["barcode"] = "A", "P", [str(one) for one in range(100)]
    adata.obsm["spatial"] = 10.0 * np.column_stack([x, y])
    adata.uns["prediction"] = {"part": "new", "transform": "log1p", "transforms": ["log1p"], "um_per_px": 2.0}
    return adata


def test_a_region_gets_the_mean_inside_or_the_nearest_or_nothing(written, prediction, tmp_path):
    path = written(
        feature(square(15, 15, 20), id="four"),
        feature(square(-5, -5, 30), square(5, 5, 10), id="ring"),
        feature([square(-5, -5, 10)], [square(85, 85, 10)], kind="MultiPolygon", id="two"),
        feature(square(41, 41, 4), id="cell"),
        feature(square(400, 400, 4), id="far"),
        feature(5, 5, kind="Point"),
    )
    adata, said = predicted_regions(prediction, read_regions(path), file=path, within_um=20)
    assert list(adata.obs["barcode"]) == ["four", "ring", "two", "cell"]
    assert list(adata.obs["points"]) == [4, 8, 2, 1]
    assert list(adata.obs["how"]) == [INSIDE, INSIDE, INSIDE, NEAREST]
    expected = [[2.5, 2.5], [1, 1], [4.5, 4.5], [4, 4]]
    np.testing.assert_allclose(adata.X, expected)
    np.testing.assert_allclose(adata.layers["log1p"], expected)
    assert adata.obs["nearest_um"].iloc[3] == pytest.approx(2 * np.hypot(3, 3))
    assert list(adata.uns["regions"]["empty"]) == ["far"]
    assert "1 features are no areas" in said
    adata.write_h5ad(tmp_path / "regions.h5ad")
    assert read_prediction(tmp_path / "regions.h5ad").n_obs == 4


def test_without_any_point_near_all_are_empty_and_that_is_said(written, prediction):
    path = written(feature(square(41, 41, 4)))
    adata, said = predicted_regions(prediction, read_regions(path), file=path, within_um=1)
    assert adata.shape == (0, 2)
    assert "1 nothing" in said


def test_centres_are_those_of_the_areas(written):
    shape = [[0, 0], [4, 0], [4, 1], [1, 1], [1, 4], [0, 4], [0, 0]]
    regions = read_regions(written(feature([[x + 1e6, y + 1e6] for x, y in shape])))
    areas = np.array([4.0, 3.0])
    expected = (areas[:, None] * [[2, 0.5], [0.5, 2.5]]).sum(axis=0) / areas.sum()
    np.testing.assert_allclose(regions.centres[0] - 1e6, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
def test_what_qupath_writes_is_read(written, name):
    cell = feature(square(0, 0, 4), id="b7", properties={"objectType": "cell", "classification": {"name": "Tumor"}})
    other = feature(square(0, 0, 4), id="b7", properties={"classification": "Stroma"})
    for whole in ({"type": "FeatureCollection", "features": [cell, other]}, [cell, other]):
        regions = read_regions(written(name=name, whole=whole))
        assert list(regions.names) == ["b7", "b7#2"]
        assert list(regions.kinds) == ["Tumor", "Stroma"]


@pytest.mark.parametrize(
    ("whole", "field"),
    [
        ({"type": "Topology"}, "type"),
        ([1], "type"),
        ({"type": "FeatureCollection"}, "type"),
        ([feature(1, 2, kind="Point")], None),
        ([feature([[0, 0], [1, 1]])], "feature 1"),
        ([feature([[0, 0], [1, "a"], [2, 2]])], "feature 1"),
        ([feature([[0, 0], [1], [2, 2]])], "feature 1"),
    ],
)
def test_other_files_are_refused(written, whole, field):
    path = written(whole=whole)
    with pytest.raises(InputError) as caught:
        read_regions(path)
    assert (caught.value.file, caught.value.field) == (path, field)


def test_no_json_and_no_gzip_are_refused(tmp_path):
    for name in ("a.geojson", "a.geojson.gz"):
        (tmp_path / name).write_bytes(b"{")
        with pytest.raises(InputError) as caught:
            read_regions(tmp_path / name)
        assert caught.value.file == tmp_path / name


def test_regions_in_micrometres_do_not_pass_for_pixels(written):
    regions = read_regions(written(feature(square(4000, 4000, 4)), feature(square(900, 900, 4))))
    check_on_image(regions, (5000, 5000), "cells.geojson")
    with pytest.raises(InputError) as caught:
        check_on_image(regions, (800, 800), "cells.geojson")
    assert caught.value.field == "coordinates"
