"""Panels: genes by identifier, from training sections, in an order that nothing incidental changes."""

import json
import re

import anndata
import numpy as np
import pytest
from scipy.sparse import csr_matrix

from histocrypt.errors import InputError
from histocrypt.options import PanelChoice
from histocrypt.targets.panels import Panel, PanelChooser, highly_variable


def section(name, *, genes=30, seed=0, drop=(), shuffle=False):
    """Simulate a section: mean grows with the gene's number, genes 20 and 25 also vary strongly between spots."""
    rng = np.random.default_rng(seed)
    rates = np.tile(np.linspace(1, 40, genes), (60, 1))
    rates[:, [20, 25]] *= rng.choice([0.2, 1.8], (60, 2))
    adata = anndata.AnnData(csr_matrix(rng.poisson(rates).astype(np.float32)))
    adata.var_names = [f"G{i:02d}" for i in range(genes)]
    adata.var["symbol"] = [f"SYM{i}" for i in range(genes)]
    adata.obs_names = [str(i) for i in range(60)]
    adata.obs["section"] = name
    adata.obs["total_counts"] = np.asarray(adata.X.sum(axis=1)).ravel()
    keep = [gene for gene in adata.var_names if gene not in drop]
    if shuffle:
        keep = list(rng.permutation(keep))
    return adata[:, keep].copy()


def choice(method, size=5):
    return PanelChoice(method=method, size=size)


def choose(sections, choice, **source):
    """Choose from sections in memory."""
    numbered = {str(number): section for number, section in enumerate(sections)}
    return PanelChooser(numbered.__getitem__, choice, **source).choose(numbered)


def test_top_mean_is_the_largest_mean_count():
    sections = [section("s"), section("t", seed=1)]
    pooled = np.concatenate([s.X.toarray() for s in sections]).mean(axis=0)
    expected = [f"G{i:02d}" for i in np.argsort(-pooled)[:5]]
    panel = choose(sections, choice("top_mean"))
    assert list(panel.genes) == expected
    assert panel.symbols[0] == f"SYM{int(panel.genes[0][1:])}"


@pytest.mark.parametrize("method", ["hvg", "hmhvg"])
def test_variable_genes_are_found(method):
    panel = choose([section("s"), section("t", seed=1)], choice(method))
    assert {"G20", "G25"} <= set(panel.genes)


def test_hmhvg_needs_both_mean_and_variance():
    adata = section("s")
    counts = adata.X.toarray()
    counts[:, 0] = np.arange(60) % 2  # on and off: the most variable on the scale of logarithms, and the weakest
    adata.X = csr_matrix(counts)
    normalised = np.log1p(counts / adata.obs["total_counts"].to_numpy()[:, None] * 1e4)
    assert normalised.var(axis=0).argmax() == 0
    assert counts.mean(axis=0).argmin() == 0
    assert "G00" not in choose([adata], choice("hmhvg", 15)).genes


@pytest.mark.parametrize("method", ["top_mean", "hvg", "hmhvg"])
def test_the_order_of_columns_and_sections_changes_nothing(method):
    plain = [section("s"), section("t", seed=1)]
    rng = np.random.default_rng(5)
    shuffled = [s[:, rng.permutation(s.n_vars)].copy() for s in plain]
    assert choose(plain, choice(method)) == choose(shuffled, choice(method))
    assert set(choose(plain[::-1], choice(method)).genes) == set(choose(plain, choice(method)).genes)


def test_only_genes_of_all_sections_are_candidates():
    panel = choose([section("s"), section("t", seed=1, drop=("G29", "G28"))], choice("top_mean"))
    assert not {"G28", "G29"} & set(panel.genes)


def test_too_few_common_genes_is_said():
    with pytest.raises(InputError, match="31 genes.*30") as raised:
        choose([section("s")], choice("top_mean", 31))
    assert raised.value.field == "panel.size"


@pytest.mark.parametrize("text", ["G03\nSYM7 # by symbol\n\nG01\n", json.dumps({"genes": ["G03", "SYM7", "G01"]})])
def test_a_file_names_genes_by_id_or_symbol(tmp_path, text):
    file = tmp_path / "genes.txt"
    file.write_text(text)
    panel = choose([section("s"), section("t", shuffle=True)], choice("file"), file=file)
    assert panel.genes == ("G03", "G07", "G01")
    assert panel.symbols == ("SYM3", "SYM7", "SYM1")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("G03\nNOSUCH\n", "'NOSUCH' is not measured in training section s"),
        ("G03\nSYM3\n", "'G03' is listed twice"),
        ("\n# nothing\n", "is empty"),
        ("{", "not valid JSON"),
    ],
)
def test_a_bad_list_is_named(tmp_path, text, problem):
    file = tmp_path / "genes.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=problem) as raised:
        choose([section("s")], choice("file"), file=file)
    assert raised.value.file == file


