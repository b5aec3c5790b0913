import anndata as ad
import nbformat
import numpy as np
import pytest
import yaml
from nbclient import NotebookClient

from histocrypt.errors import InputError
from histocrypt.evaluation import wording
from histocrypt.report.jupyter import view_results
from histocrypt.report.views import Views, find_gene


def rewrite(path, change):
    annotated = ad.read_h5ad(path)
    change(annotated).write_h5ad(path)


def test_a_view_joins_by_names(fresh):
    view = Views(fresh).view("vision_mlp", "B_3", "gene020", transform="log1p")
    section = ad.read_h5ad(fresh.run.section("B_3"))
    prediction = ad.read_h5ad(fresh.run.prediction("vision_mlp", "fold_B"))
    for spot, true, predicted, (x, y) in zip(view.barcodes, view.true, view.predicted, view.coords, strict=True):
        assert true == pytest.approx(np.log1p(section[spot, "ENSG00020"].X.toarray().item()), abs=1e-6)
        assert predicted == pytest.approx(prediction[f"B_3:{spot}", "ENSG00020"].layers["log1p"].item(), abs=1e-6)
        np.testing.assert_allclose([x, y], section[spot].obsm["spatial"][0] * 0.1)
    assert view.pearson == pytest.approx(np.corrcoef(view.true, view.predicted)[0, 1])
    assert view.tissue.um_per_unit == pytest.approx(10.0)


def with_diameter(section):
    section.uns["preprocessing"]["spot_diameter_um"] = 110.0
    return section


def test_a_spot_is_drawn_as_large_as_it_is(fresh):
    rewrite(fresh.run.section("A_1"), with_diameter)
    every = Views(fresh)
    assert every.tissue("A_1").diameter == pytest.approx(11.0)  # 110 um at 10 um a picture pixel
    assert every.tissue("A_2").diameter is None


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"model": "resnet19"}, "unknown model 'resnet19'.*did you mean 'resnet18'"),
        ({"section": "C_1"}, "unknown held-out section 'C_1'.*A_1"),
        ({"gene": "GENE99"}, "there is no 'GENE99' in any panel of this study; did you mean"),
        ({"gene": "GENE001"}, "GENE001 is not in the panel of fold_B, so no model predicts it in B_3"),
        ({"gene": "GENE039"}, "GENE039 was not measured in section B_3"),
        ({"transform": "log2p1"}, "unknown transform 'log2p1'"),
    ],
)
def test_what_cannot_be_seen_says_why(fresh, names, said):
    every = Views(fresh)
    with pytest.raises(InputError, match=said):
        every.view(**{"model": "resnet18", "section": "B_3", "gene": "GENE010", **names})


def test_a_gene_is_found_by_id_or_symbol():
    ids, symbols = ["ENSG1", "ENSG2", "ENSG3"], ["ERBB2", "CD74", "CD74"]
    assert [find_gene(ids, symbols, name, where="here") for name in ("ENSG3", "erbb2", "CD74")] == [
        "ENSG3", "ENSG1", "ENSG2",
    ]  # fmt: skip
    with pytest.raises(InputError, match="there is no 'xyz' here; 3 are there, such as ERBB2, CD74, CD74"):
        find_gene(ids, symbols, "xyz", where="here")


def test_every_control_redraws(fresh):
    rewrite(fresh.run.section("B_2"), with_diameter)
    board = view_results(fresh, model="vision_mlp", section="A_1", gene="GENE009")
    board.show()
    seen = [board.picture]
    said = [board.sentence]
    for name, value in {
        "model": "resnet18", "section": "B_2", "gene": "ENSG00011", "transform": "log1p", "touching": True,
        "opacity": 0.9,
    }.items():  # fmt: skip
        board.controls[name].value = value
        assert board.picture not in seen, name
        seen.append(board.picture)
        said.append(board.sentence)
    view = Views(fresh).view("resnet18", "B_2", "GENE011", transform="log1p")
    assert said[-1] == (
        f"GENE011 in section B_2 of patient B, 144 spots, raw counts, log scale: Pearson's r between measured and "
        f"predicted by ResNet-18 is {wording.number(view.pearson)}."
    )
    assert len(set(said)) == 5  # spot size and opacity change the picture only


def test_what_goes_wrong_is_said_in_place_and_escaped(fresh):
    rewrite(fresh.run.prediction("knn", "fold_A"), lambda p: p[p.obs["section"] != "A_2"].copy())
    board = view_results(fresh, model="knn", section="A_1", gene="GENE009")
    board.show()
    before = board.picture
    board.controls["gene"].value = "<script>alert(1)</script>"
    assert board.sentence.startswith("there is no '<script>alert(1)</script>' in any panel")
    assert "<script>" not in board.said.value
    assert board.picture == before
    board.controls["gene"].value = "GENE009"
    board.controls["section"].value = "A_2"
    assert board.sentence.startswith("Frozen-encoder kNN has no prediction of section A_2")
    board.controls["model"].value = "mean_profile"
    assert board.sentence.endswith("The prediction is the same at every spot: its correlation counts as 0.")


def test_nothing_predicted_is_one_sentence(fresh):
    import shutil

    shutil.rmtree(fresh.run.root / "predictions")
    with pytest.raises(InputError, match="histocrypt run"):
        view_results(fresh)


def test_in_a_kernel_the_picture_is_an_output_and_follows_the_controls(fresh, tmp_path):
    file = tmp_path / "made.yaml"
    file.write_text(yaml.safe_dump(fresh.model_dump(mode="json")))
    show = f"""
from histocrypt.study import load_study
from histocrypt.report.jupyter import view_results
board = view_results(load_study({str(file)!r}), model="vision_mlp", gene="GENE009")
board.show()
"""
    pick = 'first = board.picture; board.controls["gene"].value = "GENE012"; assert board.picture != first'
    cells = [nbformat.v4.new_code_cell(show)]
    still = NotebookClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3", timeout=600).execute()
    controls, picture = still.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in controls["data"]
    assert controls["data"]["text/plain"].startswith("Controls appear here where")
    assert "GENE009 in section A_1" in picture["metadata"]["image/png"]["alt"]
    cells = [nbformat.v4.new_code_cell(show), nbformat.v4.new_code_cell(pick)]
    live = NotebookClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3", timeout=600).execute()
    _, changed = live.cells[0].outputs
    assert "GENE012 in section A_1" in changed["metadata"]["image/png"]["alt"]
    assert changed["data"]["image/png"] != picture["data"]["image/png"]
    assert not live.cells[1].outputs
