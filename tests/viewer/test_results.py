import json

import anndata as ad
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from nbclient import NotebookClient

from histocrypt.errors import InputError
from histocrypt.evaluation import wording
from histocrypt.evaluation.maps import disc_pixels
from histocrypt.report import selection
from histocrypt.report.jupyter import view_results
from histocrypt.report.views import Unfinished, Views, find_gene
from histocrypt.trust import genes


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
        "opacity": 0.9, "alpha": 0.4,
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
    assert len(set(said)) == 5  # spot size and opacities change the picture only


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
    with pytest.raises(Unfinished) as refused:
        view_results(fresh)
    assert refused.value.file == fresh.run.root / "predictions"
    assert refused.value._render_traceback_() == [str(refused.value)]


TRUST = {"training_pearson": 0.5, "training_pearson_low": 0.25, "training_pearson_high": 0.75, "trusted": True}


def with_trust(prediction):
    """Say of every gene how it is predicted in training, better the higher its number; of the upper half, trust it."""
    number = prediction.var_names.str[-3:].astype(int).to_numpy()
    for name, value in TRUST.items():
        prediction.var[f"{name}:log1p_cp10k"] = value
    prediction.var["training_pearson:log1p_cp10k"] = number / 100
    prediction.var["trusted:log1p_cp10k"] = number >= 12
    prediction.var["better_than_chance:log1p_cp10k"] = number >= 12
    return prediction


def test_trusted_genes_come_first_and_each_says_how_far(fresh):
    rewrite(fresh.run.prediction("knn", "fold_A"), with_trust)
    board = view_results(fresh, model="knn", section="A_1")
    board.show()
    search = board.controls["gene"]
    names = [name for _, name in search.list.options]
    assert names[:24] == [f"GENE{number:03d}" for number in range(23, -1, -1)]
    assert len(names) == len(Views(fresh).genes) > 24  # those of the other fold's panel come last
    assert search.value == search.list.value == "GENE023"
    labels = {name: label for label, name in search.list.options}
    assert "0.23 (0.25 to 0.75)" in labels["GENE023"]
    doubted = [name for name in names[:24] if genes.DOUBTED in labels[name]]
    assert doubted == names[12:24]
    before = board.picture
    search.list.value = "GENE004"
    assert search.value == "GENE004"
    assert board.picture != before
    board.controls["model"].value = "vision_mlp"  # it does not tell
    assert not [label for label, _ in search.list.options if genes.DOUBTED in label]


def test_part_of_a_name_narrows_the_list(fresh):
    board = view_results(fresh, model="knn", section="A_1", gene="GENE009")
    board.show()
    search, before = board.controls["gene"], board.picture
    search.box.value = "e01"
    assert sorted(name for _, name in search.list.options) == [f"GENE01{digit}" for digit in range(10)]
    assert search.list.value is None
    assert board.picture == before  # typing picks nothing until a name is whole
    search.box.value = "gene012"
    assert search.value == search.list.value == "GENE012"
    assert "GENE012 in section A_1" in board.sentence
    search.box.value = "gene 012"
    assert not search.list.options
    assert "GENE012" in search.sentence
    assert search.value == "GENE012"
    search.box.value = "<b>"
    assert "<b>" not in search.said.value


def drawn_around(board, corners, panel):
    """Draw a lasso as the browser tells it: through shares of the picture, on one of its maps."""
    axes = board._axes[panel]
    place, (left, right), (bottom, top) = axes.get_position(), axes.get_xlim(), axes.get_ylim()
    x = place.x0 + (corners[:, 0] - left) / (right - left) * place.width
    y = 1 - (place.y0 + (corners[:, 1] - bottom) / (top - bottom) * place.height)
    told = {"corners": np.column_stack([x, y]).tolist(), "at": len(board.lasso.corners.value)}
    board.lasso.corners.value = json.dumps(told)


