"""Variance explained by depth and density, on genes made to hold all or nothing of it."""

import numpy as np
import pandas as pd
import pytest
from tests.tiny_section import write_tiny_section

from histocrypt.errors import InputError
from histocrypt.explore.confounding import (
    compositions,
    confounding,
    confounding_figure,
    explained,
    most_and_least,
    over_sections,
    spatial_blocks,
)
from histocrypt.sections.read import read_path


@pytest.fixture
def section(tmp_path):
    """A section of 196 spots whose first gene is depth alone, whose second follows density, whose third is neither."""
    import anndata

    path = write_tiny_section(tmp_path, n_side=14, n_genes=40)
    adata = anndata.read_h5ad(path)
    rng = np.random.default_rng(1)
    depth, density = np.exp(rng.normal(7, 0.6, adata.n_obs)), rng.normal(0, 1, adata.n_obs)
    counts = np.round(depth[:, None] * np.full(40, 1 / 40))
    counts[:, 1] = np.round(depth / 40 * np.exp(0.5 * density))
    counts[:, 2] = rng.poisson(20, adata.n_obs)
    counts[:, 3] = 0  # never seen
    from scipy.sparse import csr_matrix

    adata.X = csr_matrix(counts.astype(np.float32))
    shares = np.column_stack([1 / (1 + np.exp(-density)), 1 - 1 / (1 + np.exp(-density))])
    adata.obsm["cells"] = pd.DataFrame(shares, index=adata.obs_names, columns=["dense", "sparse"])
    adata.obsm["unnamed"] = shares
    adata.obsm["scores"] = pd.DataFrame(shares - 0.5, index=adata.obs_names, columns=["a", "b"])
    adata.write_h5ad(path)
    return read_path(path), density


def test_constructed_genes(section):
    the_section, density = section
    found = confounding(the_section, density)
    genes = found.genes
    name = the_section.genes
    assert genes.loc[name[0], "log1p:depth"] > 0.97
    assert abs(genes.loc[name[2], "log1p:depth"]) < 0.15
    assert genes.loc[name[1], "log1p:depth"] < 0.8
    assert genes.loc[name[1], "log1p:depth_and_density"] > 0.97
    assert genes.loc[name[1], "log1p_cp10k:depth"] < 0.1
    assert genes.loc[name[1], "log1p_cp10k:depth_and_density"] > 0.9
    assert name[3] not in genes.index
    assert list(genes["symbol"][:1]) == [the_section.adata.var["symbol"][genes.index[0]]]


def test_cell_types_are_taken_where_they_are_shares_with_names(section):
    the_section, density = section
    assert list(compositions(the_section.adata)) == ["cells"]
    cells = confounding(the_section, density).cells
    assert list(cells.index) == ["cells:dense", "cells:sparse"]
    assert (cells["depth"] < 0.1).all()
    assert (cells["depth_and_density"] > 0.9).all()


def test_explained_is_cross_validated():
    """Noise explains nothing of what it was not fitted to; what is fitted on the spots themselves would look useful."""
    rng = np.random.default_rng(0)
    features, targets, blocks = rng.normal(size=(120, 10)), rng.normal(size=(120, 300)), np.arange(120) // 6
    shares = explained(features, targets, blocks)
    assert shares.mean() < -0.1
    exact = explained(features, np.column_stack([features[:, 0], np.ones(120)]), blocks)
    assert exact[0] == pytest.approx(1)
    assert np.isnan(exact[1])


def test_blocks_are_squares_of_neighbours():
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(6.0), np.arange(6.0)))
    blocks = spatial_blocks(7.0 * np.column_stack([x, y]), pitches=3)
    assert len(np.unique(blocks)) == 4
    assert set(np.bincount(blocks)) == {9}


def test_tables_over_sections(section):
    the_section, density = section
    one = confounding(the_section, density)
    from dataclasses import replace

    rest = replace(one, section="B", genes=one.genes.drop(index=one.genes.index[0]) * 1)
    table = over_sections([one, rest])
    assert table.loc[one.genes.index[0], "sections"] == 1
    assert table.loc[one.genes.index[1], "sections"] == 2
    shown = most_and_least(table, "log1p:depth", n=3)
    assert len(shown) == 6
    assert (shown["sections"] == 2).all()
    assert shown["log1p:depth"].iloc[0] == table.loc[table["sections"] == 2, "log1p:depth"].max().round(2)
    assert len(confounding_figure(table, over_sections([one], "cells")).axes) == 4
    assert over_sections([], "cells").empty
    assert most_and_least(over_sections([]), "log1p:depth").empty


def test_too_little_to_say_is_none_and_bad_input_one_sentence(section, tmp_path):
    the_section, density = section
    assert confounding(the_section, density, min_counts=10**9) is None
    small = read_path(write_tiny_section(tmp_path / "small", n_side=4))
    assert confounding(small, np.zeros(16)) is None
    with pytest.raises(InputError, match="^A: density"):
        confounding(the_section, density[:-1])
    with pytest.raises(InputError, match="^blocks: "):
        explained(density[:, None], density[:, None], np.zeros(len(density), int))
