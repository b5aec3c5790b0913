import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.report.jupyter import gene_values, most_abundant, view_sections
from histocrypt.sections.read import find_sections


@pytest.fixture
def files(tiny_section, tmp_path):
    """Two sections of 36 spots, 200 um apart."""
    for name in "AB":
        tiny_section(tmp_path, name)
    return find_sections(SectionSource(path=str(tmp_path / "*.h5ad")))


def read(files):
    from histocrypt.sections.read import read_section

    return read_section(files[0])


def test_the_first_view_is_the_most_abundant_gene(files, tmp_path):
    board = view_sections(files)
    board.show()
    counts = ad.read_h5ad(files[0].path)
    first = counts.var["symbol"].iloc[np.asarray(counts.X.sum(axis=0)).argmax()]
    assert board.controls["gene"].value == most_abundant(read(files))[0] == first
    assert board.sentence.startswith(f"{first} in section A of patient P1 (depth-normalised")
    assert "of 36 spots" in board.sentence
    board.save(tmp_path / "eda" / "viewer.png")
    assert Image.open(tmp_path / "eda" / "viewer.png").width > 600


def test_every_control_redraws(files):
    board = view_sections(files, gene="GENE3")
    board.show()
    seen = [board.picture]
    for name, value in {"section": "B", "gene": "GENE4", "transform": "stored", "touching": True, "opacity": 1}.items():
        board.controls[name].value = value
        assert board.picture not in seen, name
        seen.append(board.picture)


def test_values_are_those_of_the_file(files):
    section = read(files)
    counts = ad.read_h5ad(files[0].path)
    raw = counts[:, "ENSG00000000007"].X.toarray().ravel()
    assert gene_values(section, "gene7", "stored")[0] == "GENE7"
    np.testing.assert_allclose(gene_values(section, "gene7", "stored")[1], raw)
    expected = np.log1p(1e4 * raw / np.asarray(counts.X.sum(axis=1)).ravel())
    np.testing.assert_allclose(gene_values(section, "ENSG00000000007", "log1p_cp10k")[1], expected, rtol=1e-5)


def test_cell_types_are_shown_where_they_are_the_target(files):
    for one in files:
        annotated = ad.read_h5ad(one.path)
        share = np.random.default_rng(0).dirichlet([1, 2, 6], annotated.n_obs)
        annotated.obsm["types"] = pd.DataFrame(share, index=annotated.obs_names, columns=["B cell", "T cell", "Tumour"])
        annotated.write_h5ad(one.path)
    board = view_sections(files, matrix="obsm:types")
    board.show()
    assert board.controls["gene"].description == "Cell type"
    assert board.sentence.startswith("Tumour in section A of patient P1 (proportion)")
    board.controls["transform"].value = "spot_rank"
    assert "median 3.00, highest 3.00" in board.sentence


def test_it_opens_with_the_first_section_that_measured_the_gene(files):
    counts = ad.read_h5ad(files[0].path)
    counts[:, counts.var["symbol"] != "GENE3"].copy().write_h5ad(files[0].path)
    assert view_sections(files, gene="GENE3").controls["section"].value == "B"
    with pytest.raises(InputError, match="there is no 'GENE3' in section A"):
        view_sections(files, section="A", gene="GENE3")
    with pytest.raises(InputError, match="there is no section to look at"):
        view_sections([])


def test_what_cannot_be_seen_says_why(files):
    with pytest.raises(InputError, match="unknown section 'C'"):
        view_sections(files, section="C")
    with pytest.raises(InputError, match="unknown transform 'rank'"):
        view_sections(files, transform="rank")
    with pytest.raises(InputError, match=r"section A has no matrix obsm:types"):
        view_sections(files, matrix="obsm:types")
    board = view_sections(files)
    board.show()
    before = board.picture
    board.controls["gene"].value = "GENE77"
    assert board.sentence == "there is no 'GENE77' in section A; did you mean GENE7 or GENE27 or GENE17?"
    assert board.picture == before


def test_a_constant_gene_is_drawn_and_said(files):
    counts = ad.read_h5ad(files[0].path)
    without = counts.X.toarray()
    without[:, 5] = 0
    counts.X = type(counts.X)(without)
    counts.write_h5ad(files[0].path)
    board = view_sections(files, gene="GENE5")
    board.show()
    assert board.sentence.endswith("It has the same value at every spot.")
