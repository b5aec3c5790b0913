"""Pixels: whole images, pyramids and mosaics give the same window for the same place."""

import io

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from histocrypt.errors import InputError
from histocrypt.sections import image as images
from histocrypt.sections.image import PatchMosaic, SlideImage, WholeImage, open_image


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (18, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((800, 1200), Image.Resampling.BICUBIC))


def write(kind, folder, pixels):
    path = folder / f"slide.{kind}"
    if kind == "pyramid.tif":
        options = {"tile": (256, 256), "photometric": "rgb", "resolution": (20_000, 20_000), "resolutionunit": 3}
        with tifffile.TiffWriter(path) as file:
            file.write(pixels, subifds=0, **options)
            for reduction in (2, 4):
                smaller = np.asarray(Image.fromarray(pixels).reduce(reduction))
                file.write(smaller, subfiletype=1, **options)
    elif kind == "jpg":
        Image.fromarray(pixels).save(path, quality=97, subsampling=0)
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", ["png", "tif", "jpg", "pyramid.tif"])
def test_regions_and_thumbnail(kind, tmp_path, pixels):
    source = open_image(write(kind, tmp_path, pixels))
    assert isinstance(source, SlideImage if kind == "pyramid.tif" else WholeImage)
    assert (source.width, source.height) == (800, 1200)
    slack = 12 if kind == "jpg" else 0
    for x, y, width, height in [(0, 0, 50, 40), (300, 511, 257, 300), (799, 1199, 1, 1)]:
        region = source.read_region(x, y, width, height)
        assert region.shape == (height, width, 3)
        assert region.dtype == np.uint8
        assert np.abs(region.astype(int) - pixels[y : y + height, x : x + width]).max() <= slack
    border = source.read_region(-10, 1190, 30, 30)
    assert (border[:, :10] == 255).all()
    assert (border[10:] == 255).all()
    assert np.abs(border[:10, 10:].astype(int) - pixels[1190:, :20]).max() <= slack
    assert (source.read_region(5000, 5000, 8, 8) == 255).all()
    for side in (300, 97, 10_000):
        small, scale = source.thumbnail(side)
        assert scale == pytest.approx(min(1, side / 1200))
        assert small.shape == (round(1200 * scale), round(800 * scale), 3)
        expected = Image.fromarray(pixels).resize(small.shape[1::-1], Image.Resampling.BOX)
        assert np.abs(small.astype(int) - np.asarray(expected)).mean() < 3


def test_pyramid_resolution_and_streaming(tmp_path, pixels):
    source = open_image(write("pyramid.tif", tmp_path, pixels))
    assert source.um_per_px == pytest.approx(0.5)
    asked = []
    read = source._level_region

    def watched(level, x, y, width, height):
        asked.append((level, width * height))
        return read(level, x, y, width, height)

    source._level_region = watched
    source.thumbnail(300)
    assert {level for level, _ in asked} == {2}  # the level that is just large enough, not the full slide


def test_jpeg_thumbnail_does_not_decode_and_does_not_change(tmp_path, pixels):
    source = WholeImage(write("jpg", tmp_path, pixels))
    before, _ = source.thumbnail(200)
    assert source._decoded is None
    source.read_region(0, 0, 4, 4)
    np.testing.assert_array_equal(source.thumbnail(200)[0], before)


def test_content_hash_follows_pixels_not_names(tmp_path, pixels):
    first = open_image(write("png", tmp_path, pixels)).content_hash()
    Image.fromarray(pixels).save(tmp_path / "other.tif")
    assert open_image(tmp_path / "other.tif").content_hash() == first
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "mirrored.png")
    assert open_image(tmp_path / "mirrored.png").content_hash() != first


def test_too_large_to_decode(tmp_path, pixels, monkeypatch):
    path = write("png", tmp_path, pixels)
    monkeypatch.setattr(images.opened.__wrapped__, "__kwdefaults__", {"name": None, "max_pixels": 1000})
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match=r"slide\.png: image has more than 1,000 pixels; convert it"):
        WholeImage(path)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_larger_than_pils_own_limit_is_fine(tmp_path):
    Image.new("1", (20_000, 10_000), 1).save(tmp_path / "large.png")  # PIL alone would refuse 200 megapixels
    assert open_image(tmp_path / "large.png").width == 20_000


def test_transparency_is_white_and_sixteen_bit_is_refused(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (open_image(tmp_path / "clear.png").read_region(0, 0, 8, 8) == 255).all()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: mode: image is not 8-bit colour"):
        open_image(tmp_path / "deep.png").read_region(0, 0, 1, 1)


def test_truncated_pyramid(tmp_path, pixels):
    path = write("pyramid.tif", tmp_path, pixels)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"slide\.pyramid\.tif"):
        open_image(path).verify()