@pytest.mark.parametrize("panel", range(4))
def test_a_lasso_shows_what_is_inside_and_exports_it(fresh, panel):
    board = view_results(fresh, model="vision_mlp", section="B_2", gene="GENE011")
    board.show()
    lasso, view, before = board.lasso, Views(fresh).view("vision_mlp", "B_2", "GENE011"), board.picture
    assert lasso.export.disabled
    low, high = view.coords[[0, 40]].min(axis=0) - 5, view.coords[[0, 40]].max(axis=0) + 5  # between two spots
    corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
    drawn_around(board, corners, panel)
    within = np.flatnonzero(((view.coords > low) & (view.coords < high)).all(axis=1))
    assert 2 < len(within) < 144
    assert lasso.rows.tolist() == within.tolist()
    assert board.picture != before
    both = selection.summary(view, lasso.rows)
    assert both["spots"].tolist() == [len(within), 144]
    inside = both.loc["inside the lasso"]
    assert inside["mean measured"] == pytest.approx(view.true[within].mean())
    assert inside["mean predicted"] == pytest.approx(view.predicted[within].mean())
    assert inside["r"] == pytest.approx(np.corrcoef(view.true[within], view.predicted[within])[0, 1])
    assert both.loc["whole section", "r"] == pytest.approx(view.pearson)

    lasso.export.click()
    lasso.export.click()
    files = sorted((fresh.run.root / "viewer").iterdir())
    assert len(files) == 2  # nothing is replaced
    assert str(files[1]) in lasso.written.value
    written = pd.read_csv(files[0])
    assert written.columns.tolist() == [
        "section", "patient", "barcode", "x_px", "y_px", "gene", "symbol", "model", "transform",
        "measured", "predicted",
    ]  # fmt: skip
    assert written["barcode"].tolist() == view.barcodes[within].tolist()
    section = ad.read_h5ad(fresh.run.section("B_2"))[written["barcode"]]
    np.testing.assert_allclose(written[["x_px", "y_px"]], section.obsm["spatial"])
    np.testing.assert_allclose(written["measured"], view.true[within])
    np.testing.assert_allclose(written["predicted"], view.predicted[within])
    assert set(written["gene"]) == {"ENSG00011"}


def test_a_lasso_stays_on_its_section_and_a_click_takes_it_away(fresh):
    board = view_results(fresh, model="vision_mlp", section="B_2", gene="GENE011")
    board.show()
    plain, all_of_it = board.picture, np.array([[10, 10], [270, 10], [270, 270], [10, 270]])
    drawn_around(board, all_of_it, 1)
    assert len(board.lasso.rows) == 144
    board.controls["gene"].value = "GENE012"
    assert len(board.lasso.rows) == 144
    board.controls["section"].value = "B_1"
    assert board.lasso.export.disabled
    assert not len(board.lasso.rows)
    board.controls["section"].value, board.controls["gene"].value = "B_2", "GENE011"
    assert board.picture == plain
    drawn_around(board, all_of_it, 1)
    board.lasso.corners.value = json.dumps({"corners": [], "at": -1})
    assert board.picture == plain
    drawn_around(board, all_of_it - 1000, 1)  # beside all maps
    assert not len(board.lasso.rows)
    assert board.lasso.export.disabled


def test_few_spots_have_no_correlation(fresh):
    view = Views(fresh).view("vision_mlp", "B_2", "GENE011")
    assert np.isnan(selection.summary(view, np.array([0, 1])).loc["inside the lasso", "r"])
    assert np.isfinite(selection.summary(view, np.array([0, 1, 2])).loc["inside the lasso", "r"])


def test_spots_drawn_as_pixels_are_where_the_discs_are():
    coords = np.array([[10.0, 10.0], [30.0, 10.0], [10.0, 40.0]])
    where, (left, right, bottom, top) = disc_pixels(coords, 8.0)
    for number, (x, y) in enumerate(coords):
        rows, columns = np.nonzero(where == number)
        unit = (right - left) / where.shape[1]
        assert left + (columns.mean() + 0.5) * unit == pytest.approx(x, abs=unit)
        assert top + (rows.mean() + 0.5) * unit == pytest.approx(y, abs=unit)
        assert len(rows) * unit**2 == pytest.approx(np.pi * 4**2, rel=0.03)
    assert bottom - top == pytest.approx(where.shape[0] * unit)
    assert set(np.unique(where)) == {-1, 0, 1, 2}


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
    controls, picture, spots, script = still.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in controls["data"]
    assert "application/vnd.jupyter.widget-view+json" in spots["data"]
    assert "histocrypt-lasso" in script["data"]["application/javascript"]
    assert controls["data"]["text/plain"].startswith("Controls appear here where")
    assert "GENE009 in section A_1" in picture["metadata"]["image/png"]["alt"]
    cells = [nbformat.v4.new_code_cell(show), nbformat.v4.new_code_cell(pick)]
    live = NotebookClient(nbformat.v4.new_notebook(cells=cells), kernel_name="python3", timeout=600).execute()
    changed = live.cells[0].outputs[1]
    assert "GENE012 in section A_1" in changed["metadata"]["image/png"]["alt"]
    assert changed["data"]["image/png"] != picture["data"]["image/png"]
    assert not live.cells[1].outputs
