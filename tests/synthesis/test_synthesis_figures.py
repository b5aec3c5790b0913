"""Pictures: drawn from real tables and tiles, with what a reader needs on them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tests.synthesis.toy_discs import discs

from histocrypt.evaluation.figures import save
from histocrypt.synthesis import figures


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_each_class_with_and_without_masks(tmp_path, channels):
    real = discs(12, 0, channels=channels)
    few = discs(2, 1, channels=channels)
    few = replace(few, has_mask=few.labels == "tumour")  # fewer than asked for, one without a mask
    figure = figures.tile_grid({"real": real, "synthetic": few}, each=3)
    drawn = [len(one.images) for one in figure.axes]
    assert len(drawn) == 4 * (2 * (3 + 1) - 1)
    assert sum(drawn) == 6 + 2 * 6 + 2 + 2 + 1
    assert {one.get_title("left") for one in figure.axes} >= {"normal", "tumour"}
    assert [text.get_text() for text in figure.legends[0].texts] == ["rim of background", "nuclei", "tumour region"]
    assert save(figure, tmp_path / "grid.png").stat().st_size > 1000


def test_losses_are_drawn_by_generator(tmp_path):
    losses = {kind: pd.Series([1.0, 0.5, 0.3], index=[1, 2, 3]) for kind in ("joint", "control")}
    figure = figures.loss_curves(losses)
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == ["joint", "control"]
    save(figure, tmp_path / "losses.svg")


def test_histograms_show_the_cuts(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"error": rng.random(50), "distance": rng.random(50)})
    held_out = {"error": rng.random(20), "distance": rng.random(20)}
    figure = figures.filter_histograms(table, {"most_error": 0.9, "least_distance": 0.1}, held_out)
    cuts = [one.lines[0].get_xdata()[0] for one in figure.axes]
    assert cuts == [0.9, 0.1]
    assert [text.get_text() for text in figure.legends[0].texts] == ["synthetic (50)", "held-out real (20)"]
    save(figure, tmp_path / "filter.svg")


def test_use_is_said_of_every_score_and_set(toy_table):
    table, _ = toy_table
    said = figures.use_table(table)
    assert said.index.tolist() == table.loc[table["role"] != "curve", "title"].tolist()
    for score in ("mean_dice", "auc"):
        for name in ("real", "synthetic"):
            value = f"{table.loc[name, score]:.3f}"
            assert said.loc[table.loc[name, "title"]].str.contains(value, regex=False).any()
            assert value in figures.use_words(table)


def test_bars_show_every_score(toy_table, tmp_path):
    table, _ = toy_table
    figure = figures.utility_bars(table)
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == [
        "stroma",
        "nuclei",
        "tumour\nregion",
        "mean",
    ]
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert [line.get_ydata()[0] for line in marks] == pytest.approx(
        table.loc["synthetic", ["dice_stroma", "dice_nuclei", "dice_tumour region", "mean_dice"]].astype(float).tolist()
    )
    save(figure, tmp_path / "bars.svg")
