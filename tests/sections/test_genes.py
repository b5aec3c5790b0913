"""What genes are called: every kind of name is known, joined to every other, and what is no gene is left out."""

import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tests.space_ranger import write_space_ranger

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.pipeline.compatibility import check_fit
from histocrypt.sections.genes import ABSENT, SEVERAL, GeneNames, meant_by, places, why_apart
from histocrypt.sections.read import find_sections, read_path, read_section
from histocrypt.targets.panels import Panel

SYMBOLS = ["TP53", "EGFR", "ERBB2", "ACTB", "GAPDH", "MKI67", "HLA-A", "CD4", "PTPRC", "EPCAM", "KRT8", "NKX2-1"]
IDS = [f"ENSG{number:011d}" for number in range(len(SYMBOLS))]
KINDS = {
    "ids": (IDS, "Ensembl ids"),
    "versions": ([f"{one}.{number % 9 + 1}" for number, one in enumerate(IDS)], "Ensembl ids, versioned"),
    "prefix": ([f"GRCh38_{one}" for one in IDS], "Ensembl ids, GRCh38_ prefix"),
    "long prefix": ([f"GRCh38______{one}" for one in IDS], "Ensembl ids, GRCh38______ prefix"),
    "prefix and versions": ([f"hg19_{one}.4" for one in IDS], "Ensembl ids, versioned, hg19_ prefix"),
    "id and symbol": ([f"{one}|{symbol}" for one, symbol in zip(IDS, SYMBOLS, strict=True)], "Ensembl ids"),
    "symbol and id": (
        [f"{symbol}_{one}.2" for one, symbol in zip(IDS, SYMBOLS, strict=True)],
        "Ensembl ids, versioned",
    ),
    "small letters": ([one.lower() for one in IDS], "Ensembl ids"),
    "blanks": ([f" {one}.2 " for one in IDS], "Ensembl ids, versioned"),
    "symbols": (SYMBOLS, "symbols"),
    "prefixed symbols": ([f"GRCh38_{symbol}" for symbol in SYMBOLS], "symbols, GRCh38_ prefix"),
    "symbols of Seurat": ([f"hg38-{symbol}" for symbol in SYMBOLS], "symbols, hg38- prefix"),
}


def change(path, edit):
    """Rewrite a section file as ``edit`` returns it, or leaves it."""
    adata = anndata.read_h5ad(path)
    adata = edit(adata) or adata
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are not unique, on purpose
        adata.write_h5ad(path)
    return adata


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_joins_ids_with_their_symbols(kind):
    names, words = KINDS[kind]
    order = np.random.default_rng(0).permutation(len(names))
    measured = GeneNames.of([names[i] for i in order])
    assert measured.kind == words
    wanted = GeneNames.of(IDS, SYMBOLS)
    assert order[places(wanted, measured)].tolist() == list(range(len(names)))
    if "symbols" not in kind:
        assert order[places(GeneNames.of(IDS), measured)].tolist() == list(range(len(names)))


def test_ids_stand_beside_symbols_in_a_table():
    """As scanpy.read_visium leaves them; and as CELLxGENE has them, the other way round."""
    scanpy = GeneNames.of(pd.DataFrame({"gene_ids": [f"{one}.1" for one in IDS]}, index=SYMBOLS))
    cellxgene = GeneNames.of(pd.DataFrame({"feature_name": SYMBOLS}, index=IDS))
    assert places(GeneNames.of(IDS), scanpy).tolist() == list(range(12))
    assert places(GeneNames.of(SYMBOLS), cellxgene).tolist() == list(range(12))
    assert places(scanpy, cellxgene).tolist() == list(range(12))


def test_ids_of_other_catalogues_lose_their_version_but_names_of_clones_do_not():
    demo = [f"DEMO{number:05d}" for number in range(9)]
    assert places(GeneNames.of(demo), GeneNames.of([f"{one}.3" for one in demo])).tolist() == list(range(9))
    assert places(GeneNames.of(["AC011043.1", "TP53"]), GeneNames.of(["AC011043.2", "TP53"])).tolist() == [-1, 1]


