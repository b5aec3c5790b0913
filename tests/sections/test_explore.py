"""One look at a section, and maps of a gene."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from tests.tiny_section import write_tiny_section

from histocrypt.errors import InputError
from histocrypt.explore import overview
from histocrypt.sections.image import ImageSource
from histocrypt.sections.read import read_path


@pytest.fixture
def section(tmp_path):
    return read_path(write_tiny_section(tmp_path, n_side=7))


def test_a_look_holds_no_section_and_no_image(section):
    from anndata import AnnData

    found = overview.look(section, spots=12)
    assert found.summary.section == found.registration.section == found.spacing.section == "A"
    assert found.spacing.pitch_um == pytest.approx(200)
    assert len(found.sample.names) == 12
    assert set(found.patterns) == set(section.genes)
    assert list(found.ranks) == sorted(found.patterns, key=found.patterns.get, reverse=True)[: len(found.ranks)]
    for gene, ranks in found.ranks.items():
        np.testing.assert_allclose(ranks, overview.gene_ranks(section, gene), rtol=1e-12)
    held = [value for part in (found, found.summary, found.sample) for value in vars(part).values()]
    assert not any(isinstance(value, AnnData | ImageSource) for value in held)
    assert found.summary.thumbnail.nbytes < 1e6


def test_gene_by_id_or_symbol(section):
    by_id = overview.gene_ranks(section, "ENSG00000000004")
    np.testing.assert_array_equal(by_id, overview.gene_ranks(section, "GENE4"))
    assert overview.gene_name(section, "ENSG00000000004") == "GENE4"
    assert overview.gene_ranks(section, "NOBODY") is None
    assert overview.gene_name(section, "NOBODY") == "NOBODY"


def test_the_gene_with_a_pattern_is_found(section):
    from dataclasses import replace

    adata = section.adata.copy()
    counts = adata.X.toarray()
    counts[:, 7] = 20 * adata.obs["array_col"]
    adata.X = csr_matrix(counts)
    look = overview.look(replace(section, adata=adata))
    assert overview.patterned_gene([look]) == "ENSG00000000007"
    assert overview.patterned_gene([look, replace(look, patterns={"other": 1.0})]) == ""
    assert overview.patterned_gene([]) == ""


def test_gene_maps(section):
    summary = overview.summarise(section)
    ranks = {"A": overview.gene_ranks(section, "GENE4")}
    figure = overview.gene_maps([summary], ranks, name="GENE4")
    assert np.asarray(figure.axes[0].collections[0].get_array()) == pytest.approx(ranks["A"])
    with pytest.raises(InputError, match="'NOBODY'") as refused:
        overview.gene_maps([summary], {"A": None}, name="NOBODY")
    assert refused.value.field == "gene"
    assert len(overview.spot_maps([summary], min_counts=5).axes) == 4  # three places and the colour bar


def test_a_shown_figure_is_the_saved_one_and_is_closed(section, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    displayed = []
    monkeypatch.setattr("IPython.display.display", displayed.append)
    figure = overview.spot_maps([overview.summarise(section)], min_counts=5)
    overview.show(figure, tmp_path / "spots.png")
    assert displayed[0].data == (tmp_path / "spots.png").read_bytes()
    assert not plt.fignum_exists(figure.number)


def test_shares_of_genes_with_one_symbol_are_added(section):
    section.adata.var["symbol"] = ["SAME", "SAME", *section.adata.var["symbol"][2:]]
    per_gene = np.asarray(section.adata.X.sum(axis=0)).ravel()
    share = overview.summarise(section).gene_share
    assert share["SAME"] == pytest.approx(per_gene[:2].sum() / per_gene.sum())
    assert sum(share.values()) == pytest.approx(1)
    table = overview.largest_genes([overview.summarise(section)], n=3)
    assert table["A"].iloc[0] == pytest.approx(100 * max(share.values()), abs=0.01)
