"""Transforms against their formulas; statistics that go to the loss and come back."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from histocrypt.errors import InputError
from histocrypt.targets.transforms import TRANSFORMS, TargetStatistics, output_names, transform

COUNTS = np.array([[0, 3, 1, 3], [0, 0, 0, 0], [10, 0, 5, 1]])
TOTALS = np.array([100.0, 0.0, 16.0])


def test_each_transform_follows_its_formula():
    assert np.allclose(transform(COUNTS, TOTALS, "log1p"), np.log1p(COUNTS))
    assert np.allclose(transform(COUNTS, TOTALS, "log2p1"), np.log2(COUNTS + 1))
    assert transform(COUNTS, TOTALS, "log1p_cp10k")[0, 1] == pytest.approx(np.log1p(3 / 100 * 1e4))
    assert transform(COUNTS, TOTALS, "rank")[0].tolist() == [1, 3.5, 2, 3.5]  # ties share their average


@pytest.mark.parametrize("name", TRANSFORMS)
def test_sparse_is_dense_and_an_empty_spot_is_zeros(name):
    dense = transform(COUNTS, TOTALS, name)
    assert dense.dtype == np.float32
    assert np.array_equal(dense, transform(csr_matrix(COUNTS), TOTALS, name))
    assert not dense[1].any()
    assert np.isfinite(dense).all()


def test_depth_normalised_targets_do_not_follow_depth():
    twice = transform(2 * COUNTS, 2 * TOTALS, "log1p_cp10k")
    assert np.allclose(twice, transform(COUNTS, TOTALS, "log1p_cp10k"))


def test_a_misspelt_transform_is_named():
    with pytest.raises(InputError, match="log1p_cp1k.*did you mean 'log1p_cp10k'"):
        transform(COUNTS, TOTALS, "log1p_cp1k")


def test_outputs_are_named_in_the_order_of_the_columns():
    names = output_names(["log1p", "rank"], list("wxyz"))
    targets = np.concatenate([transform(COUNTS, TOTALS, name) for name in ("log1p", "rank")], axis=1)
    assert names[5] == "rank:x"
    assert np.array_equal(targets[:, 5], transform(COUNTS, TOTALS, "rank")[:, 1])


def test_statistics_standardise_restore_and_survive_a_file(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.normal([1, 5, 3], [1, 2, 0], (200, 3)).astype(np.float32)
    statistics = TargetStatistics.of(targets, ("a", "b", "constant"))
    scores = statistics.standardise(targets)
    assert np.allclose(scores.mean(axis=0), 0, atol=1e-5)
    assert np.allclose(scores.std(axis=0), [1, 1, 0], atol=1e-5)
    assert np.allclose(statistics.restore(scores), targets, atol=1e-5)
    statistics.save(tmp_path / "t.json")
    loaded = TargetStatistics.load(tmp_path / "t.json")
    assert loaded.outputs == statistics.outputs
    assert np.array_equal(loaded.mean, statistics.mean)
    assert np.array_equal(loaded.sd, statistics.sd)


def test_centring_by_section_removes_what_differs_between_sections():
    rng = np.random.default_rng(0)
    sections = np.repeat(["s", "t"], 50)
    within = rng.normal(size=(100, 2)).astype(np.float32)
    shifted = within + 10 * (sections == "t")[:, None].astype(np.float32)
    statistics = TargetStatistics.of(shifted, ("a", "b"))
    centred = statistics.standardise(shifted, sections=sections)
    for section in "st":
        assert np.allclose(centred[sections == section].mean(axis=0), 0, atol=1e-4)
    # Without knowledge of an unseen section, predictions sit on the training mean.
    assert np.allclose(statistics.restore(centred).mean(axis=0), statistics.mean, atol=1e-4)


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "t.json").write_text('{"a": 3}')
    with pytest.raises(InputError, match="target statistics") as refused:
        TargetStatistics.load(tmp_path / "t.json")
    assert refused.value.file == tmp_path / "t.json"
