"""What a model says of the tissue that it learnt from."""

import anndata
import numpy as np
import pandas as pd
import pytest

from histocrypt.study import parse_study
from histocrypt.trust.origin import is_simulated, origin_of, origin_words


def section(laboratory="", **uns):
    obs = pd.DataFrame({"laboratory": [laboratory] * 2} if laboratory else {}, index=["a", "b"])
    return anndata.AnnData(np.zeros((2, 1)), obs=obs, uns=uns)


def test_sections_say_what_they_are_and_the_study_what_they_do_not():
    sections = [section("B", organ="breast", technology="ST"), section("A", technology="Visium"), section()]
    assert origin_of(sections, stain="H&E") == {
        "simulated": False, "organs": ["breast"], "stains": ["H&E"], "laboratories": ["A", "B"],
        "platforms": ["ST", "Visium"],
    }  # fmt: skip
    assert origin_of(sections, organ="lung")["organs"] == ["lung"]
    assert origin_of([section()])["organs"] == []


def test_one_simulated_section_makes_a_model_simulated(demo_tissue):
    drawn = anndata.read_h5ad(demo_tissue()[0])
    assert is_simulated(drawn.uns)
    assert origin_of([section(), drawn])["simulated"]
    assert not is_simulated({"demo": "a word"})


@pytest.mark.parametrize("parts", [("real tissue", "breast", "H&E", "laboratories A and B"), ("simulated tissue",)])
def test_the_words_name_what_is_known(parts):
    full = {"simulated": False, "organs": ["breast"], "stains": ["H&E"], "laboratories": ["A", "B"], "platforms": []}
    bare = {"simulated": True, "organs": [], "stains": [], "laboratories": [], "platforms": []}
    assert origin_words(full if len(parts) > 1 else bare) == ", ".join(parts)


def test_a_study_that_says_nothing_of_its_tissue_keeps_its_hash():
    plain = {"name": "s", "sections": [{"path": "demo"}]}
    said = parse_study({**plain, "tissue": {"organ": "breast", "stain": "H&E"}})
    assert parse_study(plain).hash() == parse_study({**plain, "tissue": {}}).hash() != said.hash()
    assert parse_study(plain).hash("sections") == said.hash("sections")
