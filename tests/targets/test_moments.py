"""Numbers that come section by section say the same as all values at once, and sections are not read in vain."""

from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from tests.targets.test_panels import choose, section

from histocrypt.options import PanelChoice
from histocrypt.targets.panels import PanelChooser, moments, squares
from histocrypt.targets.transforms import Moments, transform

FOLDS = (("a", "b"), ("b", "c"), ("a", "c"), ("a", "b", "c"))


def test_moments_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(1e6, 1, (90, 4))  # far from zero: sums of squares would lose all digits
    parts = Moments.none(4)
    for part in np.split(values, [7, 40]):
        parts = parts.with_more(Moments.of(part))
    assert parts.n == 90
    assert np.allclose(parts.mean, values.mean(axis=0), rtol=1e-14)
    assert np.allclose(parts.sd, values.std(axis=0), rtol=1e-10)


def test_a_section_s_numbers_are_those_of_its_dense_counts():
    adata = section("s")
    adata.X = csr_matrix(np.where(adata.X.toarray() < 4, 0, adata.X.toarray()))  # with zeros, as real counts
    values = transform(adata.X, adata.obs["total_counts"].to_numpy(), "log1p_cp10k")
    found = moments(adata)
    assert np.allclose(found["mean"], np.expm1(values.astype(float)).mean(axis=0), rtol=1e-12)
    assert np.allclose(found["variance"], values.var(axis=0, dtype=float), rtol=1e-12)
    assert np.array_equal(squares(adata)["squares"], np.square(adata.X.toarray().astype(float)).sum(axis=0))


@pytest.mark.parametrize("method", ["top_mean", "hvg", "hmhvg", "stem_hmhvg"])
def test_many_folds_choose_as_each_alone_and_read_each_section_once(method):
    every = {name: section(name, seed=seed) for seed, name in enumerate("abc")}
    read = Counter()

    def reader(name):
        read[name] += 1
        return every[name]

    chooser = PanelChooser(reader, PanelChoice(method=method, size=5))
    for fold in FOLDS:
        assert chooser.choose(fold) == choose([every[name] for name in fold], PanelChoice(method=method, size=5))
    most = 2 if method in ("hvg", "stem_hmhvg") else 1  # these ask again once they know which genes are shared
    assert set(read.values()) == {most}


def test_other_shared_genes_are_compared_anew():
    every = {"a": section("a"), "b": section("b", seed=1), "c": section("c", seed=2, drop=("G29", "G20"))}
    choice = PanelChoice(method="hvg", size=5)
    chooser = PanelChooser(every.__getitem__, choice)
    for fold in FOLDS:
        assert chooser.choose(fold) == choose([every[name] for name in fold], choice)
    assert "G20" in chooser.choose(("a", "b")).genes
    assert "G20" not in chooser.choose(("a", "c")).genes
