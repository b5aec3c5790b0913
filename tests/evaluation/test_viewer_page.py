import base64
import re
import shutil
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from tests.evaluation.chromium import opened, text_of

from histocrypt.evaluation import wording
from histocrypt.report import viewer
from histocrypt.report.page import write_report
from histocrypt.report.viewer import choose, spread, viewer_content
from histocrypt.report.views import Views
from histocrypt.study import parse_study

NASTY = "</script><script>document.title='broken'</script>"
"""What nobody should call a gene."""


@pytest.fixture(scope="module")
def content(scored_once):
    outputs, study, scores = scored_once
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOCRYPT_OUTPUTS", str(outputs))
        return viewer_content(study, scores, "vision_mlp")


@pytest.fixture
def changed(scored_once, tmp_path, monkeypatch):
    """The scored study in a folder of one's own, to change after it was scored: (study, scores)."""
    outputs, study, scores = scored_once
    shutil.copytree(outputs, tmp_path / "outputs")
    monkeypatch.setenv("HISTOCRYPT_OUTPUTS", str(tmp_path / "outputs"))
    return study, scores


def marked(study, *names):
    content = study.model_dump(mode="json")
    return parse_study({**content, "evaluation": {**content["evaluation"], "markers": list(names)}})


def section_of(content, name):
    return next(one for one in content["data"]["sections"] if one["id"] == name)


def unpacked(text, low, high):
    return low + np.frombuffer(base64.b64decode(text), "<u2") * (high - low) / 65535


def test_embedded_values_are_those_of_the_files(scored, content):
    study, scores = scored
    section, gene, model = "B_2", "ENSG00010", "vision_mlp"
    one = section_of(content, section)
    mine = one["genes"][gene]
    prediction = ad.read_h5ad(study.run.prediction(model, "fold_B"))
    prediction = prediction[[f"{section}:{spot}" for spot in one["spots"]]]
    expected = prediction[:, gene].layers["log1p_cp10k"].ravel()
    found = unpacked(mine["models"][model]["predicted"], mine["low"], mine["high"])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    counts = ad.read_h5ad(study.run.section(section))[one["spots"]]
    truth = np.log1p(1e4 * counts[:, gene].X.toarray().ravel() / counts.obs["total_counts"].to_numpy())
    np.testing.assert_allclose(unpacked(mine["true"], mine["low"], mine["high"]), truth, atol=1e-4)
    np.testing.assert_allclose(np.column_stack([one["x"], one["y"]]), counts.obsm["spatial"] * 0.1, atol=0.06)
    rows = scores.genes
    keep = (rows["model"] == model) & (rows["section"] == section) & (rows["gene"] == gene)
    r = rows[keep & (rows["transform"] == "log1p_cp10k")]["pearson"].item()
    assert mine["models"][model]["r"] == wording.number(r)
    least, most, reach = mine["models"][model]["limits"]
    assert least < most
    assert reach > 0


def test_genes_that_a_section_cannot_show_say_why(content, scored):
    names = {one["id"] for one in content["data"]["genes"]}
    elsewhere = next(gene for gene in ("ENSG00000", "ENSG00001", "ENSG00002", "ENSG00003") if gene in names)
    why = section_of(content, "B_1")["genes"][elsewhere]["missing"]["vision_mlp"]
    assert why.startswith(f"GENE{elsewhere[-3:]} is not in the panel of fold_B")
    unmeasured = next(gene for gene in ("ENSG00038", "ENSG00039") if gene in names)
    why = section_of(content, "B_3")["genes"][unmeasured]["missing"]["vision_mlp"]
    assert why == f"GENE{unmeasured[-3:]} was not measured in section B_3; pick another gene or section."


def test_markers_are_there_and_unknown_ones_are_named(scored):
    study, scores = scored
    study = marked(study, "gene017", "ENSG00030", "ERBB2", "GENE017")
    choice = choose(Views(study), scores, "resnet18")
    assert set(choice.markers) <= set(choice.genes)
    assert choice.markers == ["ENSG00017"]  # ENSG00030 is in no panel
    assert choice.unknown == ["ENSG00030", "ERBB2"]
    lines = viewer_content(study, scores, "resnet18")["about"]
    assert "Named in the study but in no panel: ENSG00030, ERBB2." in lines


