"""How much sections explain: a planted batch effect is seen, its absence too, and shuffled labels stand beside."""

from dataclasses import replace

import numpy as np
import pytest
from tests.tiny_section import write_tiny_section

from histocrypt.errors import InputError
from histocrypt.explore.batch import (
    batch_figure,
    batch_row,
    batch_table,
    components,
    components_of_counts,
    explained_by,
    sample,
    sample_tiles,
)
from histocrypt.sections.read import read_path


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Four sections of two patients."""
    folder = tmp_path_factory.mktemp("sections")
    names = {"A": "P1", "B": "P1", "C": "P2", "D": "P2"}
    return [sample(read_path(write_tiny_section(folder, *pair, n_side=9)), spots=60) for pair in names.items()]


def test_share_between_labels_by_hand():
    scores = np.array([[0.0], [2.0], [4.0], [6.0]])
    assert explained_by(scores, np.array(["a", "a", "b", "b"])) == pytest.approx(16 / 20)
    assert explained_by(scores, np.array(["a", "b", "b", "a"])) == 0
    assert np.isnan(explained_by(scores, np.array(["a"] * 4)))
    assert explained_by(np.repeat([[1.0], [5.0]], 2, axis=0), np.array(["a", "a", "b", "b"])) == 1


@pytest.mark.parametrize(("size", "low", "high"), [(0.0, 0.0, 0.1), (8.0, 0.8, 1.0)])
def test_planted_section_effect(samples, size, low, high):
    rng = np.random.default_rng(0)
    offsets = np.repeat(rng.normal(size=(4, 30)), [len(one.names) for one in samples], axis=0)
    row = batch_row(components("made", rng.normal(size=offsets.shape) + size * offsets, samples))
    assert low <= row["explained by section"] <= high
    assert row["by shuffled blocks"] < 0.1
    assert (row["silhouette of sections"] > row["of shuffled blocks"] + 0.3) == (size > 0)


def test_planted_patient_effect_against_patients_shuffled_over_sections(samples):
    rng = np.random.default_rng(0)
    made = components("made", rng.normal(size=(sum(len(one.names) for one in samples), 30)), samples)
    row = batch_row(replace(made, scores=made.scores + 9 * (made.patients == "P2")[:, None]))
    assert row["explained by patient"] > 0.8
    assert row["by shuffled patients"] < 0.6
    single = [replace(one, patient=one.section) for one in samples]
    assert "explained by patient" not in batch_row(components("made", made.scores, single))


def test_smooth_tissue_is_not_taken_for_a_batch_effect(samples):
    """Shuffled blocks of smooth tissue explain more than shuffled spots do: the baseline is the honest one."""
    smooth = np.concatenate([one.coords_px for one in samples]) + np.random.default_rng(0).normal(size=(240, 2))
    row = batch_row(components("smooth", smooth, samples))
    shuffled_spots = explained_by(smooth, np.random.default_rng(0).permutation(np.repeat(list("ABCD"), 60)))
    assert row["by shuffled blocks"] > 3 * shuffled_spots
    assert row["explained by section"] < row["by shuffled blocks"]


def test_counts_are_joined_by_gene_names(samples):
    """Sections that list their genes in another order, or lack some, give the same components of the shared ones."""
    whole = components_of_counts(samples)
    assert whole.view == "counts, 30 shared genes"
    turned = [
        replace(one, genes=one.genes[order], counts=one.counts[:, order])
        for one, order in zip(samples, (np.random.default_rng(n).permutation(30) for n in range(4)), strict=True)
    ]
    again = components_of_counts(turned)
    np.testing.assert_allclose(np.abs(again.scores[:, 0]), np.abs(whole.scores[:, 0]), atol=1e-3)
    fewer = replace(samples[1], genes=samples[1].genes[5:], counts=samples[1].counts[:, 5:])
    assert components_of_counts([samples[0], fewer]).view == "counts, 25 shared genes"
    other = replace(samples[1], genes=np.array([f"X{n}" for n in range(30)]))
    assert components_of_counts([samples[0], other]) is None


def test_table_and_figure(samples):
    found = [components_of_counts(samples)] * 2
    table = batch_table(found)
    assert table.loc["counts, 30 shared genes"].notna().all(axis=None)
    assert len(batch_figure(found).axes) == 2
    alone = components_of_counts(samples[:1])
    assert np.isnan(batch_row(alone)["explained by section"])


def test_sample_leaves_near_empty_spots_out_and_tiles_are_of_its_spots(tmp_path):
    section = read_path(write_tiny_section(tmp_path))
    totals = np.asarray(section.adata.X.sum(axis=1)).ravel()
    drawn = sample(section, spots=10, min_counts=int(np.median(totals)))
    assert len(drawn.rows) == 10
    assert (drawn.totals >= np.median(totals)).all()
    assert list(drawn.names) == [f"A:{name}" for name in section.adata.obs_names[drawn.rows]]
    assert len(sample(section, min_counts=10**9).rows) == section.n_spots
    tiles = sample_tiles(section, drawn, tile_um=80.0, tile_px=20)
    x, y = section.coords[drawn.rows[3]].astype(int)
    np.testing.assert_array_equal(tiles[3], section.image.read_region(x - 10, y - 10, 20, 20))


def test_bad_input_is_one_sentence(samples, tmp_path):
    with pytest.raises(InputError, match="^made: "):
        components("made", np.zeros((3, 2)), samples)
    section = replace(read_path(write_tiny_section(tmp_path)), image=None)
    with pytest.raises(InputError) as refused:
        sample_tiles(section, sample(section), tile_um=80.0, tile_px=20)
    assert (refused.value.field, refused.value.file) == ("A", section.file)
