import numpy as np
import pytest
from tests.synthesis.fabricated import synthetic, tiles

from histocrypt.audit.memorisation import memorised as by_features
from histocrypt.audit.memorisation import nearest_figure
from histocrypt.errors import InputError
from histocrypt.synthesis.manifest import Pairs


def colours(pairs):
    """Return features that need no training: every channel's sorted values, which flips and turns leave alone."""
    return np.sort(pairs.images.reshape(len(pairs), -1, 3), axis=1)[:, ::16].reshape(len(pairs), -1) / 255.0


def memorised(drawn, train, held_out, **settings):
    features = [colours(pairs) if len(pairs) else np.empty((0, 1)) for pairs in (drawn, train, held_out)]
    named = {"records": train.ids, "patients": train.patients, "strangers": held_out.patients}
    return by_features(*features, ids=drawn.ids, **named, **settings)


@pytest.fixture(scope="module")
def real():
    return tiles(list("abcdef"), each=12), tiles(["x", "y", "z"], each=40, seed=1)


def test_planted_copies_are_counted_by_sample_and_by_patient(real):
    train, held_out = real
    new = synthetic(tiles(["u", "v"], each=40, seed=2), prefix="new")
    chosen = np.flatnonzero(np.isin(train.patients, ["a", "b"]))[:20]
    copies = synthetic(train.subset(chosen), prefix="copy", change=lambda x: x[:, :, ::-1])
    plain = memorised(new, train, held_out)
    found = memorised(Pairs.join([new, copies]), train, held_out)
    assert found.nearest.index[:20].str.startswith("copy").all()
    assert found.nearest["copied"].iloc[:20].all()
    expected = (plain.share_samples * 80 + 20) / 100
    assert found.share_samples == pytest.approx(expected)
    assert found.share_samples_interval[0] <= found.share_samples <= found.share_samples_interval[1]
    assert found.share_patients >= 2 / 6
    assert found.share_patients_interval[0] < found.share_patients <= found.share_patients_interval[1]
    owners = dict(zip(train.ids.tolist(), train.patients.tolist(), strict=True))
    assert found.nearest["patient"].tolist() == [owners[name] for name in found.nearest["record"]]


def test_unseen_tissue_is_copied_about_as_often_as_expected(real):
    train, held_out = real
    unseen = [synthetic(tiles(["u", "v", "w"], each=40, seed=seed)) for seed in range(2, 10)]
    shares = [memorised(drawn, train, held_out).share_samples for drawn in unseen]
    found = memorised(synthetic(held_out), train, held_out)
    assert found.share_samples == found.expected_samples == pytest.approx(0.05)
    assert np.mean(shares) < 0.2


def test_no_copy_still_has_an_interval_over_patients(real):
    train, held_out = real
    far = synthetic(train, change=lambda x: 255 - x)
    found = memorised(far, train, held_out)
    assert (found.share_samples, found.share_patients) == (0, 0)
    low, high = found.share_patients_interval
    assert low == 0
    assert 0.4 < high < 0.5  # none of six: the exact interval reaches 1 - 0.025 ** (1 / 6)
    assert any("6 training patients" in note for note in found.notes)


def test_the_nearest_pairs_are_drawn_once_for_each_record(real):
    train, held_out = real
    twice = Pairs.join([synthetic(train.subset(np.arange(3)), prefix=name) for name in ("one", "two")])
    found = memorised(twice, train, held_out)
    figure = nearest_figure(found, twice, train, n=8)
    assert len(figure.axes) == 2 * 3
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), figure.axes[3].images[0].get_array())
    assert "copied" in figure.axes[0].get_title("left")


def test_refusals(real):
    train, held_out = real
    drawn = synthetic(train)
    with pytest.raises(InputError, match="patient a is"):
        memorised(drawn, train, train)
    with pytest.raises(InputError, match="a training image has no patient"):
        memorised(drawn, drawn, held_out)
    with pytest.raises(InputError, match="there is no synthetic image"):
        memorised(drawn.subset([]), train, held_out)
    with pytest.raises(InputError) as error:
        memorised(drawn, train, held_out, quantile=5)
    assert (error.value.field, error.value.value) == ("quantile", 5)
