"""Counts are found wherever they are whole numbers, with the right values and the right genes, and it is said where."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from histocrypt.errors import InputError
from histocrypt.sections.read import read_path


@pytest.fixture
def section(tiny_section, tmp_path):
    """Return the path and the counts of a section, dense."""
    path = tiny_section(tmp_path)
    return path, anndata.read_h5ad(path).X.toarray()


def change(path, edit):
    adata = anndata.read_h5ad(path)
    adata = edit(adata) or adata
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(path)


def logged(counts):
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)


def scaled(counts):
    values = logged(counts)
    return ((values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)).astype(np.float32)


MADE = {
    "log-normalised": logged,
    "scaled": scaled,
    "per 10,000": lambda counts: counts / counts.sum(axis=1, keepdims=True) * 1e4,
    "square roots": np.sqrt,
    "only whether": lambda counts: (counts > 0).astype(np.float32),
    "rounded per 10,000": lambda counts: np.rint(counts / counts.sum(axis=1, keepdims=True) * 1e4),
}


PLACES = ["raw_counts", "raw", "umi", "UMI_counts", "raw.X"]


@pytest.mark.parametrize(
    ("made", "place"), [(made, "counts") for made in MADE] + [("scaled", place) for place in PLACES]
)
def test_counts_are_found(made, place, section):
    path, counts = section

    def edit(adata):
        if place == "raw.X":
            adata.raw = adata.copy()
        else:
            adata.layers[place] = adata.X.copy()
        adata.X = MADE[made](counts)

    change(path, edit)
    found = read_path(path)
    np.testing.assert_array_equal(found.adata.X.toarray(), counts)
    assert found.adata.X.dtype == np.int32
    assert found.origins["counts"] == (place if place == "raw.X" else f"layers[{place!r}]")
    assert any(found.origins["counts"] in note for note in found.notes)


def test_raw_brings_its_own_genes(section):
    path, counts = section

    def edit(adata):
        adata.raw = adata.copy()
        less = adata[:, [7, 3, 12]].copy()
        less.X = scaled(counts)[:, [7, 3, 12]]
        return less

    names = anndata.read_h5ad(path).var_names.tolist()
    change(path, edit)
    found = read_path(path)
    assert found.genes.tolist() == names
    np.testing.assert_array_equal(found.adata.X.toarray(), counts)
    assert found.adata.var["symbol"].tolist()[:2] == ["GENE0", "GENE1"]
    assert found.origins["counts"] == "raw.X"
    assert any("raw has 30 genes, X has 3" in note for note in found.notes)


def test_genes_of_raw_in_another_order_keep_their_counts(section):
    path, counts = section

    def edit(adata):
        order = np.random.default_rng(0).permutation(adata.n_vars)
        adata.raw = adata[:, order].copy()
        adata.X = logged(counts)

    change(path, edit)
    np.testing.assert_array_equal(read_path(path).adata.X.toarray(), counts)


def test_antibodies_of_raw_are_left_out_too(section):
    path, counts = section

    def edit(adata):
        kinds = pd.Series(["Gene Expression"] * 28 + ["Antibody Capture"] * 2, index=adata.var_names)
        adata.var["feature_types"] = kinds
        adata.raw = adata.copy()
        less = adata[:, :10].copy()
        less.X = logged(counts)[:, :10]
        return less

    change(path, edit)
    np.testing.assert_array_equal(read_path(path).adata.X.toarray(), counts[:, :28])


def test_antibodies_that_are_normalised_do_not_hide_the_counts_of_genes(section):
    path, counts = section

    def edit(adata):
        adata.var["feature_types"] = ["Gene Expression"] * 28 + ["Antibody Capture"] * 2
        adata.X = np.hstack([counts[:, :28], logged(counts)[:, 28:]])

    change(path, edit)
    found = read_path(path)
    np.testing.assert_array_equal(found.adata.X.toarray(), counts[:, :28])
    assert found.origins["counts"] == "X"


def test_a_layer_stands_where_there_is_no_x(section):
    path, counts = section

    def edit(adata):
        adata.layers["counts"] = adata.X.copy()
        adata.X = None

    change(path, edit)
    np.testing.assert_array_equal(read_path(path).adata.X.toarray(), counts)


def test_x_is_taken_where_it_holds_counts(section):
    path, counts = section

    def edit(adata):
        adata.layers["counts"] = adata.X * 2
        adata.layers["spliced"] = adata.X.copy()
        adata.X = adata.X.astype(np.float64)

    change(path, edit)
    found = read_path(path)
    np.testing.assert_array_equal(found.adata.X.toarray(), counts)
    assert found.origins["counts"] == "X"


@pytest.mark.parametrize("made", ["log-normalised", "scaled", "per 10,000", "square roots"])
def test_no_counts_anywhere_are_refused(made, section):
    path, counts = section

    def edit(adata):
        adata.X = MADE[made](counts)
        adata.raw = adata.copy()

    change(path, edit)
    with pytest.raises(InputError) as raised:
        read_path(path)
    assert (raised.value.file, raised.value.field) == (path, "X")
    assert "layers['counts']" in raised.value.fix
    assert ("ln(1 + counts per 10,000)" in str(raised.value)) == (made == "log-normalised")
    found = read_path(path, for_prediction=True)  # which needs none
    assert found.adata.n_vars == 0
    assert found.n_spots == 36


def test_a_layer_that_is_a_part_of_the_counts_is_named_and_not_taken(section):
    path, counts = section

    def edit(adata):
        adata.layers["spliced"] = sparse.csr_matrix(counts)
        adata.X = logged(counts)

    change(path, edit)
    with pytest.raises(InputError, match="'spliced'") as raised:
        read_path(path)
    assert raised.value.field == "X"


@pytest.mark.parametrize("made", ["only whether", "rounded per 10,000", "ranks"])
def test_whole_numbers_that_are_plainly_no_counts_are_noted(made, section):
    path, counts = section
    values = counts.argsort(axis=1).argsort(axis=1) if made == "ranks" else MADE[made](counts)

    def edit(adata):
        adata.X = values.astype(np.float32)

    change(path, edit)
    found = read_path(path)
    assert [note for note in found.notes if "X: " in note and "it seems" in note]
    np.testing.assert_array_equal(found.adata.X.toarray(), values)


def test_nothing_is_said_of_ordinary_counts(section):
    path, _ = section
    assert not [note for note in read_path(path).notes if "count" in note]
