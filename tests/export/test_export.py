"""Predictions as files of others: what stands in them, and what is refused."""

import json
import uuid

import anndata as ad
import jsonschema
import numpy as np
import pandas as pd
import pytest
import tifffile
from matplotlib import colormaps
from typer.testing import CliRunner

from histocrypt.cli import app
from histocrypt.errors import InputError
from histocrypt.export.registry import FORMATS, export, format_of

NAMES = ["ERBB2", "TWIN (ENSG00000000004)", "ACTB", "TWIN (ENSG00000000003)"]  # as training trusts them
GENE = "ENSG00000000002"
RGB = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}
QUPATH = {  # what qupath.lib.io.QuPathTypeAdapters reads of a collection, and of which type; nothing else is looked at
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "id", "geometry", "properties"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "Feature"},
                    "id": {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f-]{27}$"},
                    "geometry": {
                        "type": "object",
                        "required": ["type", "coordinates"],
                        "properties": {
                            "type": {"enum": ["Polygon", "MultiPolygon", "Point", "LineString"]},
                            "coordinates": {
                                "type": "array",
                                "items": {
                                    "type": "array",
                                    "minItems": 4,
                                    "items": {
                                        "type": "array",
                                        "items": {"type": "number"},
                                        "minItems": 2,
                                        "maxItems": 2,
                                    },
                                },
                            },
                        },
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType"],
                        "additionalProperties": False,
                        "properties": {
                            "objectType": {"enum": ["annotation", "detection", "cell", "tile", "tmaCore"]},
                            "name": {"type": "string"},
                            "color": RGB,
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {"name": {"type": "string"}, "color": RGB},
                            },
                            "isLocked": {"type": "boolean"},
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                    },
                },
            },
        },
    },
}


def collection(path, **how):
    export(path, path.with_suffix(".geojson"), to="geojson", **how)
    found = json.loads(path.with_suffix(".geojson").read_text())
    jsonschema.validate(found, QUPATH)
    return found


def test_qupath_gets_detections_with_values_and_colours(make):
    path = make()
    found, prediction = collection(path, colour="ACTB"), ad.read_h5ad(path)
    features = found["features"]
    assert len(features) == prediction.n_obs
    assert {feature["properties"]["objectType"] for feature in features} == {"detection"}
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(features)
    shown = prediction.layers["log1p_cp10k"][:, 0]
    for row, feature in enumerate(features):
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert (ring[0] == ring[-1]).all()
        np.testing.assert_allclose(ring[:-1].mean(axis=0), prediction.obsm["spatial"][row], atol=0.02)
        np.testing.assert_allclose(np.ptp(ring, axis=0), 30.0, atol=0.02)  # 60 um at 2 um a pixel
        told = feature["properties"]
        assert list(told["measurements"]) == [*NAMES, "tumour_probability"]
        assert told["measurements"]["ACTB"] == pytest.approx(shown[row], rel=1e-4)
        assert told["name"] == prediction.obs["barcode"].iloc[row]
    low, high = (features[int(place)]["properties"] for place in (shown.argmin(), shown.argmax()))
    assert low["color"] == list(colormaps["viridis"](0.0, bytes=True)[:3])
    assert high["color"] == list(colormaps["viridis"](1.0, bytes=True)[:3])
    assert (low["classification"]["name"], high["classification"]["name"]) == ("ACTB 1 of 5", "ACTB 5 of 5")
    by_class = {
        (f["properties"]["classification"]["name"], *f["properties"]["classification"]["color"]) for f in features
    }
    assert len(by_class) == len({name for name, *_ in by_class}), "QuPath knows one colour for a class"
    genes = found["histocrypt"]["genes"]
    assert [gene["training_pearson"] for gene in genes] == [0.6, 0.3, 0.1, None]


def test_an_object_keeps_its_identity_over_exports(make):
    one, two = collection(make("a")), collection(make("b", trust=False))
    assert [feature["id"] for feature in one["features"]] == [feature["id"] for feature in two["features"]]
    assert list(two["features"][0]["properties"]["measurements"])[0] == "ACTB"  # nobody says which to trust


