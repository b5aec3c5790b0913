import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histocrypt.errors import InputError
from histocrypt.evaluation import wording
from histocrypt.evaluation.maps import backdrop
from histocrypt.evaluation.scores import title_of
from histocrypt.report import page as report
from histocrypt.report.cards import write_cards
from histocrypt.report.page import planted_row, write_report


@pytest.fixture(scope="module")
def text(page):
    return page.read_text(encoding="utf-8")


def test_the_report_holds_every_model_with_its_numbers(scored, text):
    for _, row in scored[1].summary.iterrows():
        assert row["title"] in text
        assert wording.number(row["pearson"]) in text
        assert wording.number(row["mse"]) in text
    assert "does not beat colour-only ridge" in text
    assert "PCC-5" in text
    assert "chosen on" in text
    assert "published" in text
    assert "B_3 (2)" in text  # unscored genes
    assert scored[0].hash() in text


def test_the_report_needs_nothing_but_itself(text):
    assert len(text) < 5e6
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, flags=re.DOTALL)
    assert [about for about, _ in scripts] == [' type="application/json" id="viewer-data"', ""]
    assert scripts[1][1] == (Path(report.__file__).parent / "viewer.js").read_text(encoding="utf-8")
    assert not re.search(r"https?:|fetch|XMLHttp|WebSocket|import|innerHTML|eval|Function\(", scripts[1][1])
    text = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    sources = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert "<script" not in text
    assert "@import" not in text
    anchors = {source[1:] for source in sources if source.startswith("#")}
    assert anchors <= set(re.findall(r'id="([^"]+)"', text))


def test_a_nasty_title_is_escaped(text):
    assert "Made &#34;data&#34; &lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text


def test_the_report_asks_for_scores_first(fresh):
    with pytest.raises(InputError, match="histocrypt run"):
        write_report(fresh)


def test_cards_show_the_model_beside_every_baseline(scored):
    study, scores = scored
    cards = write_cards(study)
    assert {card.parent.parent.name for card in cards} == {"vision_mlp", "resnet18", "colour_ridge"}
    text = study.run.model("resnet18", "final").joinpath("README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nlibrary_name: histocrypt\nlicense: mit\n")
    for name in ("resnet18", "mean_profile", "depth_only", "colour_ridge", "encoder_ridge", "knn"):
        assert title_of(name) in text
        assert wording.number(scores.of("log1p_cp10k").loc[name, "pearson"]) in text
    assert "does not beat, but does worse than, colour-only ridge" in text
    assert "histocrypt predict --model outputs/made/models/resnet18/final" in text
    assert "Not for diagnosis" in text


def test_numbers_have_a_true_minus_and_no_negative_zero():
    assert wording.number(-0.1234) == "\u22120.123"
    assert wording.number(-0.0001) == "0.000"
    assert wording.number(0.5, sign=True) == "+0.500"
    assert wording.number(np.nan) == "\u2013"


def test_planted_defects_that_are_still_there_are_marked_missed():
    import anndata as ad

    section = ad.AnnData(np.ones((3, 1), np.float32), obs=pd.DataFrame(index=["1x1", "2x2", "3x3"]))
    planted = {"shift_um": np.array([70.0, -50.0]), "off_tissue": ["9x9", "2x2"], "nan": [], "low_depth": ["8x8"]}
    section.uns["demo"] = {"planted": planted}
    section.uns["preprocessing"] = {"alignment": {"dx_um": -66.0, "dy_um": 47.0, "applied": True}}
    row = planted_row("S_2", section)
    assert (row["off_tissue"], row["off_tissue_ok"]) == ("1 of 2", False)
    assert (row["low_depth"], row["low_depth_ok"]) == ("1 of 1", True)
    assert row["nan"] == "none planted"
    assert row["shift"] == "86 µm planted, 5 µm left"
    assert row["shift_ok"]
    section.uns["preprocessing"] = {"alignment": {"dx_um": 0.0, "dy_um": 0.0, "applied": False}}
    assert not planted_row("S_2", section)["shift_ok"]


def test_without_a_small_image_the_backdrop_is_put_together_from_tiles(tmp_path):
    import anndata as ad
    import h5py

    section = ad.AnnData(np.ones((2, 1), np.float32))
    assert backdrop(section, tmp_path / "none.h5") == (None, 1.0)
    with h5py.File(tmp_path / "tiles.h5", "w") as file:
        file["img"] = np.stack([np.full((6, 6, 3), value, np.uint8) for value in (10, 200)])
        file["coords"] = np.array([[-20.0, 0.0], [300.0, 300.0]])
        file.attrs.update(tile_um=50.0, um_per_px=0.5)
    image, scale = backdrop(section, tmp_path / "tiles.h5")
    x, y = np.round(np.array([[30, 50], [350, 350]]) * scale).astype(int).T
    assert image[y, x, 0].tolist() == [10, 200]
    assert image[int(150 * scale), int(250 * scale)].tolist() == [255, 255, 255]
