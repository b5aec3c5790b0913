"""What several tests look at, made once."""

from dataclasses import replace

import numpy as np
import pytest
from tests.synthesis.toy_discs import discs

from histocrypt.synthesis.segmentation import SegmenterPlan
from histocrypt.synthesis.utility import utility_table


@pytest.fixture(scope="session")
def toy_table(tmp_path_factory):
    """Return the table of usefulness of toy discs, and the folder that it was written to."""
    real, validation, test = (
        discs(n, seed, patients=who) for n, seed, who in ((24, 0, ("A", "B")), (12, 1, ("C",)), (16, 2, ("D", "E")))
    )
    made, folder = replace(discs(40, 3), patients=np.full(40, "")), tmp_path_factory.mktemp("utility")
    plan = SegmenterPlan(options={"width": 8, "depth": 2}, batch=8)
    settings = {"epochs": 6, "seed": 0, "plan": plan, "draws": 60, "folder": folder, "device": "cpu", "sizes": (8,)}
    return utility_table(real, validation, made, test, **settings), folder
