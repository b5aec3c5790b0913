"""Predictions of others in the report: scored beside our models on what both predict, and said not to be ours."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from histocrypt.errors import InputError
from histocrypt.evaluation.others import load_others, score_others
from histocrypt.report.page import write_report
from histocrypt.study import parse_study
from histocrypt.workflow.stages import STAGES

MAIN = "log1p_cp10k"
GOOD = {"name": "mine", "sections": [{"path": "a.h5ad"}]}


def theirs(study, section):
    """Return what others would have written of vision_mlp's values of a section."""
    ours = ad.read_h5ad(study.run.prediction("vision_mlp", f"fold_{section[0]}"))
    mine = ours[ours.obs["section"] == section]
    names = mine.obs["barcode"].astype(str).to_numpy()
    var = pd.DataFrame({"gene_ids": mine.var_names}, index=mine.var["symbol"].astype(str).to_numpy())
    return ad.AnnData(np.asarray(mine.layers[MAIN]), obs=pd.DataFrame(index=names), var=var)


@pytest.fixture
def named(scored, tmp_path):
    """Return a function: the scored study with others of these settings, and the scores of its own models."""
    study, scores = scored

    def name(**sources):
        return study.model_copy(update={"others": parse_study({**GOOD, "others": sources}).others}), scores

    return name


def test_others_of_the_same_values_differ_from_our_model_by_nothing(named, tmp_path):
    study, scores = named(copied={"path": f"{tmp_path}/{{section}}.h5ad", "units": MAIN, "title": "Copied"})
    for section in ("A_1", "A_2", "A_3", "B_1", "B_2", "B_3"):
        theirs(study, section)[::-1].write_h5ad(tmp_path / f"{section}.h5ad")
    beside = score_others(study)
    rows = beside.table.set_index("model")
    assert list(rows["transform"].unique()) == [MAIN]
    assert set(rows.index) == {"copied", *scores.models}
    for model in scores.models:  # nothing is left out here, so that ours keep their scores
        assert rows.loc[model, "pearson"] == pytest.approx(scores.of(MAIN).loc[model, "pearson"], abs=1e-9)
    same = rows.loc["vision_mlp"]
    assert [same[name] for name in ("difference", "difference_low", "difference_high")] == pytest.approx([0, 0, 0])
    known, found = scores.against("knn", MAIN).loc["vision_mlp"], rows.loc["knn"]
    assert found["difference"] == pytest.approx(known["difference"])
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert load_others(study).notes == beside.notes
    page = write_report(study).read_text(encoding="utf-8")
    part = page[page.index('id="others"') : page.index('id="sections"')]
    assert "is not known" in part
    assert re.search(r"Copied <small>not trained here", part)
    assert "image_signal" not in part


def test_gaps_of_others_narrow_the_comparison_and_no_other_score(named, tmp_path):
    study, scores = named(partial=f"{tmp_path}/all.h5ad", whole={"path": f"{tmp_path}/{{section}}.h5ad"})
    parts = {"A_1": theirs(study, "A_1")[20:, 4:].copy(), "B_2": theirs(study, "B_2")[:, :9].copy()}
    joined = ad.concat(parts, label="sample", index_unique="-", merge="same", join="inner")
    joined.obs["spot"] = [name.rsplit("-", 1)[0] for name in joined.obs_names]
    joined.write_h5ad(tmp_path / "all.h5ad")
    theirs(study, "A_1").write_h5ad(tmp_path / "A_1.h5ad")
    before = scores.summary.copy()
    beside = score_others(study)
    assert beside.notes["partial"]["sections"] == ["A_1", "B_2"]
    assert beside.notes["partial"]["missing"] == ["A_2", "A_3", "B_1", "B_3"]
    assert beside.notes["partial"]["spots"] == 144 - 20 + 144
    assert not beside.notes["partial"]["known_units"]
    assert beside.notes["whole"]["sections"] == ["A_1"]
    rows = beside.table.set_index(["other", "transform", "model"])
    assert rows.loc[("partial", MAIN, "vision_mlp"), "difference"] == pytest.approx(0, abs=1e-9)
    assert set(rows.loc["whole"].index.get_level_values("transform")) == {MAIN, "log1p"}, "units are not guessed"
    assert before.equals(scores.summary)


def test_others_that_say_nothing_of_our_sections_are_refused(named, tmp_path):
    study, _ = named(mixed=f"{tmp_path}/all.h5ad")
    theirs(study, "A_1").write_h5ad(tmp_path / "all.h5ad")  # barcodes that every section has
    with pytest.raises(InputError) as refused:
        score_others(study)
    assert (refused.value.file, refused.value.field) == (tmp_path / "all.h5ad", "others.mixed.path")
    with pytest.raises(InputError) as refused:
        named(gone="nowhere/{section}.h5ad")[0].others_files(["A_1"])
    assert refused.value.field == "others.gone.path"


@pytest.mark.parametrize(
    ("others", "field"),
    [
        ({"deepspot": {"path": "a.h5ad", "units": "log"}}, "others.deepspot.units"),
        ({"deepspot": {"path": "a.h5ad", "pfad": "b"}}, "others.deepspot"),
        ({"deepspot": {}}, "others.deepspot.path"),
        ({"knn": {"path": "a.h5ad"}}, "others.knn"),
        ({"../deep": {"path": "a.h5ad"}}, "others.../deep"),
    ],
)
def test_a_wrong_entry_is_one_error_that_names_it(others, field):
    with pytest.raises(InputError) as refused:
        parse_study({**GOOD, "others": others})
    assert refused.value.field == field


def test_a_study_without_others_is_what_it_was():
    plain = parse_study(GOOD)
    assert "others" not in plain.model_dump(mode="json")
    assert parse_study({**GOOD, "others": {"deepspot": "a.h5ad"}}).hash() != plain.hash()
    matrix = {"target": {"matrix": "obsm:cells", "transforms": ["proportion"]}, "panel": {"method": "all"}}
    with pytest.raises(InputError) as refused:
        parse_study({**GOOD, **matrix, "others": {"deepspot": "a.h5ad"}})
    assert refused.value.field == "others"


def test_the_evaluation_is_made_again_when_others_change():
    outlined = type("Outlined", (), {"study": parse_study(GOOD)})
    plain = STAGES["70_evaluation"].depends(outlined)
    outlined.study = parse_study({**GOOD, "others": {"deepspot": "a.h5ad"}})
    first = STAGES["70_evaluation"].depends(outlined)
    outlined.study = parse_study({**GOOD, "others": {"deepspot": "b.h5ad"}})
    assert plain == parse_study(GOOD).hash("title", "evaluation")
    assert len({str(plain), str(first), str(STAGES["70_evaluation"].depends(outlined))}) == 3
