"""The demo tissue: the same for a seed, with everything that it claims to hold."""

import hashlib
import json

import anndata
import numpy as np
import pytest
from PIL import Image

from histocrypt.demo.write import planted, write_demo
from histocrypt.errors import InputError

SECTIONS, GENES = 5, 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    paths = write_demo(folder, n_sections=SECTIONS, spots_per_side=9, n_genes=GENES, seed=3)
    assert paths == [folder / f"S_{k}.h5ad" for k in range(1, SECTIONS + 1)]
    return folder


@pytest.fixture(scope="module")
def sections(folder):
    return [anndata.read_h5ad(folder / f"S_{k}.h5ad") for k in range(1, SECTIONS + 1)]


def sound(adata):
    """Return the spots without a planted defect."""
    known = planted(adata)
    return adata[~adata.obs_names.isin(known["off_tissue"] + known["nan"] + known["low_depth"])].copy()


def cp10k(adata):
    counts = adata.X.toarray()
    return np.log1p(1e4 * counts / counts.sum(1, keepdims=True))


def true_positions(adata):
    return adata.obsm["spatial"] - planted(adata)["shift_um"]  # 1 µm is 1 px


def picture(folder, adata, suffix=""):
    return np.asarray(Image.open(folder / f"{adata.uns['section']}{suffix}.png"))


