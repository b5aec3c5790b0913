import h5py
import numpy as np
import pytest
import tifffile

from histocrypt.errors import InputError
from histocrypt.sections.image import SlideImage, open_image
from histocrypt.tissue.tiles import iter_tiles, read_tiles, write_tiles


@pytest.fixture
def ramp(array_image):
    """A pixel says where it is: red = x / 4, green = y / 4."""
    y, x = np.mgrid[:800, :1000]
    return array_image(np.stack([x // 4, y // 4, np.full_like(x, 77)], axis=-1).astype(np.uint8))


def test_untouched_where_the_scale_is_the_same(ramp):
    (tile,) = iter_tiles(ramp, [[500, 400]], um_per_px=0.5, tile_um=48, tile_px=96)
    np.testing.assert_array_equal(tile, ramp.pixels[352:448, 452:548])


@pytest.mark.parametrize(
    ("um_per_px", "tile_um", "tile_px"), [(0.5, 100, 60), (0.69, 150, 222), (0.25, 100, 48), (1.0, 60, 120)]
)
def test_the_spot_is_in_the_middle(ramp, um_per_px, tile_um, tile_px):
    centres = np.array([[500.0, 400.0], [612.3, 401.7]])
    for tile, centre in zip(
        iter_tiles(ramp, centres, um_per_px=um_per_px, tile_um=tile_um, tile_px=tile_px), centres, strict=True
    ):
        assert tile.shape == (tile_px, tile_px, 3)
        assert tile.dtype == np.uint8
        middle = tile[..., :2].reshape(-1, 2).mean(axis=0) * 4 + 2  # of the ramp: the place of the window's centre
        np.testing.assert_allclose(middle, centre, atol=1.5)
        width = (tile[:, -1, 0].mean() - tile[:, 0, 0].mean()) * 4
        assert width == pytest.approx(tile_um / um_per_px * (1 - 1 / tile_px), rel=0.04)


def test_fine_stripes_become_grey(array_image):
    """Antialiasing: a reduction by four of one-pixel stripes is an even grey, not a moiré."""
    stripes = np.zeros((600, 600, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    (tile,) = iter_tiles(array_image(stripes), [[300, 300]], um_per_px=0.25, tile_um=100, tile_px=99)
    assert tile.std() < 4
    assert tile.mean() == pytest.approx(127.5, abs=2)


def test_outside_is_white(ramp):
    corner, far = iter_tiles(ramp, [[0, 0], [-5000, 90_000]], um_per_px=1, tile_um=100, tile_px=60)
    assert (corner[:28, :28] == 255).all()
    assert corner[40:, 40:, 2].max() < 90
    assert (far == 255).all()


def test_written_and_read_by_name(ramp, tmp_path):
    path = tmp_path / "s.h5"
    names = ["10x12", "3x4", "ärm"]
    coords = np.array([[500.0, 400.0], [300.0, 200.0], [10.0, 10.0]])
    attrs = {"section": "S", "patient": "P"}
    write_tiles(path, ramp, names, coords, um_per_px=0.7, tile_um=70, tile_px=60, attrs=attrs)
    with h5py.File(path) as file:
        assert file["img"].shape == (3, 60, 60, 3)
        assert file["img"].dtype == np.uint8
        assert file["img"].chunks == (1, 60, 60, 3)
        assert file["barcode"].shape == (3, 1)
        assert file["barcode"].dtype.kind == "S"
        np.testing.assert_array_equal(file["coords"], [[450, 350], [250, 150], [-40, -40]])
        assert dict(file.attrs) == {**attrs, "um_per_px": 0.7, "tile_um": 70, "tile_px": 60}
    tiles, found = read_tiles(path)
    assert found.tolist() == names
    some, found = read_tiles(path, ["ärm", "10x12", "ärm"])
    assert found.tolist() == ["ärm", "10x12", "ärm"]
    np.testing.assert_array_equal(some, tiles[[2, 0, 2]])
    with pytest.raises(InputError, match=r"s\.h5: barcode: 2 of 3 spots have no tile \(found '9x9'\)"):
        read_tiles(path, ["9x9", "3x4", "nobody"])


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.h5"):
        read_tiles(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not hdf5")
    with pytest.raises(InputError, match=r"text\.h5"):
        read_tiles(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["X"] = 1
    with pytest.raises(InputError, match="not a tile file"):
        read_tiles(tmp_path / "other.h5")


def test_an_interrupted_write_leaves_nothing(ramp, tmp_path, monkeypatch):
    reads = ramp.read_region

    def fails_later(x, y, width, height):
        if y > 300:
            raise KeyboardInterrupt
        return reads(x, y, width, height)

    monkeypatch.setattr(ramp, "read_region", fails_later)
    with pytest.raises(KeyboardInterrupt):
        write_tiles(tmp_path / "s.h5", ramp, ["a", "b"], [[200, 200], [500, 500]], um_per_px=1, tile_um=60, tile_px=60)
    assert list(tmp_path.iterdir()) == []


def test_a_slide_is_never_read_whole(tmp_path, monkeypatch):
    """8000 x 8000 px in a tiled pyramid: what is asked of openslide is the windows alone."""
    side, block = 8000, 256
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, size=(4, block, block, 3), dtype=np.uint8)

    def stored(size):
        per_side = -(-size // block)
        for i in range(per_side * per_side):
            yield blocks[(i // per_side * 7 + i % per_side) % 4]

    path = tmp_path / "slide.tif"
    options = {"tile": (block, block), "photometric": "rgb", "dtype": np.uint8, "compression": None}
    with tifffile.TiffWriter(path) as file:
        file.write(stored(side), shape=(side, side, 3), **options)
        file.write(stored(side // 8), shape=(side // 8, side // 8, 3), subfiletype=1, **options)
    slide = open_image(path)
    assert isinstance(slide, SlideImage)
    asked = []
    reads = slide._slide.read_region

    def counted(location, level, size):
        asked.append((level, size[0] * size[1]))
        return reads(location, level, size)

    monkeypatch.setattr(slide._slide, "read_region", counted)
    centres = rng.uniform(0, side, size=(25, 2))
    write_tiles(tmp_path / "t.h5", slide, [f"s{i}" for i in range(25)], centres, um_per_px=0.5, tile_um=100, tile_px=60)
    largest = max(area for _, area in asked)
    assert largest <= (200 + 2 * 10) ** 2
    assert sum(area for _, area in asked) < 0.03 * side * side
    x, y = 5 * block + 60, 3 * block + 60
    (tile,) = iter_tiles(slide, [[x, y]], um_per_px=1.0, tile_um=60, tile_px=60)
    np.testing.assert_array_equal(tile, blocks[(3 * 7 + 5) % 4][30:90, 30:90])