def test_copies_on_x_and_y_are_two_genes():
    names = GeneNames.of(["ENSG00000182378.14", "ENSG00000182378.14_PAR_Y"])
    wanted = GeneNames.of(["ENSG00000182378_PAR_Y", "ENSG00000182378"])
    assert places(wanted, names).tolist() == [1, 0]


def test_what_is_not_certain_joins_nothing():
    var = pd.DataFrame({"symbol": ["SAME", "SAME", "TP53"]}, index=IDS[:3])
    assert places(GeneNames.of(["SAME", "TP53"]), GeneNames.of(var)).tolist() == [-1, 2]
    assert meant_by(["SAME", IDS[1], "NONE"], GeneNames.of(var)).tolist() == [SEVERAL, 1, ABSENT]
    other = pd.DataFrame({"symbol": ["TP53"]}, index=[IDS[7]])  # another id is another gene, whatever it is called
    assert places(GeneNames.of(other), GeneNames.of(var)).tolist() == [-1]
    twice = GeneNames.of([f"{IDS[0]}.1", f"{IDS[0]}.2"])  # two versions of one gene are never summed
    assert places(GeneNames.of([IDS[0]]), twice).tolist() == [-1]


def test_mouse_is_named():
    mouse = [symbol.capitalize() for symbol in SYMBOLS]
    for human, other in ((SYMBOLS, mouse), (IDS, [one.replace("ENSG", "ENSMUSG") for one in IDS])):
        one, two = GeneNames.of(human), GeneNames.of(other)
        assert (one.species, two.species) == ("human", "mouse")
        assert (places(one, two) == -1).all()
        assert "human" in why_apart(one, "a", two, "b")[1]
        assert "mouse" in why_apart(one, "a", two, "b")[1]


def with_others(adata, column, kinds):
    """Return a section with features of other kinds, a hundred times as abundant."""
    n = len(kinds)
    more = sparse.csr_matrix(np.full((adata.n_obs, n), 1500, np.float32))
    var = pd.DataFrame(
        {"symbol": [*adata.var["symbol"], *(f"F{i}" for i in range(n))]},
        index=[*adata.var_names, *(f"F{i}" for i in range(n))],
    )
    if column:
        var[column] = ["Gene Expression"] * adata.n_vars + kinds
    whole = anndata.AnnData(sparse.hstack([adata.X, more]).tocsr(), obs=adata.obs, var=var, uns=adata.uns)
    whole.obsm["spatial"] = adata.obsm["spatial"]
    return whole


OTHERS = ["Antibody Capture", "CRISPR Guide Capture", "Custom", "Multiplexing Capture", "Negative Control Probe"]
OTHERS += ["Negative Control Codeword", "BLANK", "Unassigned Codeword", "Deprecated Codeword", "Genomic Control"]