def test_a_grid_is_of_squares_and_size_that_nobody_says_is_said(make, tmp_path):
    ring = np.array(collection(make(points="of a grid"))["features"][0]["geometry"]["coordinates"][0])
    assert sorted(map(tuple, ring[:-1])) == [(0, 0), (0, 50), (50, 0), (50, 50)]
    _, notes = export(make("b", spot_diameter_um=None), tmp_path / "c.csv", to="csv")
    assert len(notes) == 1


def test_regions_keep_the_outlines_of_who_drew_them(make, tmp_path):
    path, drawn = make(points="regions that others drew"), tmp_path / "cells.geojson"
    prediction = ad.read_h5ad(path)
    names = prediction.obs["barcode"].tolist()
    square = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
    hole, far = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]], [[20, 20], [30, 20], [30, 30]]
    shapes = {names[1]: ("Polygon", [square, hole]), names[0]: ("MultiPolygon", [[square, hole], [far]])}
    features = [
        {"type": "Feature", "id": name, "geometry": {"type": kind, "coordinates": lines}, "properties": {}}
        for name, (kind, lines) in shapes.items()
    ]
    drawn.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    prediction.uns["regions"] = {"file": str(drawn)}
    prediction.obs["kind"] = ["Tumor", *([""] * (prediction.n_obs - 1))]
    prediction[:2].copy().write_h5ad(path)
    export(path, out := path.with_name("a.geojson"), to="geojson")
    several, one = json.loads(out.read_text())["features"]
    assert one["geometry"] == {"type": "Polygon", "coordinates": [square, hole]}
    assert several["geometry"] == {"type": "MultiPolygon", "coordinates": [[square, hole], [[*far, far[0]]]]}
    assert several["properties"]["metadata"] == {"class before": "Tumor"}
    assert "metadata" not in one["properties"]
    jsonschema.validate({"type": "FeatureCollection", "features": [one]}, QUPATH)
    drawn.unlink()
    _, (note,) = export(path, out, to="geojson")
    assert str(drawn) in note
    assert len(json.loads(out.read_text())["features"][0]["geometry"]["coordinates"][0]) > 20, "a disc"


def test_what_is_said_of_genes_goes_along(make):
    path = make()
    prediction = ad.read_h5ad(path)
    prediction.var["half_width:log1p_cp10k"] = [1.0, 2.0, 3.0, 4.0]
    prediction.var["patients"] = 3
    prediction.write_h5ad(path)
    export(path, path.with_name("out.h5ad"), to="anndata")
    var = ad.read_h5ad(path.with_name("out.h5ad")).var
    assert list(var) == ["gene_ids", "training_pearson", "half_width", "patients"]
    assert var.loc["ERBB2", "half_width"] == 2.0
    genes = collection(path)["histocrypt"]["genes"]
    assert genes[0] == {"id": GENE, "name": "ERBB2", "training_pearson": 0.6, "half_width": 2.0, "patients": 3}
    export(path, path.with_name("out.h5ad"), to="anndata", layer="log1p")
    assert list(ad.read_h5ad(path.with_name("out.h5ad")).var) == ["gene_ids", "training_pearson", "patients"]


def test_genes_and_layers_are_chosen(make):
    path = make()
    found = collection(path, genes=["ENSG00000000003", "erbb2".upper()], layer="log1p")
    assert list(found["features"][0]["properties"]["measurements"])[:2] == [NAMES[3], "ERBB2"]
    wanted = ad.read_h5ad(path).layers["log1p"][0, 1]
    assert found["features"][0]["properties"]["measurements"]["ERBB2"] == pytest.approx(wanted, rel=1e-4)
    for how, field, value in (
        ({"genes": ["ERBB3"]}, "--genes", "ERBB3"),
        ({"genes": ["TWIN"]}, "--genes", "TWIN"),
        ({"genes": ["ACTB"], "colour": "ERBB2"}, "--colour", "ERBB2"),
        ({"layer": "rank"}, "--layer", None),
        ({"section": "S9"}, "--section", None),
        ({"um_per_px": -1.0}, "--um-per-px", -1.0),
    ):
        with pytest.raises(InputError) as refused:
            export(path, path.with_name("b.geojson"), to="geojson", **how)
        assert (refused.value.field, refused.value.value) == (field, value)
        assert not path.with_name("b.geojson").exists()


