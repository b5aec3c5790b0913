"""The registration check on tissue where the answer is known, on noise, and where nothing can be said."""

import numpy as np
import pytest
from PIL import Image

from histocrypt.demo.write import planted
from histocrypt.errors import InputError
from histocrypt.explore.registration import (
    LEAST_SPOTS,
    SEARCH,
    at,
    haematoxylin,
    over_discs,
    registration,
    registration_figure,
    registration_table,
)
from histocrypt.sections.image import PatchMosaic
from histocrypt.sections.read import read_path


@pytest.fixture(scope="module")
def demo(demo_tissue):
    """Two sections of the demo tissue: the first as it should be, the second with spots given 86 µm off."""
    return [read_path(path) for path in demo_tissue(sections=2, spots_per_side=14)]


@pytest.fixture(scope="module")
def stained(demo):
    return [haematoxylin(section) for section in demo]


def with_counts(section, per_spot):
    """Return the section with other total counts, the rest as it is."""
    from dataclasses import replace

    from scipy.sparse import csr_matrix

    adata = section.adata.copy()
    adata.X = csr_matrix((np.asarray(per_spot)[:, None] * np.eye(1, adata.n_vars)).astype(np.int32))
    return replace(section, adata=adata)


def test_an_unshifted_section_is_not_called_shifted(demo, stained):
    found = registration(demo[0], stained[0])
    assert found.verdict == "registered"
    assert np.hypot(*found.best_um) <= 25
    assert found.low_um[0] <= 0 <= found.high_um[0]
    assert found.planted_um == (0.0, 0.0)


def test_a_planted_shift_is_found_with_its_size_and_sign(demo, stained):
    found = registration(demo[1], stained[1])
    assert found.verdict == "perhaps shifted"
    right = -np.array(planted(demo[1].adata)["shift_um"])
    assert found.planted_um == tuple(right)
    assert np.hypot(*(found.best_um - right)) <= 25  # a quarter of the pitch
    assert found.spearman.max() > found.spearman[0] + 0.3
    assert "moved by -" in found.sentence


def test_spots_moved_back_are_registered(demo, stained):
    from dataclasses import replace

    adata = demo[1].adata.copy()
    adata.obsm["spatial"] = adata.obsm["spatial"] - planted(adata)["shift_um"]  # 1 µm a pixel
    assert registration(replace(demo[1], adata=adata), stained[1]).verdict == "registered"


@pytest.mark.parametrize("smooth", [0.0, 150.0])
def test_counts_that_have_nothing_to_do_with_the_image_give_cannot_tell(demo, stained, smooth):
    from scipy.spatial.distance import cdist

    section, verdicts = demo[0], []
    for seed in range(10):
        noise = np.random.default_rng(seed).standard_normal(section.n_spots)
        if smooth:
            noise = np.exp(-((cdist(section.coords, section.coords) / smooth) ** 2)) @ noise
        other = with_counts(section, np.exp(8 + 0.4 * noise / noise.std()))
        verdicts.append(registration(other, stained[0]).verdict)
    assert verdicts.count("cannot tell") >= 9


def test_patches_cut_around_spots_cannot_be_shifted(demo, tmp_path):
    from dataclasses import replace

    section, side = demo[0], 90
    pixels = Image.fromarray(section.image.pixels)
    corners = np.round(section.coords - side / 2).astype(int)
    patches = [np.asarray(pixels.crop((x, y, x + side, y + side))) for x, y in corners.tolist()]
    mosaic = PatchMosaic(tmp_path, corners, side, lambda index: patches[index])
    only = replace(section, image=mosaic)
    map_of_it = haematoxylin(only)
    assert 0.3 < map_of_it.known.mean() < 0.6
    found = registration(only, map_of_it)
    assert found.verdict == "cannot tell"
    assert "shifting is impossible" in found.sentence
    assert found.reach_um < 25


def test_what_cannot_be_judged_says_why(demo, stained):
    from dataclasses import replace

    section = demo[0]
    few = replace(section, adata=section.adata[: LEAST_SPOTS - 1].copy())
    assert "spots, 30 needed" in registration(few, stained[0]).sentence
    flat = registration(with_counts(section, np.full(section.n_spots, 500)), stained[0])
    assert "every spot has the same depth" in flat.sentence
    with pytest.raises(InputError, match="has no image"):
        haematoxylin(replace(section, image=None))
    table = registration_table([flat, registration(demo[1], stained[1])])
    assert list(table["verdict"]) == ["cannot tell", "perhaps shifted"]
    assert "right shift (planted)" in table
    assert len(registration_figure([flat, registration(demo[1], stained[1])]).axes) == 3


def test_shifts_tried_cover_the_circle_and_begin_with_none(demo, stained):
    found = registration(demo[0], stained[0])
    assert tuple(found.shifts_um[0]) == (0.0, 0.0)
    assert np.hypot(*found.shifts_um.T).max() == pytest.approx(SEARCH * 100)
    assert found.spots == demo[0].n_spots
    assert (found.spearman <= 1).all()


def test_haematoxylin_is_where_the_nuclei_are(demo, stained):
    """Nuclear density is known for the demo; eosin-rich stroma must not count as dense."""
    from scipy.stats import spearmanr

    amount, known = at(over_discs(stained[0], 80.0), demo[0].coords)
    assert known.all()
    assert spearmanr(amount, demo[0].adata.obs["nuclear_density"]).statistic > 0.7
    outside, missing = at(stained[0], np.array([[-50.0, 10.0]]))
    assert not missing.any()
    assert outside[0] == 0


def test_real_sections(real_data):
    """An ST array beside its whole image is registered; patches that were filtered and recoloured cannot tell."""
    found = {}
    for name in ("HER2ST_C4", "HBCIS_BC23209_C1"):
        section = read_path(real_data / f"{name}.h5ad")
        found[name] = registration(section, haematoxylin(section))
    assert found["HER2ST_C4"].verdict == "registered"
    assert found["HBCIS_BC23209_C1"].verdict == "cannot tell"
    assert "pixels" in found["HBCIS_BC23209_C1"].sentence
