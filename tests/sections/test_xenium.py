"""Xenium: cells summed over squares, on the H&E image through its alignment matrix."""

import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from tests.xenium import GENES, HE_UM, PIXEL_UM, alignment, truth, write_xenium

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.read import find_sections, read_path, read_section


def read(path, **given):
    (files,) = find_sections(SectionSource(path=str(path), patient="P1", **given))
    return files, read_section(files)


def assert_holds(section, side):
    centres, counts = truth()
    square = np.floor(centres / side).astype(int)
    square -= square.min(axis=0)
    corner = np.floor(centres / side).min(axis=0)
    for row, column, own, place in zip(
        section.adata.obs["array_row"],
        section.adata.obs["array_col"],
        section.adata.X.toarray(),
        section.coords,
        strict=True,
    ):
        here = (square == (column, row)).all(axis=1)
        np.testing.assert_array_equal(own, counts[here].sum(axis=0))
        x, y, _ = alignment() @ (*place, 1)  # back to the morphology image, as 10x writes it
        np.testing.assert_allclose(np.array([x, y]) * PIXEL_UM, (corner + (column, row) + 0.5) * side, atol=1e-6)
    assert section.adata.X.sum() == counts.sum()
    assert section.um_per_px == pytest.approx(HE_UM)
    assert section.adata.n_vars == GENES
    assert section.adata.uns["spatial"][section.id]["metadata"]["inter_spot_um"] == side


@pytest.mark.parametrize("cells", ["parquet", "csv.gz", "csv"])
def test_cells_are_summed_over_squares(tmp_path, cells):
    files, section = read(write_xenium(tmp_path / "P1" / "outs", cells=cells))
    assert (files.format, files.id) == ("xenium", "P1")
    assert_holds(section, 100)
    assert section.image.path.name == "he_image.ome.tif"
    assert section.um_per_px_source == "file"
    assert "900 cells summed over squares of 100 um" in section.origins["counts"]


def test_the_size_of_squares_is_stated(tmp_path):
    run = write_xenium(tmp_path / "run")
    assert_holds(read(run, bin_um=55)[1], 55)
    assert_holds(read_path(run / "experiment.xenium", bin_um=40), 40)


def test_several_sections_by_their_prefixes(tmp_path):
    for number in (1, 2):
        write_xenium(tmp_path / "both", prefix=f"Rep{number}_", seed=number - 1)
    first, second = find_sections(SectionSource(path=str(tmp_path / "both"), patient="P1"))
    assert (first.id, second.id) == ("Rep1", "Rep2")
    assert_holds(read_section(first), 100)
    section = read_section(second)
    assert section.adata.X.sum() == truth(seed=1)[1].sum()
    assert section.image.path.name == "Rep2_he_image.ome.tif"


def test_ids_of_the_first_version_are_numbers(tmp_path):
    run = write_xenium(tmp_path / "run")
    table = pd.read_parquet(run / "cells.parquet")
    table["cell_id"] = np.arange(1, len(table) + 1)
    table.to_parquet(run / "cells.parquet")
    from scipy import sparse
    from tests.space_ranger import write_h5

    names = [str(number) for number in table["cell_id"]]
    features = [(f"ENSG{number:011d}", f"GENE{number}", "Gene Expression") for number in range(GENES)]
    write_h5(run / "cell_feature_matrix.h5", names, features, sparse.csr_matrix(truth()[1]))
    assert_holds(read(run)[1], 100)


def test_for_scoring_no_image_is_needed(tmp_path):
    section = read_path(write_xenium(tmp_path / "run", image=False))
    assert section.image is None
    assert section.um_per_px == PIXEL_UM


def test_a_matrix_that_excel_saved(tmp_path):
    run = write_xenium(tmp_path / "run")
    path = run / "he_imagealignment.csv"
    text = path.read_text().replace(",", ";").replace(".", ",")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert_holds(read(run)[1], 100)


def to_um(matrix):
    return np.diag([PIXEL_UM, PIXEL_UM, 1]) @ matrix


def shifted(matrix):
    return matrix + np.array([[0, 0, 1e5], [0, 0, 0], [0, 0, 0]])


def stretched(matrix):
    return matrix @ np.diag([1, 1.5, 1])


@pytest.mark.parametrize("change", [to_um, np.linalg.inv, shifted, stretched, lambda matrix: matrix[:2], np.zeros_like])
def test_a_matrix_of_something_else_is_refused(tmp_path, change):
    run = write_xenium(tmp_path / "run")
    pixels = tifffile.imread(run / "he_image.ome.tif")
    tifffile.imwrite(
        run / "he_image.ome.tif", pixels, photometric="rgb", resolution=(1e4 / HE_UM, 1e4 / HE_UM), resolutionunit=3
    )
    np.savetxt(run / "he_imagealignment.csv", change(alignment()), delimiter=",")
    with pytest.raises(InputError) as caught:
        read(run)
    assert caught.value.file.name == "he_imagealignment.csv"


def without(name):
    return lambda run: (run / name).unlink()


def other_cells(run):
    table = pd.read_parquet(run / "cells.parquet")
    table[10:].to_parquet(run / "cells.parquet")


def no_pixel(run):
    (run / "experiment.xenium").write_text(json.dumps({"pixel_size": "small"}))


def second_image(run):
    (run / "other_he_image.tif").write_bytes((run / "he_image.ome.tif").read_bytes())


@pytest.mark.parametrize(
    ("edit", "file", "field"),
    [
        (without("he_imagealignment.csv"), "he_image.ome.tif", None),
        (without("cells.parquet"), "run", None),
        (other_cells, "cells.parquet", "cell_id"),
        (no_pixel, "experiment.xenium", "pixel_size"),
        (second_image, "run", None),
    ],
)
def test_defect_is_refused(tmp_path, edit, file, field):
    run = write_xenium(tmp_path / "run")
    edit(run)
    with pytest.raises(InputError) as caught:
        read(run)
    assert (caught.value.file.name, caught.value.field) == (file, field)


def test_cells_in_millimetres_are_refused(tmp_path):
    root = write_xenium(tmp_path / "run", cells="csv")
    table = pd.read_csv(root / "cells.csv")
    table[["x_centroid", "y_centroid"]] /= 1000
    table.to_csv(root / "cells.csv", index=False)
    with pytest.raises(InputError) as refused:
        read_path(root)
    assert refused.value.field == "x_centroid, y_centroid"