def correlation(a, b):
    """Pearson per column; 0 where a column does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(scale > 1e-6, (a * b).sum(0) / np.maximum(scale, 1e-9), 0)


def disc(image, where, radius):
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = np.hypot(x, y) <= radius
    column, row = np.rint(where).astype(int).T
    return image[row[:, None] + y[inside], column[:, None] + x[inside]]


def test_same_seed_same_bytes(tmp_path):
    def content(name, seed, n=1):
        out = []
        for path in write_demo(tmp_path / name, n_sections=n, spots_per_side=6, n_genes=40, seed=seed)[:1]:
            adata = anndata.read_h5ad(path)
            pixels = Image.open(path.with_suffix(".png")).tobytes()
            out += [
                pixels,
                adata.X.toarray().tobytes(),
                adata.layers["image_signal"].tobytes(),
                adata.obsm["spatial"].tobytes(),
            ]
        return [hashlib.sha256(part).hexdigest() for part in out]

    first = content("a", 0)
    assert content("two", 0, n=2) == first  # nor does a section depend on how many follow it
    assert not set(content("c", 1)[:2]) & set(first)


def test_layout(folder, sections):
    for k, adata in enumerate(sections, start=1):
        assert adata.n_vars == GENES
        assert 40 < adata.n_obs < 81
        assert list(adata.obs["patient"].unique()) == [f"P_{k}"]
        assert adata.obs_names[0] == "{array_col}x{array_row}".format(**adata.obs.iloc[0])
        assert adata.obs_names.is_unique
        assert adata.var.index.name == "gene_id"
        assert adata.var_names[0] == "DEMO00001"
        assert adata.var["symbol"].is_unique
        spatial = adata.uns["spatial"][f"S_{k}"]
        image = Image.open(folder / spatial["metadata"]["source_image_path"])
        assert image.size == (spatial["metadata"]["fullres_width"], spatial["metadata"]["fullres_height"])
        assert max(spatial["images"]["hires"].shape) <= 512
        step = np.diff(np.unique(adata.obsm["spatial"][:, 0]))
        assert step.min() * spatial["metadata"]["pixel_size_um"] == spatial["metadata"]["inter_spot_um"]
        assert ((adata.obsm["spatial"] > 0) & (adata.obsm["spatial"] < image.size)).all()


def test_every_region_is_there(sections):
    for adata in sections:
        assert list(adata.uns["demo"]["regions"]) == ["tumour", "immune", "stroma", "normal", "fat", "background"]
        share = adata.obsm["region_share"]
        np.testing.assert_allclose(share.sum(1), 1, atol=1e-5)
        assert (share.max(0)[:5] > 0.4).all()
        assert 0.1 < adata.obs["tumour"].mean() < 0.7


def test_mask_is_where_the_tumour_spots_truly_lie(folder, sections):
    for adata in sections:
        mask = picture(folder, adata, "_mask")
        assert set(np.unique(mask)) == {0, 255}
        share = (disc(mask, true_positions(adata), 27.5) == 255).mean(1)
        np.testing.assert_allclose(share, adata.obs["tumour_share"], atol=1e-6)
        np.testing.assert_array_equal(share >= 0.5, adata.obs["tumour"])


def test_planted_spots_are_where_the_file_says(folder, sections):
    with_nan = []
    for adata in sections:
        known = json.loads(json.dumps(planted(adata)))
        counts = adata.X.toarray()
        assert counts.dtype == np.float32
        finite = np.isfinite(counts)
        assert set(adata.obs_names[~finite.all(1)]) == set(known["nan"])
        assert (counts[finite] >= 0).all()
        assert (counts[finite] == np.rint(counts[finite])).all()

        totals = np.nansum(counts, axis=1)
        assert set(adata.obs_names[totals < 100]) == set(known["low_depth"])
        assert len(known["low_depth"]) == 3

        pale = disc(picture(folder, adata).min(-1), true_positions(adata), 27.5).mean(1) > 235
        assert len(known["off_tissue"]) == 3
        assert pale[adata.obs_names.isin(known["off_tissue"])].all()
        assert (adata[known["off_tissue"]].obsm["region_share"][:, 5] == 1).all()
        assert (sound(adata).obsm["region_share"][:, 5] < 0.5).all()
        with_nan.append(bool(known["nan"]))
    assert with_nan == [True, False, False, True, False]


def test_two_sections_are_shifted_and_partly_off_tissue(folder, sections):
    shifts = [planted(adata)["shift_um"] for adata in sections]
    assert shifts == [[0, 0], [70, -50], [0, 0], [0, 0], [-60, 80]]
    for adata, shift in zip(sections, shifts, strict=True):
        spots, glass = sound(adata), picture(folder, adata).min(-1) > 225
        given, true = (disc(glass, at, 27.5).mean() for at in (spots.obsm["spatial"], true_positions(spots)))
        if any(shift):
            assert given > true + 0.04


def test_image_signal_is_the_right_answer(sections):
    share = sections[0].var["image_share"].to_numpy()
    programme = sections[0].var["programme"].to_numpy().astype(str)
    assert {"TUM", "IMM", "STR", "NRM", "ADI", "NUC", "GRD", "HKG", "OFF"} == set(programme)
    assert ((share >= 0) & (share <= 1)).all()
    assert (share[programme == "OFF"] == 0).all()
    assert share[programme == "TUM"].mean() > 0.7
    scores = np.mean([correlation(sound(a).layers["image_signal"], cp10k(sound(a))) for a in sections], axis=0)
    seen = ~np.isin(programme, ["HKG", "OFF"])
    assert 0.5 < scores[seen].mean() < 0.8
    assert scores[share > 0.85].mean() > scores[share < 0.4].mean() + 0.3
    # Nothing that the image shows follows the invisible genes, not even through the normalisation of rates.
    shown = [np.column_stack([sound(a).obsm["region_share"], sound(a).obs["nuclear_density"]]) for a in sections]
    hidden = [cp10k(sound(a))[:, programme == "OFF"] for a in sections]
    mean = np.mean([correlation(s[:, [c]], h) for s, h in zip(shown, hidden, strict=True) for c in (0, 1, 2, 6)])
    assert abs(mean) < 0.06


def test_scale_of_image_signal(sections):
    for adata in sections:
        spots = sound(adata)
        assert abs(spots.layers["image_signal"].mean() - cp10k(spots).mean()) < 0.25


def test_depth_follows_nuclear_density_and_so_do_raw_counts(sections):
    medians = []
    for adata in sections:
        spots = sound(adata)
        counts, density = spots.X.toarray(), spots.obs["nuclear_density"].to_numpy()[:, None]
        assert correlation(density, counts.sum(1, keepdims=True))[0] > 0.4
        house = (spots.var["programme"] == "HKG").to_numpy()
        raw, normalised = (correlation(density, m[:, house]).mean() for m in (np.log1p(counts), cp10k(spots)))
        assert raw > normalised + 0.3
        medians.append(np.median(counts.sum(1)))
    assert max(medians) > 1.2 * min(medians)


def test_patients_are_stained_differently_and_centres_strongly(folder, sections):
    stains = np.array([a.uns["demo"]["stain"] * a.uns["demo"]["stain_intensity"][:, None] for a in sections])
    colours = []
    for adata in sections:
        image = picture(folder, adata)
        colours.append(image[image.min(-1) < 215].mean(0))
    colours = np.array(colours)
    centre = np.array([a.uns["demo"]["centre"] for a in sections])
    assert list(centre) == ["north", "south", "north", "south", "north"]
    assert [a.uns["laboratory"] for a in sections] == list(centre)
    within = [np.abs(stains[i] - stains[j]).max() for i in range(5) for j in range(i)]
    assert min(within) > 0.01
    between = np.abs(colours[centre == "north"].mean(0) - colours[centre == "south"].mean(0)).max()
    assert between > 10


@pytest.mark.parametrize(
    ("setting", "field"), [({"n_sections": 0}, "sections"), ({"spots_per_side": 3}, "spots_per_side")]
)
def test_too_small_is_refused(tmp_path, setting, field):
    with pytest.raises(InputError) as refused:
        write_demo(tmp_path, **setting)
    assert refused.value.field == f"demo.{field}"