def test_tables(make):
    path = make()
    prediction = ad.read_h5ad(path)
    export(path, path.with_name("plain.csv"), to="csv")
    plain = pd.read_csv(path.with_name("plain.csv"))
    assert list(plain) == ["section", "barcode", "x_px", "y_px", *NAMES, "tumour_probability"]
    np.testing.assert_allclose(plain["ERBB2"], prediction.layers["log1p_cp10k"][:, 1], rtol=1e-5)
    export(path, path.with_name("loupe.csv"), to="loupe-csv", genes=["ERBB2"])
    loupe = pd.read_csv(path.with_name("loupe.csv"))
    assert list(loupe) == ["Barcode", "ERBB2"]
    assert loupe["Barcode"].tolist() == prediction.obs["barcode"].tolist()
    means = plain["ERBB2"].groupby(loupe["ERBB2"]).mean()
    assert means.index.tolist() == [f"{fifth} of 5" for fifth in range(1, 6)]
    assert means.is_monotonic_increasing
    assert loupe["ERBB2"].value_counts().max() <= 5  # of 24


def test_anndata_has_nothing_of_ours(make):
    path = make()
    out = path.with_name("out.h5ad")
    export(path, out, to="anndata")
    found, prediction = ad.read_h5ad(out), ad.read_h5ad(path)
    assert not found.uns
    assert found.var_names.tolist() == NAMES
    np.testing.assert_array_equal(found[:, "ERBB2"].X.ravel(), prediction.layers["log1p_cp10k"][:, 1])
    assert found.var.loc["ERBB2", "gene_ids"] == "ENSG00000000002"
    np.testing.assert_array_equal(found.obsm["spatial"], prediction.obsm["spatial"])
    export(path, out, to="anndata", genes=["ACTB"])  # ours: it may be replaced
    again = ad.read_h5ad(out)
    assert again.n_vars == 1
    again.write_h5ad(out)  # a person's work on it may not
    with pytest.raises(InputError) as refused:
        export(path, out, to="anndata")
    assert (refused.value.file, refused.value.field) == (out, "--output")


def test_the_picture_lies_below_the_spots(make):
    path = make()
    export(path, path.with_name("sq.h5ad"), to="squidpy")
    found = ad.read_h5ad(path.with_name("sq.h5ad"))
    library = found.uns["spatial"]["S1"]
    height, width = library["images"]["hires"].shape[:2]
    scale = library["scalefactors"]["tissue_hires_scalef"]
    assert (round(width / scale), round(height / scale)) == (360, 260)
    assert library["scalefactors"]["spot_diameter_fullres"] == 30.0
    x, y = (found.obsm["spatial"] * scale).astype(int).T
    assert (library["images"]["hires"][y, x, 1] < 200).all(), "spots lie on tissue"
    _, notes = export(make("gone", image="/gone/slide.tif"), path.with_name("b.h5ad"), to="squidpy")
    assert len(notes) == 1
    assert not ad.read_h5ad(path.with_name("b.h5ad")).uns["spatial"]["S1"]["images"]


@pytest.mark.parametrize("squares", [True, False])
def test_gene_maps_lie_over_the_slide(make, squares):
    path = make(points="of a grid" if squares else None)
    out = path.with_name("maps.ome.tif")
    export(path, out, to="ome-tiff")
    prediction = ad.read_h5ad(path)
    with tifffile.TiffFile(out) as file:
        assert file.is_ome
        about = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        maps = file.asarray()
    assert [channel["Name"] for channel in about["Channel"]] == NAMES
    assert about["PhysicalSizeXUnit"] == "µm"
    assert about["PhysicalSizeX"] == pytest.approx(100.0 if squares else 25.0)
    side = float(about["PhysicalSizeX"]) / 2.0  # um to pixels of the slide
    x, y = (prediction.obsm["spatial"] / side).astype(int).T
    np.testing.assert_array_equal(maps[0, y, x], prediction.layers["log1p_cp10k"][:, 1])
    assert np.isnan(maps).any() != squares
    assert maps.shape[1:] == ((4, 6) if squares else (16, 24))


def test_maps_need_the_size_of_a_pixel(make):
    path = make(um_per_px=None, spot_diameter_um=None)
    with pytest.raises(InputError) as refused:
        export(path, path.with_name("maps.ome.tif"), to="ome-tiff")
    assert refused.value.field == "--um-per-px"
    export(path, path.with_name("maps.ome.tif"), to="ome-tiff", um_per_px=0.5)