def test_an_ambiguous_symbol_is_refused(tmp_path):
    adata = section("s")
    adata.var["symbol"] = ["SAME", "SAME", *adata.var["symbol"][2:]]
    (tmp_path / "g").write_text("SAME")
    with pytest.raises(InputError, match="'SAME'.*more than one") as raised:
        choose([adata], choice("file"), file=tmp_path / "g")
    assert raised.value.file == tmp_path / "g"


def test_columns_join_by_identifier_and_name_what_is_missing(tmp_path):
    panel = Panel(("G05", "G02"), ("SYM5", "SYM2"), "file")
    adata = section("t", shuffle=True)
    assert list(adata.var_names[panel.columns(adata, section="t")]) == ["G05", "G02"]
    with pytest.raises(InputError, match=r"section t does not measure 1 of the panel's 2 genes: G02 \(SYM2\)"):
        panel.columns(section("t", drop=("G02",)), section="t")
    panel.save(tmp_path / "panel.json")
    assert Panel.load(tmp_path / "panel.json") == panel


def test_stems_genes_are_the_smallest_common_start_of_both_rankings():
    """Source: the published recipe: raw counts, pooled spots, k grown; ribosomal and mitochondrial genes struck out."""
    sections = [section("s"), section("t", seed=1)]
    for one in sections:
        one.var.loc["G29", "symbol"], one.var.loc["G28", "symbol"] = "MT-CO1", "RPL5"
    panel = choose(sections, choice("stem_hmhvg"))
    pooled = np.concatenate([one.X.toarray() for one in sections])[:, :28]
    by_mean, by_sd = np.argsort(-pooled.mean(axis=0)), np.argsort(-pooled.std(axis=0))
    k = next(k for k in range(29) if len(set(by_mean[:k]) & set(by_sd[:k])) >= 5)
    assert set(panel.genes) == {f"G{i:02d}" for i in set(by_mean[:k]) & set(by_sd[:k])}
    with pytest.raises(InputError, match="29 genes.* 28 ") as raised:
        choose(sections, choice("stem_hmhvg", 29))
    assert raised.value.field == "panel.size"


@pytest.mark.parametrize("size", [5, 30])
def test_highly_variable_genes_are_those_of_scanpy(size):
    """The same bits as scanpy's flavour seurat on one thread; two genes that vary alone in their bin among them."""
    import numba
    import scanpy

    adata = section("s", genes=40, seed=2)
    counts = adata.X.toarray()
    counts[:, 3] = 7  # constant: no dispersion
    counts[:, 39] *= 40  # alone in its bin
    adata.X = csr_matrix(np.log1p(counts))
    numba.set_num_threads(1)
    expected = scanpy.pp.highly_variable_genes(adata, n_top_genes=size, inplace=False)
    highly, dispersion = highly_variable(adata.X, size)
    np.testing.assert_array_equal(highly, expected["highly_variable"])
    np.testing.assert_array_equal(dispersion, expected["dispersions_norm"].astype(float))


def called(name, kind, *, seed=0, drop=()):
    """Return a section whose genes are called in one of the ways that the world has."""
    adata = section(name, seed=seed, drop=drop)
    number = [int(gene[1:]) for gene in adata.var_names]
    ids, symbols = [f"ENSG{one:011d}" for one in number], [f"SYM{one}" for one in number]
    names = {
        "ids": ids,
        "versions": [f"{one}.{seed + 1}" for one in ids],
        "prefix": [f"GRCh38_{one}" for one in ids],
        "scanpy": symbols,
        "symbols": symbols,
        "a third unmapped": [symbols[i] if i % 3 == 0 else ids[i] for i in range(len(ids))],
        "mouse": [one.replace("ENSG", "ENSMUSG") for one in ids],
    }[kind]
    adata.var_names = names
    if kind in ("scanpy", "symbols", "versions", "prefix", "mouse"):
        del adata.var["symbol"]
    if kind == "scanpy":
        adata.var["gene_ids"] = [f"{one}.7" for one in ids]
    return adata


