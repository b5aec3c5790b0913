import json

import numpy as np
import pytest
import torchstain

from histocrypt.errors import InputError
from histocrypt.tissue import stain
from histocrypt.tissue.stain import DEFAULT_REFERENCE, StainStatistics, estimate, normalise, pool


def degrees(a, b):
    return np.degrees(np.arccos(np.clip((a * b).sum(axis=0), -1, 1)))


def test_planted_stains_are_found(stained, planted_stains):
    found = estimate(stained(60_000))
    assert found.method == "macenko"
    assert found.note == ""
    assert degrees(found.stain_matrix, planted_stains).max() < 4


def test_a_sample_says_what_all_pixels_say(stained):
    pixels = stained(400_000)
    sample = pixels[np.random.default_rng(1).choice(len(pixels), 40_000, replace=False)]
    whole, part = estimate(pixels), estimate(sample)
    assert degrees(whole.stain_matrix, part.stain_matrix).max() < 1
    np.testing.assert_allclose(part.max_concentrations, whole.max_concentrations, rtol=0.03)
    np.testing.assert_allclose(part.lab_mean, whole.lab_mean, atol=0.5)


def test_two_scanners_become_one(stained, planted_stains):
    """The same tissue, stained by two hands, looks the same after normalisation."""
    tilted = planted_stains + np.array([[0.05, 0.10], [-0.04, 0.06], [0.10, -0.12]])
    tilted /= np.linalg.norm(tilted, axis=0)
    one = stained(40_000, 3)
    other = stained(40_000, 3, stains=tilted, strength=(0.9, 1.1))
    reference = estimate(one)
    before = np.abs(one.astype(float) - other).mean()
    after = np.abs(one.astype(float) - normalise(other, source=estimate(other), reference=reference)).mean()
    assert before > 10
    assert after < 4


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_agrees_with_torchstain_on_real_tissue(real_crops, method):
    source, target = real_crops["raw"], real_crops["other"]
    ours = normalise(
        source, source=estimate(source.reshape(-1, 3)), reference=estimate(target.reshape(-1, 3)), method=method
    )
    if method == "macenko":
        theirs = torchstain.normalizers.MacenkoNormalizer(backend="numpy")
        theirs.fit(target)
        expected, _, _ = theirs.normalize(source, stains=False)
    else:
        theirs = torchstain.normalizers.ReinhardNormalizer(backend="numpy")
        theirs.fit(target)
        expected = theirs.normalize(source)
    tissue = source.min(axis=2) < 220  # the glass is kept white here, and is not in torchstain
    difference = np.abs(ours.astype(int) - expected)[tissue]
    assert tissue.mean() > 0.3
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 2
    assert np.abs(source.astype(int) - ours)[tissue].mean() > 3  # something was done


@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_white_stays_white(stained, method):
    tiles = stained(3 * 60 * 60).reshape(3, 60, 60, 3).copy()
    tiles[:, :20] = 255
    tiles[:, 20:25] = 246
    out = normalise(tiles, source=estimate(stained(20_000)), reference=DEFAULT_REFERENCE, method=method)
    assert out.shape == tiles.shape
    assert out.dtype == np.uint8
    assert (out[:, :20] == 255).all()
    assert (out[:, 20:25] == 246).all()
    assert (out[:, 25:] != tiles[:, 25:]).any()


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (np.full((5000, 3), 255, np.uint8), "0 stained pixels"),
        (np.full((5000, 3), (120, 60, 130), np.uint8), "as if there were one"),
        (np.full((100, 3), (120, 60, 130), np.uint8), "100 stained pixels"),
        (np.zeros((5000, 3), np.uint8), "as if there were one"),
        (np.zeros((0, 3), np.uint8), "0 stained pixels"),
    ],
)
@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_hopeless_pixels_fall_back_and_say_so(pixels, why, method, stained, tmp_path):
    found = estimate(pixels)
    assert found.method == "default"
    assert why in found.note
    assert "default matrix is used" in found.note
    found.save(tmp_path / "s.json")
    tile = stained(900).reshape(1, 30, 30, 3)
    for source, reference in ((found, DEFAULT_REFERENCE), (DEFAULT_REFERENCE, found), (found, found)):
        out = normalise(tile, source=source, reference=reference, method=method)
        assert out.std() > 0 or reference is found


