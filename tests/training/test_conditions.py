"""Conditions: encoders side by side, eight views of a tile, and embeddings that were prepared elsewhere."""

import anndata
import numpy as np
import pytest
import torch

from histocrypt.data import features as features_module
from histocrypt.data.features import parts_of, section_features, turned
from histocrypt.encoders.encoders import encode
from histocrypt.encoders.precomputed import prepared_features
from histocrypt.errors import InputError
from histocrypt.tissue.stain import DEFAULT_REFERENCE

LITE = "efficientnet_lite0_128"
NAMES = np.array(["S1:a", "S1:b", "S1:c"])


@pytest.fixture
def tiles(tmp_path, monkeypatch):
    monkeypatch.setenv("HISTOCRYPT_CACHE", str(tmp_path / "cache"))
    return np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3)).astype(np.uint8)


def features(tiles, encoder):
    return section_features(tiles, stain=DEFAULT_REFERENCE, method="none", encoder=encoder, names=NAMES)


def test_eight_views_are_the_eight_symmetries_of_a_square():
    tile = np.arange(27).reshape(1, 3, 3, 3)
    views = [turned(tile, view) for view in range(8)]
    assert np.array_equal(views[0], tile)
    assert len({view.tobytes() for view in views}) == 8


def test_views_are_those_of_turned_tiles_and_come_from_the_cache(tiles, monkeypatch):
    found = features(tiles, f"{LITE}@3")
    assert found.shape == (3, 3, 1280)
    for view in range(3):
        expected = encode(np.ascontiguousarray(turned(tiles, view)), LITE, device="cpu", progress=False)
        assert np.allclose(found[:, view], expected, atol=1e-4)
    monkeypatch.setattr(features_module, "normalised_chunks", lambda part, **_: iter([part]))  # what the key looks at
    monkeypatch.setattr("histocrypt.encoders.encoders.encode", None)  # computing anything again would fail
    assert np.array_equal(features(tiles, f"{LITE}@3"), found)
    assert np.array_equal(features(tiles, LITE), found[:, 0])


def test_encoders_stand_side_by_side(tiles):
    both = features(tiles, f"{LITE}+efficientnet_lite0")
    assert np.array_equal(both[:, :1280], features(tiles, LITE))
    assert np.array_equal(both[:, 1280:], features(tiles, "efficientnet_lite0"))


@pytest.mark.parametrize("name", ["a+a", "a+", "a@0", "a@9", "a@x"])
def test_impossible_names_are_refused(name):
    with pytest.raises(InputError):
        parts_of(name)


def prepared(root, *, rows=4, spots=4, slides="S1\nS2\n"):
    folder = root / "processed_data"
    for name in ("1spot_uni_ebd", "1spot_uni_ebd_aug"):
        (folder / name).mkdir(parents=True)
    (root / "st").mkdir()
    plain, views = torch.rand(rows, 5), torch.rand(rows, 7, 5)
    torch.save(plain, folder / "1spot_uni_ebd" / "S1_uni.pt")
    torch.save(views, folder / "1spot_uni_ebd_aug" / "S1_uni_aug.pt")
    (folder / "all_slide_lst.txt").write_text(slides)
    adata = anndata.AnnData(np.zeros((spots, 2)))
    adata.obs_names = ["c", "x", "b", "a"][:spots]
    adata.write_h5ad(root / "st" / "S1.h5ad")
    return f"prepared:{folder}#uni", plain.numpy(), views.numpy()


def test_prepared_embeddings_are_joined_through_the_section_that_they_were_made_from(tmp_path, capsys):
    name, plain, views = prepared(tmp_path)
    assert np.array_equal(prepared_features(name, names=NAMES)[:, 0], plain[[3, 2, 0]])
    assert "names no spots; its 4 rows are taken in the order of st/S1.h5ad" in capsys.readouterr().err
    found = prepared_features(name, names=NAMES, views=8)
    assert np.array_equal(found[:, 1:], views[[3, 2, 0]])
    tiles = np.zeros((3, 9, 9, 3), np.uint8)
    assert np.array_equal(features(tiles, f"{name}@2"), found[:, :2])


def test_prepared_embeddings_that_do_not_fit_are_refused(tmp_path):
    name, *_ = prepared(tmp_path, rows=3)
    with pytest.raises(InputError, match="has 3 rows, and st/S1.h5ad has 4 spots"):
        prepared_features(name, names=NAMES)
    with pytest.raises(InputError, match="all_slide_lst.txt.*does not name section S9"):
        prepared_features(name, names=np.array(["S9:a"]))
    with pytest.raises(InputError, match="missing"):
        prepared_features(name.replace("#uni", "#conch"), names=NAMES)
    (tmp_path / "st" / "S1.h5ad").unlink()
    with pytest.raises(InputError, match="has 3 rows, and the cleaned section has 2 spots"):
        prepared_features(name, names=NAMES[:2])


def test_a_file_that_would_run_code_is_not_read(tmp_path):
    import pickle

    class Harmful:
        def __reduce__(self):
            return (print, ("run",))

    name, *_ = prepared(tmp_path)
    (tmp_path / "processed_data" / "1spot_uni_ebd" / "S1_uni.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(InputError, match="is not a tensor file"):
        prepared_features(name, names=NAMES)