def patches_file(path, pixels, corners, side, *, jpeg):
    with h5py.File(path, "w") as file:
        file["coords"] = np.array(corners)
        file["barcode"] = np.array([[f"spot{number}".encode()] for number in range(len(corners))])
        cut = [pixels[y : y + side, x : x + side] for x, y in corners]
        if jpeg:
            encoded = file.create_dataset("jpeg", (len(cut),), dtype=h5py.vlen_dtype(np.uint8))
            for number, patch in enumerate(cut):
                stream = io.BytesIO()
                Image.fromarray(patch).save(stream, "JPEG", quality=97, subsampling=0)
                encoded[number] = np.frombuffer(stream.getvalue(), np.uint8)
        else:
            file["img"] = np.stack(cut)
    return path


CORNERS = [(100, 100), (160, 100), (100, 170), (160, 170), (400, 900)]


@pytest.mark.parametrize("jpeg", [True, False])
def test_mosaic(jpeg, tmp_path, pixels):
    source = open_image(patches_file(tmp_path / "p.h5", pixels, CORNERS, 96, jpeg=jpeg))
    assert isinstance(source, PatchMosaic)
    assert (source.width, source.height, source.side) == (496, 996, 96)
    slack = 12 if jpeg else 0
    region = source.read_region(110, 120, 130, 140)  # over four patches
    assert np.abs(region.astype(int) - pixels[120:260, 110:240]).max() <= slack
    np.testing.assert_array_equal(source.read_region(160, 170, 96, 96), source.patch(3))
    assert (source.read_region(300, 300, 50, 50) == 255).all()
    np.testing.assert_array_equal(
        source.covers(np.array([[100, 100], [99, 100], [255.9, 265.9], [256, 266], [450, 950]])),
        [True, False, True, False, True],
    )
    small, scale = source.thumbnail(249)
    assert small.shape == (249, 124, 3)
    x, y = round(410 * scale), round(910 * scale)
    assert np.abs(small[y + 5, x + 5].astype(int) - pixels[910:950, 410:450].mean(axis=(0, 1))).max() < 60
    assert (small[: round(90 * scale)] == 255).all()


def test_mosaic_keeps_few_decoded(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(images, "KEPT_PATCHES", 2)
    source = open_image(patches_file(tmp_path / "p.h5", pixels, CORNERS, 96, jpeg=True))
    for index in range(len(CORNERS)):
        source.patch(index)
    assert source.patch.cache_info().currsize == 2


def test_mosaic_hash_ignores_order(tmp_path, pixels):
    one = open_image(patches_file(tmp_path / "p.h5", pixels, CORNERS, 96, jpeg=False)).content_hash()
    two = open_image(patches_file(tmp_path / "q.h5", pixels, CORNERS[::-1], 96, jpeg=False)).content_hash()
    other = open_image(patches_file(tmp_path / "r.h5", pixels, CORNERS[:4], 96, jpeg=False)).content_hash()
    assert one == two != other


def test_resampled_patches_cover_what_their_attribute_says(tmp_path, pixels):
    path = patches_file(tmp_path / "p.h5", pixels, CORNERS, 96, jpeg=False)
    with h5py.File(path, "a") as file:
        file["coords"].attrs["patch_size_level0"] = 192
    source = open_image(path)
    assert source.side == 192
    assert source.patch(0).shape == (192, 192, 3)


def drop_field(name):
    def spoil(file):
        del file[name]

    return spoil


def too_few_coords(file):
    del file["coords"]
    file["coords"] = np.zeros((3, 2))


def repeat_barcode(file):
    file["barcode"][1] = b"spot0"


def spoil_patch(file):
    file["jpeg"][2] = np.zeros(40, np.uint8)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop_field("coords"), "patches file lacks a field"),
        (drop_field("jpeg"), "patches file lacks a field"),
        (too_few_coords, "coords: has 3 rows for 5 patches"),
        (repeat_barcode, "twice .*spot0"),
        (spoil_patch, "patch spot2: is not an image"),
    ],
)
def test_spoilt_patches(spoil, words, tmp_path, pixels):
    path = patches_file(tmp_path / "p.h5", pixels, CORNERS, 96, jpeg=True)
    with h5py.File(path, "a") as file:
        spoil(file)
    with pytest.raises(InputError, match=words) as caught:
        open_image(path).verify()
    assert str(path) in str(caught.value)


def test_truncated_patches(tmp_path, pixels):
    path = patches_file(tmp_path / "p.h5", pixels, CORNERS, 96, jpeg=True)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="patches file cannot be read: it is truncated"):
        open_image(path)