@pytest.mark.parametrize("column", ["feature_types", "feature_type", "Feature_Types"])
def test_other_features_are_left_out_and_said(column, tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    genes = anndata.read_h5ad(path)
    change(path, lambda adata: with_others(adata, column, [*OTHERS, "Antibody Capture"]))
    section = read_path(path)
    assert section.genes.tolist() == genes.var_names.tolist()
    np.testing.assert_array_equal(section.adata.X.toarray(), genes.X.toarray())
    (note,) = [note for note in section.notes if column in note]
    assert "11 of 41" in note
    assert "2 Antibody Capture" in note


def test_gene_biotypes_are_no_other_features(tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def edit(adata):
        adata.var["feature_biotype"] = ["protein_coding", "lncRNA", "spike-in", *["gene"] * 27]

    change(path, edit)
    assert "ENSG00000000002" not in read_path(path).genes
    assert len(read_path(path).genes) == 29


def test_probes_are_known_by_their_names(tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def edit(adata):
        adata.var_names = [*adata.var_names[:-4], "NegControlProbe_00042", "BLANK_0069", "Blank-1", "NegPrb3"]

    change(path, edit)
    assert len(read_path(path).genes) == 26


def test_antibodies_alone_are_no_section(tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def edit(adata):
        adata.var["feature_types"] = "Antibody Capture"

    change(path, edit)
    with pytest.raises(InputError) as raised:
        read_path(path)
    assert (raised.value.file, raised.value.field) == (path, "var['feature_types']")


@pytest.mark.parametrize("matrix", ["h5", "mtx.gz"])
def test_space_ranger_says_what_it_leaves_out(matrix, tmp_path):
    section = read_path(write_space_ranger(tmp_path / "run", matrix=matrix))
    assert len(section.genes) == 30
    assert list(section.adata.var.columns) == ["symbol"]
    assert any("1 Antibody Capture" in note for note in section.notes)


@pytest.mark.parametrize("column", ["gene_ids", "ensembl_id", "feature_id"])
def test_repeated_symbols_are_read_by_id(column, tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def edit(adata):
        adata.var[column] = list(adata.var_names)
        adata.var_names = ["SAME", "SAME", *adata.var["symbol"][2:]]
        del adata.var["symbol"]

    plain = anndata.read_h5ad(path)
    change(path, edit)
    section = read_path(path)
    assert section.genes.tolist() == plain.var_names.tolist()
    assert section.adata.var["symbol"].tolist()[:3] == ["SAME", "SAME", "GENE2"]
    np.testing.assert_array_equal(section.adata.X.toarray(), plain.X.toarray())
    assert column in section.origins["genes"]


def test_repeated_names_without_unique_ids_are_refused(tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def edit(adata):
        adata.var["gene_ids"] = [IDS[0], IDS[0], *adata.var_names[2:]]
        adata.var_names = ["SAME", "SAME", *adata.var_names[2:]]

    change(path, edit)
    (files,) = find_sections(SectionSource(path=str(path)))
    with pytest.raises(InputError) as raised:
        read_section(files)
    assert (raised.value.field, raised.value.value) == ("var_names", "SAME")
    assert read_path(path, for_prediction=True).n_spots == 36  # which looks at no gene


@pytest.mark.parametrize("column", ["gene_ids", "gene_name"])
def test_row_numbers_are_no_names(column, tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    names = anndata.read_h5ad(path).var_names.tolist()

    def edit(adata):
        adata.var[column] = names
        adata.var_names = [str(number) for number in range(30)]
        del adata.var["symbol"]

    change(path, edit)
    assert read_path(path).genes.tolist() == names


def test_symbols_of_cellxgene_are_kept(tiny_section, tmp_path):
    path = tiny_section(tmp_path)
    change(path, lambda adata: adata.var.rename(columns={"symbol": "feature_name"}, inplace=True))
    assert read_path(path).adata.var["symbol"].tolist()[:2] == ["GENE0", "GENE1"]


def test_unnamed_genes_are_refused(tiny_section, tmp_path):
    path = tiny_section(tmp_path)

    def edit(adata):
        adata.var_names = [str(number) for number in range(30)]
        del adata.var["symbol"]

    change(path, edit)
    with pytest.raises(InputError) as raised:
        read_path(path)
    assert (raised.value.file, raised.value.field) == (path, "var_names")


@pytest.mark.parametrize("kind", ["versions", "prefix", "id and symbol", "symbols of Seurat"])
def test_a_model_fits_a_section_that_calls_its_genes_differently(kind, tiny_section, tmp_path, capsys):
    path = tiny_section(tmp_path)

    def edit(adata):
        adata.var = pd.DataFrame(index=[*KINDS[kind][0], *adata.var_names[12:]])

    change(path, edit)
    section = read_path(path, for_prediction=True)
    about = {"geometry": {"tile_um": 100, "tile_px": 25, "input_px": 25}, "model": "knn"}
    assert check_fit(about, section, Panel(tuple(IDS), tuple(SYMBOLS), "file")) == []
    absent = Panel((*IDS, "ENSG00000009999"), (*SYMBOLS, "FAR"), "file")
    assert check_fit(about, section, absent) == ["ENSG00000009999"]