def test_what_does_not_fit_is_left_out_by_rule_and_said(scored, monkeypatch):
    study, scores = scored
    every = Views(study)
    ranked = viewer.gene_ranking(scores, "vision_mlp", "log1p_cp10k")
    monkeypatch.setattr(viewer, "SECTIONS", 3)
    monkeypatch.setattr(viewer, "GENES", 5)
    choice = choose(every, scores, "vision_mlp")
    assert len(choice.sections) == 3
    assert len(ranked) == 28
    assert choice.genes == [ranked.index[i] for i in (0, 7, 14, 20, 27)]
    table = scores.sections
    table = table[(table["model"] == "vision_mlp") & (table["transform"] == "log1p_cp10k")]
    assert {choice.sections[0], choice.sections[-1]} == set(
        table.set_index("section")["pearson"].agg(["idxmax", "idxmin"])
    )
    assert (
        "This page holds 3 of 6 sections and 5 of 28 genes" in viewer_content(study, scores, "vision_mlp")["about"][0]
    )
    monkeypatch.setattr(viewer, "BUDGET", 1.5 * 144 * (36 + 3 * 8 * 8 / 3))
    choice = choose(every, scores, "vision_mlp")
    assert (len(choice.sections), len(choice.genes)) == (1, 5)
    monkeypatch.setattr(viewer, "BUDGET", 1000)
    content = viewer_content(study, scores, "vision_mlp")
    assert content["data"] is None
    assert content["about"][0] == "Too many spots for a page: A_1, A_2, A_3, B_1, B_2, B_3."
    assert "No section of this study fits a page." in write_report(study).read_text(encoding="utf-8")


def test_the_size_of_a_page_does_not_grow_with_the_study(scored):
    study, scores = scored
    rows = scores.sections
    names = [f"T_{i}" for i in range(100)]
    mine = rows[(rows["model"] == "vision_mlp") & (rows["transform"] == "log1p_cp10k")].iloc[0]
    many = pd.DataFrame([mine] * 100).assign(section=names, spots=3000, pearson=np.linspace(0.5, 0, 100))
    every = Views(study)
    every.fold_of = dict.fromkeys(names, "fold_A")
    choice = choose(every, replace(scores, sections=many), "vision_mlp")
    cost = 3000 * len(choice.sections) * (36 + 8 / 3 * 8 * len(choice.genes))
    assert cost <= viewer.BUDGET
    assert choice.sections[0] == "T_0"
    assert choice.sections[-1] == "T_99"
    assert len(choice.genes) >= 3


def test_spread():
    assert spread(list("abcdefg"), 3) == ["a", "d", "g"]
    assert spread(list("abc"), 9) == ["a", "b", "c"]
    assert spread(list("abc"), 1) == ["b"]
    assert spread([], 4) == spread(["a"], 0) == []


def test_the_page_opens_with_the_viewer_that_its_address_names(page, tmp_path, scored):
    study, scores = scored
    dom = opened(page, tmp_path, address="#viewer=resnet18,A_2,GENE009,3x4")
    rows = scores.genes
    keep = (rows["model"] == "resnet18") & (rows["section"] == "A_2") & (rows["gene"] == "ENSG00009")
    r = rows[keep & (rows["transform"] == "log1p_cp10k")]["pearson"].item()
    said = text_of(dom, "viewer-said")
    assert said == (
        f"GENE009 in section A_2 of patient A: Pearson’s r = {wording.number(r)} over 144 spots, "
        "depth-normalised expression, predicted by ResNet-18."
    )
    view = Views(study).view("resnet18", "A_2", "GENE009")
    at = list(view.barcodes).index("3x4")
    true, predicted = wording.number(view.true[at], 2), wording.number(view.predicted[at], 2)
    difference = wording.number(view.predicted[at] - view.true[at], 2, sign=True)
    spot = f"Spot 3x4: measured {true}, predicted {predicted}, difference {difference}."
    assert text_of(dom, "viewer-spot") == spot
    assert re.search(r'id="report"[^>]*hidden', dom)
    assert not re.search(r'id="viewer"[^>]*hidden', dom)
    assert re.search(r'id="tab-viewer"[^>]*aria-selected="true"', dom)


PIXELS = """
const ink = (name) => {
  const canvas = document.getElementById(`viewer-${name}`);
  const [x, y] = [canvas.width / 2, canvas.height / 2].map(Math.round);
  return new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size;
};
"""