@pytest.mark.parametrize("method", ["top_mean", "hvg", "hmhvg", "stem_hmhvg"])
@pytest.mark.parametrize("kind", ["versions", "prefix", "scanpy", "symbols", "a third unmapped"])
def test_genes_of_two_kinds_choose_the_panel_of_one_kind(kind, method):
    plain = choose([called("s", "ids"), called("t", "ids", seed=1)], choice(method))
    mixed = choose([called("s", "ids"), called("t", kind, seed=1)], choice(method))
    assert (mixed.genes, mixed.scores) == (plain.genes, plain.scores)
    assert mixed.symbols == plain.symbols == tuple(f"SYM{int(gene[4:])}" for gene in plain.genes)
    assert set(choose([called("t", kind, seed=1), called("s", "ids")], choice(method)).genes) == set(plain.genes)


def test_one_section_with_both_names_joins_those_with_one():
    sections = [called("s", "symbols"), called("t", "versions", seed=1), called("u", "ids", seed=2)]
    panel = choose(sections, choice("top_mean"))
    plain = choose([called(one, "ids", seed=seed) for seed, one in enumerate("stu")], choice("top_mean"))
    assert (panel.genes, panel.scores, panel.symbols) == (plain.genes, plain.scores, plain.symbols)
    for one in sections:
        assert one.var_names[panel.columns(one, section="x")].str.contains("1|2").all()
    shuffled = sections[0][:, ::-1].copy()
    columns = panel.columns(shuffled, section="x")
    assert tuple(shuffled.var_names[columns]) == panel.symbols


@pytest.mark.parametrize("kind", ["versions", "prefix", "scanpy", "symbols"])
def test_names_stay_as_the_files_have_them_where_all_agree(kind):
    one = called("s", kind)
    panel = choose([one, called("t", kind)], choice("top_mean"))
    assert set(panel.genes) <= set(one.var_names)


def test_versions_of_two_releases_are_one_gene():
    panel = choose([called("s", "versions"), called("t", "versions", seed=1)], choice("top_mean"))
    plain = choose([called("s", "ids"), called("t", "ids", seed=1)], choice("top_mean"))
    assert (panel.genes, panel.scores) == (plain.genes, plain.scores)


@pytest.mark.parametrize("kind", ["versions", "mouse"])
def test_few_names_that_happen_to_agree_choose_no_panel(kind):
    """Real ids and symbols had 72 of 15,706 names in common, and the panel was of pseudogenes."""
    one, two = called("s", kind), called("t", "symbols", seed=1)
    both = [f"AC{number:06d}.1" for number in range(6)]
    for adata in (one, two):
        adata.var_names = [*both, *adata.var_names[6:]]
    with pytest.raises(InputError) as raised:
        choose([one, two], choice("top_mean", 5))
    assert (raised.value.field, raised.value.value) == ("panel", 6)
    assert "symbols" in str(raised.value)
    assert "Ensembl ids" in str(raised.value)


def test_what_the_join_loses_is_counted():
    numbered = {"s": called("s", "ids"), "t": called("t", "versions", seed=1, drop=("G03", "G04"))}
    chooser = PanelChooser(numbered.__getitem__, choice("top_mean"))
    chooser.choose(numbered)
    assert "28 genes" in chooser.note
    assert "2 are in some only" in chooser.note
    assert "28 are called differently" in chooser.note


@pytest.mark.parametrize("kind", ["ids", "versions", "prefix", "scanpy", "a third unmapped"])
def test_a_list_is_read_by_whatever_names_it_has(kind, tmp_path):
    (tmp_path / "g").write_text("ENSG00000000003.12\nGRCh38_ENSG00000000007\nENSG00000000001")
    one = called("s", kind)
    panel = choose([one, called("t", "ids", seed=1)], choice("file"), file=tmp_path / "g")
    own = one.var_names[panel.columns(one, section="s")]
    assert [int(re.match(r"(?:SYM|GRCh38_)?(?:ENSG)?(\d+)", name)[1]) for name in own] == [3, 7, 1]


def test_a_list_of_another_kind_says_so(tmp_path):
    (tmp_path / "g").write_text("\n".join(f"SYM{number}" for number in range(20)))
    with pytest.raises(InputError) as raised:
        choose([called("s", "versions")], choice("file"), file=tmp_path / "g")
    assert raised.value.file == tmp_path / "g"
    assert "Ensembl ids, versioned" in str(raised.value)