def test_one_stain_only_is_noticed(planted_stains):
    """Eosin gone: shades of haematoxylin with a little noise must not be unmixed into two."""
    rng = np.random.default_rng(0)
    od = rng.uniform(0.3, 1.5, size=(20_000, 1)) * planted_stains[:, 0]
    pixels = np.clip(240 * np.exp(-od), 0, 255).astype(np.uint8)
    found = estimate(pixels)
    assert found.method == "default"
    assert "degrees only" in found.note
    out = normalise(pixels, source=found, reference=DEFAULT_REFERENCE)
    assert np.corrcoef(out.mean(axis=1), pixels.mean(axis=1))[0, 1] > 0.98


def test_statistics_survive_the_file(stained, tmp_path):
    found = estimate(stained(5000))
    found.save(tmp_path / "stain.json")
    read = StainStatistics.load(tmp_path / "stain.json")
    assert read.to_dict() == found.to_dict()
    tile = stained(400, 5).reshape(20, 20, 3)
    assert (
        normalise(tile, source=read, reference=DEFAULT_REFERENCE)
        == normalise(tile, source=found, reference=DEFAULT_REFERENCE)
    ).all()


@pytest.mark.parametrize("field", ["stain_matrix", "max_concentrations", "lab_mean", "lab_sd"])
def test_a_damaged_file_is_named(stained, tmp_path, field):
    content = estimate(stained(5000)).to_dict()
    path = tmp_path / "stain.json"
    for broken in ({**content, field: [1.0]}, {key: value for key, value in content.items() if key != field}):
        path.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=rf"stain\.json: {field}"):
            StainStatistics.load(path)


def test_pooling(stained, planted_stains):
    one, two = estimate(stained(20_000, 1)), estimate(stained(20_000, 2, strength=(0.8, 0.8)))
    both = pool([one, two])
    assert both.method == "macenko"
    assert both.note == ""
    np.testing.assert_allclose(np.linalg.norm(both.stain_matrix, axis=0), 1)
    np.testing.assert_allclose(both.max_concentrations, (one.max_concentrations + two.max_concentrations) / 2)
    assert both.n_pixels == 40_000
    failed = estimate(np.full((2000, 3), 255, np.uint8))
    mixed = pool([one, failed])
    np.testing.assert_allclose(mixed.stain_matrix, one.stain_matrix)
    assert "1 of 2" in mixed.note
    assert pool([failed]).method == "default"
    with pytest.raises(ValueError, match="no stain statistics"):
        pool([])


def test_a_tile_does_not_depend_on_its_company(stained, monkeypatch):
    tiles = stained(5 * 50 * 50).reshape(5, 50, 50, 3)
    source = estimate(stained(20_000))
    for method in ("macenko", "reinhard"):
        together = normalise(tiles, source=source, reference=DEFAULT_REFERENCE, method=method)
        monkeypatch.setattr(stain, "_CHUNK", 777)
        alone = [normalise(tile, source=source, reference=DEFAULT_REFERENCE, method=method) for tile in tiles]
        assert (together == np.stack(alone)).all()
        monkeypatch.undo()


def test_none_and_unknown_methods(stained):
    tile = stained(100).reshape(10, 10, 3)
    source = estimate(stained(2000))
    assert normalise(tile, source=source, reference=source, method="none") is tile
    with pytest.raises(InputError, match="did you mean 'macenko'"):
        normalise(tile, source=source, reference=source, method="macenco")
    with pytest.raises(ValueError, match="uint8"):
        normalise(tile / 255, source=source, reference=source)
    with pytest.raises(ValueError, match="uint8"):
        estimate(tile)


def test_lab_is_the_usual_one(stained):
    from skimage.color import lab2rgb, rgb2lab

    pixels = stained(500)
    np.testing.assert_allclose(stain.rgb_to_lab(pixels), rgb2lab(pixels[None])[0], atol=0.1)
    back = lab2rgb(rgb2lab(pixels[None]))[0] * 255
    np.testing.assert_allclose(stain.lab_to_rgb(stain.rgb_to_lab(pixels)), back, atol=0.5)
