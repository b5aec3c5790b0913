"""Curves of every network have something in both panels."""

import numpy as np
import pandas as pd
import pytest

from histocrypt.evaluation.figures import training_curves

LOSSES = {"epoch": [1, 2, 3], "train_loss": [1.0, 0.6, 0.5], "validation_loss": [1.1, 0.8, 0.9]}
SCORES = {"epoch": [1, 2, 3], "train_loss": [1.0, 0.6, 0.5], "validation_pearson": [0.1, 0.3, 0.2]}


@pytest.mark.parametrize(("table", "judged"), [(LOSSES, "validation_loss"), (SCORES, "validation_pearson")])
def test_what_training_stops_by_is_drawn(table, judged):
    tables = {fold: pd.DataFrame(table) + shift for shift, fold in enumerate(["fold_1", "fold_2"])}
    figure = training_curves({"stem": tables})
    lines = figure.axes[1].lines
    assert [line.get_label() for line in lines] == ["fold_1", "fold_2"]
    for line, own in zip(lines, tables.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), own[judged])