def test_patches_lie_on_no_slide(make):
    path = make(places="side by side")
    with pytest.raises(InputError) as refused:
        export(path, path.with_name("a.geojson"), to="geojson")
    assert (refused.value.file, refused.value.field) == (path, "--to")
    export(path, path.with_name("a.csv"), to="csv")


def test_a_run_s_section_tells_what_its_prediction_does_not(make, tmp_path):
    loose = make(um_per_px=None, spot_diameter_um=None, image=None)
    path = tmp_path / "run" / "predictions" / "knn" / "fold.test.h5ad"
    (tmp_path / "run" / "sections").mkdir(parents=True)
    path.parent.mkdir(parents=True)
    loose.rename(path)
    cleaned = ad.AnnData(np.zeros((1, 1), np.float32))
    cleaned.uns["preprocessing"] = {"um_per_px": 4.0, "spot_diameter_um": 100.0}
    hires = {"images": {"hires": np.full((26, 36, 3), 9, np.uint8)}, "scalefactors": {"tissue_hires_scalef": 0.1}}
    cleaned.uns["spatial"] = {"S1": hires}
    cleaned.write_h5ad(tmp_path / "run" / "sections" / "S1.h5ad")
    _, notes = export(path, tmp_path / "sq.h5ad", to="squidpy")
    library = ad.read_h5ad(tmp_path / "sq.h5ad").uns["spatial"]["S1"]
    assert not notes
    assert library["scalefactors"] == {"spot_diameter_fullres": 25.0, "tissue_hires_scalef": 0.1}
    assert library["images"]["hires"].shape == (26, 36, 3)


def test_one_section_of_several(make):
    path = make(sections=("S1", "S2"))
    with pytest.raises(InputError) as refused:
        export(path, path.with_name("a.csv"), to="csv")
    assert refused.value.field == "--section"
    export(path, path.with_name("a.csv"), to="csv", section="S2")
    assert set(pd.read_csv(path.with_name("a.csv"))["section"]) == {"S2"}


def test_what_lies_there_is_kept(make):
    path = make()
    out = path.with_name("a.geojson")
    export(path, out, to="geojson")
    export(path, out, to="geojson")  # ours
    out.write_text('{"type": "FeatureCollection", "features": []}')
    for to, there in (("geojson", out), ("anndata", path)):
        before = there.read_bytes()
        with pytest.raises(InputError) as refused:
            export(path, there, to=to)
        assert (refused.value.file, refused.value.field) == (there, "--output")
        assert there.read_bytes() == before
    export(path, out, to="geojson", overwrite=True)
    with pytest.raises(InputError) as refused:
        export(path, path, to="anndata", overwrite=True)
    assert (refused.value.file, refused.value.field) == (path, "--output")
    with pytest.raises(InputError) as refused:
        export(path, path.with_name("a.txt"), to="csv")
    assert refused.value.field == "--output"


def test_every_format_has_its_module_and_a_library_that_is_not_there_is_named(monkeypatch):
    import sys

    for name in FORMATS:
        if name != "spatialdata":
            assert format_of(name).write
    monkeypatch.setitem(sys.modules, "spatialdata", None)  # as where it is not installed
    with pytest.raises(InputError) as refused:
        format_of("spatialdata")
    assert (refused.value.field, refused.value.value) == ("--to", "spatialdata")
    assert "histocrypt[export]" in refused.value.fix


def test_the_command(make, tmp_path):
    path = make()
    arguments = ["export", str(path), "-o", str(tmp_path / "a.geojson"), "--to", "geojson", "--genes", "ERBB2, ACTB"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "24 spots x 2 genes of S1" in done.output
    (tmp_path / "none.h5ad").write_bytes(b"no HDF5")
    for arguments, field in (
        (["export", str(path), "-o", "a.x", "--to", "x"], "--to"),
        (["export", str(tmp_path / "none.h5ad"), "-o", str(tmp_path / "b.csv"), "--to", "csv"], None),
    ):
        done = CliRunner().invoke(app, arguments)
        assert isinstance(done.exception, InputError)
        assert done.exception.field == field
