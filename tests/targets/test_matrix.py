"""Named target matrices: joined by name, whatever the order; every misfit is one sentence."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from tests.targets.test_panels import choose

from histocrypt.errors import InputError
from histocrypt.options import PanelChoice
from histocrypt.study import parse_study
from histocrypt.targets.matrix import depth, has_counts, names_of, targets_of
from histocrypt.targets.panels import Panel

MATRIX = "obsm:types"
TABLE = pd.DataFrame({"B": [0.2, 0.0, 0.5], "T": [0.2, 0.7, 0.0], "CAF|a": [0.6, 0.3, 0.5]}, index=list("xyz"))


def section(table=TABLE, **uns):
    adata = anndata.AnnData(csr_matrix((3, 0), dtype=np.int32), obs=pd.DataFrame(index=list("xyz")), uns=uns)
    adata.obsm["types"] = table
    return adata


def choice(**given):
    return PanelChoice(**{"method": "all", **given})


def test_values_follow_names_and_not_positions(tmp_path):
    section(TABLE[["T", "CAF|a", "B"]]).write_h5ad(tmp_path / "s.h5ad")
    shuffled = anndata.read_h5ad(tmp_path / "s.h5ad")
    for one in (section(), shuffled):
        found = targets_of(one, ["T", "B"], ["proportion"], matrix=MATRIX, section="S")["proportion"]
        assert np.allclose(found, TABLE[["T", "B"]])
    assert names_of(shuffled, MATRIX, section="S").tolist() == ["T", "CAF|a", "B"]


def test_ranks_within_a_spot_share_ties_and_are_among_the_panel():
    found = targets_of(section(), list(TABLE), ["spot_rank"], matrix=MATRIX, section="S", rows=np.array([2, 0]))
    assert found["spot_rank"].tolist() == [[2.5, 1, 2.5], [1.5, 1.5, 3]]


def test_a_plain_array_needs_names():
    plain = section(TABLE.to_numpy())
    with pytest.raises(InputError, match=r"obsm\['types'\].*not named.*uns\['types_names'\]"):
        names_of(plain, MATRIX, section="S")
    named = section(TABLE.to_numpy(), types_names=np.array(["B", "T", "CAF|a"]))
    assert np.allclose(targets_of(named, ["T"], ["proportion"], matrix=MATRIX, section="S")["proportion"], TABLE[["T"]])
    with pytest.raises(InputError, match="2 names for values of shape"):
        names_of(section(TABLE.to_numpy(), types_names=["B", "T"]), MATRIX, section="S")
    with pytest.raises(InputError, match="two columns are called 'B'"):
        names_of(section(TABLE.to_numpy(), types_names=["B", "T", "B"]), MATRIX, section="S")


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("B", np.nan, r"1 values are not finite, first that of B at spot x"),
        ("T", -0.1, r"between 0 and 1, and the values reach -0\.1"),
        ("T", 3.2, r"values reach 3\.2.*spot_rank takes abundances of any scale"),
    ],
)
def test_what_is_no_proportion_is_named(column, value, said):
    table = TABLE.copy()
    table.loc["x", column] = value
    with pytest.raises(InputError, match=f"section S.*{said}"):
        targets_of(section(table), list(TABLE), ["proportion"], matrix=MATRIX, section="S")


def test_what_is_missing_is_named():
    with pytest.raises(InputError, match="section S has no matrix obsm:major.*that it has: obsm:types"):
        names_of(section(), "obsm:major", section="S")
    with pytest.raises(InputError, match="does not measure 1 of 2 cell types: NK"):
        targets_of(section(), ["B", "NK"], ["proportion"], matrix=MATRIX, section="S")
    bare = section()
    assert not has_counts(bare)
    assert np.isnan(depth(bare)).all()


def test_all_takes_what_every_section_has_in_the_first_ones_order(tmp_path):
    less = section(TABLE[["T", "B"]])
    panel = choose([section(), less], choice(), matrix=MATRIX)
    assert panel.genes == panel.symbols == ("B", "T")
    panel.save(tmp_path / "panel.json")
    assert Panel.load(tmp_path / "panel.json") == panel
    with pytest.raises(InputError, match="obsm:types.*section S does not measure 1 of the panel's 2 cell types: T"):
        panel.columns(section(TABLE[["B"]]), section="S")
    with pytest.raises(InputError, match="no column in common"):
        choose([section(), section(TABLE[["T"]].rename(columns={"T": "U"}))], choice(), matrix=MATRIX)


def test_a_list_of_columns(tmp_path):
    (tmp_path / "list.txt").write_text("CAF|a\nB\n")
    panel = choose([section()], choice(method="file"), file=tmp_path / "list.txt", matrix=MATRIX)
    assert panel.genes == ("CAF|a", "B")
    (tmp_path / "list.txt").write_text("NK\n")
    with pytest.raises(InputError, match="cell type 'NK' is not measured"):
        choose([section()], choice(method="file"), file=tmp_path / "list.txt", matrix=MATRIX)


def study(target, method="all"):
    return parse_study({"name": "s", "sections": [{"path": "x"}], "target": target, "panel": {"method": method}})


@pytest.mark.parametrize(
    ("target", "method", "field", "said"),
    [
        ({"matrix": MATRIX}, "all", "target.transforms", "log1p_cp10k.*obsm:types holds no counts"),
        ({"transforms": ["spot_rank"]}, "hvg", "target.transforms", "spot_rank.*no target.matrix"),
        ({"matrix": MATRIX, "transforms": ["proportion"]}, "hvg", "panel.method", "all, or file"),
        ({}, "all", "panel.method", "no target.matrix"),
        ({"matrix": "types", "transforms": ["proportion"]}, "all", "target.matrix", "obsm:celltype_prop_major"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(target, method, field, said):
    with pytest.raises(InputError, match=said) as raised:
        study(target, method)
    assert raised.value.field == field


def test_a_study_without_a_matrix_has_the_hash_that_it_had():
    assert "matrix" not in study({}, "hvg").model_dump()["target"]
    with_matrix = study({"matrix": MATRIX, "transforms": ["proportion", "spot_rank"]})
    assert with_matrix.model_dump()["target"]["matrix"] == MATRIX
    assert with_matrix.hash("target") != study({}, "hvg").hash("target")


@pytest.mark.parametrize(("matrix", "types"), [("obsm:celltype_prop_major", 8), ("obsm:celltype_prop_minor", 22)])
def test_the_real_sections_carry_two_panels_of_cell_types(real_data, matrix, types):
    sections = {name: anndata.read_h5ad(real_data / f"HER2ST_{name}.h5ad") for name in ("C2", "C3")}
    panel = choose(list(sections.values()), choice(), matrix=matrix)
    assert len(panel) == types
    for name, one in sections.items():
        found = targets_of(one, panel.genes, ["proportion", "spot_rank"], matrix=matrix, section=name)
        assert np.allclose(found["proportion"].sum(axis=1), 1, atol=1e-4)
        assert np.allclose(found["spot_rank"].sum(axis=1), types * (types + 1) / 2)
    with pytest.raises(
        InputError, match=r"no matrix obsm:celltypes; the named matrices that it has: obsm:celltype_prop_"
    ):
        choose(list(sections.values()), choice(), matrix="obsm:celltypes")