def test_controls_keys_and_tabs_work(page, tmp_path, scored):
    script = (
        PIXELS
        + """
    const get = (name) => document.getElementById(name);
    const pick = (name, value) => { get(name).value = value; get(name).dispatchEvent(new Event("change")); };
    const press = (key) => get("viewer-maps").dispatchEvent(new KeyboardEvent("keydown", { key }));
    get("tab-viewer").click();
    pick("viewer-model", "mean_profile"); pick("viewer-section", "B_3"); pick("viewer-gene", "ENSG00012");
    const said = get("viewer-said").textContent;
    press("ArrowRight"); const first = get("viewer-spot").textContent;
    press("ArrowRight"); press("ArrowDown"); const third = get("viewer-spot").textContent;
    const address = location.hash;
    const inks = ["tissue", "true", "predicted", "residual"].map(ink);
    get("tab-viewer").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
    document.body.dataset.found = JSON.stringify({ said, first, third, address, inks, report: get("report").hidden });
    """
    )
    import html
    import json

    dom = opened(page, tmp_path, script=script)
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
    assert "Pearson’s r = 0.000 over 144 spots" in found["said"]
    assert found["said"].endswith("The prediction is the same at every spot: its correlation counts as 0.")
    x, y = map(int, re.match(r"Spot (\d+)x(\d+):", found["first"]).groups())
    assert found["third"].startswith(f"Spot {x + 1}x{y + 1}: ")
    assert found["address"] == f"#viewer=mean_profile,B_3,ENSG00012,{x + 1}x{y + 1}"
    assert min(found["inks"]) > 3
    assert found["report"] is False


def test_part_of_a_name_narrows_the_list_and_spots_fade(page, tmp_path):
    script = (
        PIXELS
        + """
    const get = (name) => document.getElementById(name);
    const type = (text) => { get("viewer-find").value = text; get("viewer-find").dispatchEvent(new Event("input")); };
    const names = () => [...get("viewer-gene").options].map((one) => one.textContent);
    get("tab-viewer").click();
    const all = names();
    const shown = get("viewer-gene").value;
    type("zzz"); const none = { names: names(), said: get("viewer-found").textContent };
    type("ene01"); const some = { names: names(), said: get("viewer-said").textContent, hash: location.hash };
    const opaque = ink("true");
    get("viewer-alpha").value = 0; get("viewer-opacity").value = 0;
    get("viewer-alpha").dispatchEvent(new Event("input"));
    document.body.dataset.found = JSON.stringify({ all, none, some, opaque, faded: ink("true") });
    """
    )
    import html
    import json

    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', opened(page, tmp_path, script=script))[1]))
    assert found["none"]["names"] == []
    assert "zzz" in found["none"]["said"]
    assert found["some"]["names"] == [name for name in found["all"] if "GENE01" in name]
    assert 0 < len(found["some"]["names"]) < len(found["all"])
    assert found["some"]["said"].startswith("GENE01")
    assert found["opaque"] > 3
    assert found["faded"] == 1  # white: neither spots nor tissue


def test_names_that_are_not_there_are_said_in_place(page, tmp_path):
    dom = opened(page, tmp_path, address="#viewer=nobody,Z%26%3Cb%3E,GENE011")
    assert text_of(dom, "viewer-said").startswith("This page holds no model called nobody. This page holds no section")
    assert "called Z&amp;&lt;b&gt;." in dom


def test_a_nasty_gene_and_a_missing_section_break_nothing(changed, tmp_path):
    study, _ = changed
    for fold in ("fold_A", "fold_B"):
        path = study.run.prediction("mean_profile", fold)
        prediction = ad.read_h5ad(path)
        symbols = prediction.var["symbol"].items()
        prediction.var["symbol"] = [NASTY if gene == "ENSG00009" else name for gene, name in symbols]
        prediction.write_h5ad(path)
    lacking = study.run.prediction("knn", "fold_B")
    prediction = ad.read_h5ad(lacking)
    prediction[prediction.obs["section"] != "B_2"].copy().write_h5ad(lacking)
    page = write_report(marked(study, "ENSG00009"))
    dom = opened(page, tmp_path, address="#viewer=knn,B_2,ENSG00012")
    assert "<title>Made" in dom
    assert text_of(dom, "viewer-said").startswith("Frozen-encoder kNN has no prediction of section B_2")
    assert "&lt;/script&gt;&lt;script&gt;document.title='broken'&lt;/script&gt;</option>" in dom


def test_one_section_with_a_constant_gene(changed):
    study, scores = changed
    path = study.run.section("A_2")
    section = ad.read_h5ad(path)
    counts = section.X.toarray()
    counts[:, section.var_names.get_loc("ENSG00009")] = 0
    section.X = type(section.X)(counts)
    section.write_h5ad(path)
    only = replace(scores, sections=scores.sections[scores.sections["section"] == "A_2"])
    content = viewer_content(marked(study, "ENSG00009"), only, "vision_mlp")
    assert [one["id"] for one in content["data"]["sections"]] == ["A_2"]
    mine = section_of(content, "A_2")["genes"]["ENSG00009"]["models"]["vision_mlp"]
    assert mine["r"] == wording.number(np.nan)
    assert mine["notes"] == "The measured values are the same at every spot: no correlation can be computed."
    assert content["said"].endswith(mine["notes"])
