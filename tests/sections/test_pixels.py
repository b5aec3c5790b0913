"""Pixels as people store them: each kind gives the true colours and resolution, or one sentence that says why not."""

import os
import struct
import sys
from types import SimpleNamespace

import anndata
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from histocrypt.errors import InputError
from histocrypt.sections import image as images
from histocrypt.sections import tiff as tiffs
from histocrypt.sections.image import SlideImage, WholeImage, image_beside, is_image, open_image
from histocrypt.sections.read import read_path
from histocrypt.sections.tiff import TiffImage

TILED = {"tile": (64, 64), "compression": "zlib"}


def tissue(height=130, width=90):
    """Something pink and violet with a strip of glass, no two quarters alike."""
    dye = np.random.default_rng(0).uniform(0, 1, (12, 9, 1))
    small = (np.array([230, 170, 205]) - dye * np.array([100, 110, 60])).astype(np.uint8)
    rgb = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    rgb[:20] = 240
    return rgb


RGB = tissue()
PLANES = np.moveaxis(RGB, 2, 0)


def scaled(highest, pixels=RGB):
    return ((pixels.astype(np.uint32) * highest + 127) // 255).astype(np.uint16)


def subifds(path, pixels):
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, photometric="rgb", subifds=1, **TILED)
        file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1, **TILED)


def label_first(path, pixels, **options):
    with tifffile.TiffWriter(path) as file:
        file.write(pixels[:40, :40], photometric="rgb", **options)
        file.write(pixels, photometric="rgb", **options)


def tiff_of(path, pixels=RGB, **options):
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", **options})


def ome(path, pixels, axes, **about):
    grey = {"photometric": "minisblack"} if axes[0] == "C" else {"photometric": "rgb"}
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": axes, **about}, **grey)


def in_tiff(path, codec, save):
    """Put a picture of another format into a TIFF of one strip."""
    save(path)
    path.write_bytes(tiffs._little_tiff(path.read_bytes(), 90, 130, {258: (8, 8, 8), 259: codec, 262: 2, 277: 3}))


KINDS = {
    "16 bits": lambda path: tiff_of(path, scaled(65535)),
    "16 bits, tiles": lambda path: tiff_of(path, scaled(65535), **TILED),
    "16 bits, big endian": lambda path: tiff_of(path, scaled(65535), byteorder=">"),
    "12 bits": lambda path: tiff_of(path, scaled(4095)),
    "10 bits, predictor": lambda path: tiff_of(path, scaled(1023), predictor=True, **TILED),
    "16 bits, LZW": lambda path: lzw16(path),
    "planar": lambda path: tiff_of(path, PLANES, planarconfig="separate", **TILED),
    "grey planes": lambda path: tiff_of(path, PLANES, photometric="minisblack", metadata=None),
    "grey planes, tiles": lambda path: tiff_of(path, PLANES, photometric="minisblack", metadata=None, **TILED),
    "one page of grey planes": lambda path: tiff_of(path, PLANES, photometric="minisblack", planarconfig="separate"),
    "white is zero": lambda path: tiff_of(path, 255 - PLANES, photometric="miniswhite", metadata=None),
    "OME planes": lambda path: ome(path, PLANES, "CYX"),
    "OME planes, 14 bits": lambda path: ome(path, scaled(16383, PLANES), "CYX"),
    "OME planes by name": lambda path: ome(path, PLANES[::-1], "CYX", Channel={"Name": ["Blue", "Green", "Red"]}),
    "ImageJ channels": lambda path: tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": "CYX"}),
    "SubIFDs": lambda path: subifds(path, RGB),
    "SubIFDs, 16 bits": lambda path: subifds(path, scaled(65535)),
    "label first": lambda path: label_first(path, RGB),
    "label first, tiles": lambda path: label_first(path, RGB, **TILED),
    "BigTIFF": lambda path: tiff_of(path, bigtiff=True),
    "BigTIFF, tiles": lambda path: tiff_of(path, bigtiff=True, **TILED),
    "Zstandard": lambda path: Image.fromarray(RGB).save(path, "TIFF", compression="zstd"),
    "CMYK": lambda path: Image.fromarray(RGB).convert("CMYK").save(path, "TIFF"),
    "JPEG 2000": lambda path: Image.fromarray(RGB).save(path, "JPEG2000"),
    "JPEG 2000 in TIFF": lambda path: in_tiff(
        path, 34712, lambda to: Image.fromarray(RGB).save(to, "JPEG2000", no_jp2=True)
    ),
    "WebP in TIFF": lambda path: in_tiff(path, 50001, lambda to: Image.fromarray(RGB).save(to, "WEBP", lossless=True)),
}


def lzw16(path):
    """What tifffile alone cannot read: LZW, of 16 bits, which PIL writes as rows of bytes."""
    rows = scaled(65535).view(np.uint8).reshape(130, -1)
    Image.fromarray(rows).save(path, "TIFF", compression="tiff_lzw", tiffinfo={278: 130})
    with tifffile.TiffFile(path) as file:
        ((start, count),) = zip(file.pages.first.dataoffsets, file.pages.first.databytecounts, strict=True)
    data = path.read_bytes()[start : start + count]
    path.write_bytes(tiffs._little_tiff(data, 90, 130, {258: (16, 16, 16), 259: 5, 262: 2, 277: 3}))


@pytest.mark.parametrize("kind", KINDS)
def test_true_colours(kind, tmp_path):
    path = tmp_path / "slide.tif"
    KINDS[kind](path)
    source = open_image(path)
    source.verify()
    np.testing.assert_array_equal(source.read_region(0, 0, 90, 130), RGB)
    window = source.read_region(-5, 60, 80, 90)
    np.testing.assert_array_equal(window[:70, 5:], RGB[60:, :75])
    assert (window[:, :5] == 255).all()
    assert (window[70:] == 255).all()
    assert source.thumbnail(40)[0].shape == (40, 28, 3)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("12 bits", "12 bits"), ("OME planes, 14 bits", "14 bits"), ("grey planes", "this order"), ("BigTIFF", "")],
)
def test_what_is_guessed_is_said(kind, said, tmp_path):
    KINDS[kind](tmp_path / "slide.tif")
    source = open_image(tmp_path / "slide.tif")
    source.verify()
    assert said in " ".join(source.notes)
    assert bool(source.notes) == bool(said)


def test_stated_bits_are_a_fact(tmp_path):
    dark = scaled(4095)
    tifffile.imwrite(
        tmp_path / "s.tif", dark, ome=True, metadata={"axes": "YXS", "SignificantBits": 16}, photometric="rgb"
    )
    source = open_image(tmp_path / "s.tif")
    assert source.bits == 16
    with pytest.raises(InputError) as caught:
        source.verify()  # 12 bits on a scale of 16 are black
    assert caught.value.field == "colours"


def test_palettes_and_transparency(tmp_path):
    picture = Image.fromarray(RGB).quantize(256)
    picture.save(tmp_path / "p.tif")
    np.testing.assert_array_equal(open_image(tmp_path / "p.tif").read_region(0, 0, 90, 130), picture.convert("RGB"))
    clear = np.dstack([scaled(65535), np.full((130, 90), 65535, np.uint16)])
    clear[:50, :, 3] = 0
    tiff_of(tmp_path / "a.tif", clear, extrasamples=["unassalpha"])
    shown = open_image(tmp_path / "a.tif").read_region(0, 0, 90, 130)
    assert (shown[:50] == 255).all()
    np.testing.assert_array_equal(shown[50:], RGB[50:])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True, **TILED}])
def test_large_strips_are_read_in_pieces_to_the_same_pixels(options, tmp_path, monkeypatch):
    tiff_of(tmp_path / "s.tif", tissue(900, 700), rowsperstrip=None if "tile" in options else 16, **options)
    whole = WholeImage(tmp_path / "s.tif")
    monkeypatch.setattr(tiffs, "KEPT_BYTES", 200_000)
    pieces = TiffImage(tmp_path / "s.tif")
    for side in (900, 256, 97, 3):
        np.testing.assert_array_equal(pieces.thumbnail(side)[0], whole.thumbnail(side)[0])
    np.testing.assert_array_equal(pieces.read_region(-3, 500, 224, 224), whole.read_region(-3, 500, 224, 224))
    assert pieces._kept_bytes <= 200_000
    monkeypatch.setattr(images, "DECODED_WHOLE", 1000)
    monkeypatch.setattr(images.SlideImage, "recognises", staticmethod(lambda path: None))
    assert isinstance(open_image(tmp_path / "s.tif"), TiffImage)


def test_libtiffs_jpeg_is_the_same_in_pieces(tmp_path):
    Image.fromarray(tissue(300, 200)).save(tmp_path / "j.tif", compression="jpeg", quality=80)
    whole, pieces = WholeImage(tmp_path / "j.tif"), TiffImage(tmp_path / "j.tif")
    np.testing.assert_array_equal(pieces.read_region(10, 20, 150, 250), whole.read_region(10, 20, 150, 250))


# Which way up.


@pytest.mark.parametrize("kind", ["jpg", "tif", "tiles"])
@pytest.mark.parametrize("turn", range(2, 9))
def test_turned_as_viewers_turn_it(kind, turn, tmp_path):
    path = tmp_path / f"s.{'jpg' if kind == 'jpg' else 'tif'}"
    exif = Image.Exif()
    exif[0x0112] = turn
    if kind == "tiles":
        tiff_of(path, extratags=[(274, 3, 1, turn, True)], **TILED)
    else:
        Image.fromarray(RGB).save(path, exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    with Image.open(path) as stored:
        stored.load()
        shown = np.asarray(ImageOps.exif_transpose(stored))  # PIL has turned a plain TIFF already
    if kind == "tiles":
        Image.fromarray(RGB).save(tmp_path / "plain.tif", exif=exif)
        shown = np.asarray(Image.open(tmp_path / "plain.tif"))
    source = open_image(path)
    assert (source.height, source.width) == shown.shape[:2]
    assert source.orientation == turn
    np.testing.assert_array_equal(source.read_region(0, 0, source.width, source.height), shown)
    np.testing.assert_array_equal(source.read_region(7, 11, 30, 40), shown[11:51, 7:37])
    assert source.thumbnail(40)[0].shape[0] == round(shown.shape[0] * 40 / 130)


def test_a_turn_beside_coordinates_is_asked_about(tiny_section, tmp_path):
    path = tiny_section(tmp_path, "A", "P1")
    beside = next(file for file in tmp_path.iterdir() if file.suffix != ".h5ad")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(beside) as stored:
        stored.convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    with pytest.raises(InputError) as caught:
        read_path(path, image=tmp_path / "turned.jpg")
    assert (caught.value.field, caught.value.value) == ("orientation", 6)


# How large a pixel is.


@pytest.mark.parametrize(
    ("unit", "size"),
    [("µm", 0.5), ("nm", 500), ("mm", 0.0005), ("cm", 0.00005), ("in", 0.5 / 25400), ("pm", 5e5)],
)
def test_ome_states_the_resolution(unit, size, tmp_path):
    about = {f"PhysicalSize{axis}{part}": value for axis in "XY" for part, value in (("", size), ("Unit", unit))}
    ome(tmp_path / "s.ome.tif", RGB, "YXS", **about)
    source = open_image(tmp_path / "s.ome.tif")
    assert source.um_per_px == pytest.approx(0.5)
    assert "OME" in source.um_field


@pytest.mark.parametrize("tiles", [{}, TILED])
def test_tags_and_descriptions_state_the_resolution(tiles, tmp_path):
    stated = {
        0.5: {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"},
        0.25: {"resolution": (101_600, 101_600), "resolutionunit": "INCH"},
        0.499: {"description": "Whatever|AppMag = 20|MPP = 0.4990", "metadata": None},
        None: {"resolution": (300, 300), "resolutionunit": "INCH"},  # a printer's
    }
    for um, options in stated.items():
        tiff_of(tmp_path / "s.tif", **options, **tiles)
        assert open_image(tmp_path / "s.tif").um_per_px == (um if um is None else pytest.approx(um))
    tifffile.imwrite(tmp_path / "j.tif", PLANES, imagej=True, resolution=(2, 2), metadata={"axes": "CYX", "unit": "um"})
    assert open_image(tmp_path / "j.tif").um_per_px == pytest.approx(0.5)


@pytest.mark.parametrize("tiles", [{}, TILED])
def test_pixels_that_are_not_square(tiles, tmp_path):
    tiff_of(tmp_path / "s.tif", resolution=(20_000, 40_000), resolutionunit="CENTIMETER", **tiles)
    with pytest.raises(InputError) as caught:
        open_image(tmp_path / "s.tif")
    assert caught.value.value == "0.5 x 0.25 um"


def test_two_statements_are_both_named(tmp_path):
    tiff_of(
        tmp_path / "s.tif",
        ome=True,
        metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"},
        resolution=(40_000, 40_000),
        resolutionunit="CENTIMETER",
    )
    source = open_image(tmp_path / "s.tif")
    assert source.um_per_px == 0.5
    assert "0.5" in source.notes[0]
    assert "0.25" in source.notes[0]


# What is refused.


def fluorescence():
    dark = np.zeros((130, 90, 3), np.uint8)
    dark[30:50, 30:50, 2], dark[60:80, 10:30, 1] = 200, 180
    return dark


def save(pixels, mode=None, **options):
    def write(path):
        picture = Image.fromarray(pixels)
        (picture.convert(mode) if mode else picture).save(path, options.pop("format", "PNG"), **options)

    return write


def stained():
    pink = np.full((130, 90, 3), 244, np.uint8)
    pink[10:-10, 10:-10], pink[40:60, 40:60] = (226, 160, 196), (96, 62, 140)
    return pink


GREY = np.repeat(RGB[..., :1], 3, axis=2)
REFUSED = {
    "grey": ("channels", lambda path: tiff_of(path, RGB[..., 0], photometric="minisblack")),
    "grey, 16 bits": ("channels", lambda path: tiff_of(path, scaled(65535)[..., 0], photometric="minisblack")),
    "grey, white is zero": ("channels", lambda path: tiff_of(path, RGB[..., 0], photometric="miniswhite")),
    "grey PNG": ("colours", save(RGB, "L")),
    "grey PNG with alpha": ("colours", save(RGB, "LA")),
    "grey as RGB": ("colours", save(GREY)),
    "grey as RGB, tiles": ("colours", lambda path: tiff_of(path, GREY, **TILED)),
    "grey as RGB, JPEG": ("colours", save(GREY, format="JPEG", quality=70)),
    "two channels": ("channels", lambda path: ome(path, PLANES[:2], "CYX")),
    "four channels": ("channels", lambda path: ome(path, np.concatenate([PLANES, PLANES[:1]]), "CYX")),
    "six channels": ("channels", lambda path: ome(path, np.concatenate([PLANES, PLANES]), "CYX")),
    "named stains": ("channels", lambda path: ome(path, PLANES, "CYX", Channel={"Name": ["DAPI", "CD3", "CD8"]})),
    "three stains": ("colours", lambda path: ome(path, np.moveaxis(fluorescence(), 2, 0), "CYX")),
    "fluorescence as RGB": ("colours", save(fluorescence())),
    "focus stack": ("axes", lambda path: ome(path, np.stack([RGB] * 3), "ZYXS")),
    "two pictures": ("axes", lambda path: tiff_of(path, np.stack([RGB, RGB[::-1]]), metadata=None)),
    "floats": ("dtype", lambda path: tiff_of(path, (RGB / 255).astype(np.float32))),
    "signed": ("dtype", lambda path: tiff_of(path, RGB.astype(np.int16))),
    "one colour": ("colours", save(np.full((130, 90, 3), 200, np.uint8))),
    "inverted": ("colours", save(255 - stained())),
    "black": ("colours", save(np.ones((130, 90, 3), np.uint8))),
    "a codec that is missing": ("compression", lambda path: recoded(path, 50002)),
    "a codec that is not known": ("compression", lambda path: recoded(path, 12345)),
    "nothing": (None, lambda path: path.write_bytes(b"")),
    "zeros": (None, lambda path: path.write_bytes(bytes(5000))),
    "a web page": (None, lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>")),
    "an archive": (None, lambda path: path.write_bytes(b"PK\x03\x04abc")),
    "a pointer": (None, lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid")),
    "text": (None, lambda path: path.write_bytes(b"quarterly report")),
}


def recoded(path, codec):
    tiff_of(path, compression="zlib")
    with tifffile.TiffFile(path) as file:
        at = file.pages.first.tags[259].valueoffset
    content = bytearray(path.read_bytes())
    content[at : at + 2] = struct.pack("<H", codec)
    path.write_bytes(content)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_sentence(kind, tmp_path):
    field, write = REFUSED[kind]
    path = tmp_path / "slide.tif"
    write(path)
    with pytest.raises(InputError) as caught:
        open_image(path).verify()
    assert caught.value.file == path
    assert caught.value.field == field
    assert str(caught.value).count("\n") == 0
    assert ("truncated" in str(caught.value)) is False


@pytest.mark.parametrize(
    "kind", ["BigTIFF", "BigTIFF, tiles", "12 bits", "grey planes", "OME planes", "Zstandard", "CMYK"]
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(kind, share, tmp_path):
    path = tmp_path / "slide.tif"
    KINDS[kind](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError) as caught:
        open_image(path).verify()
    assert caught.value.file == path
    assert "truncated" in caught.value.problem


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "s.tif")
    with pytest.raises(InputError) as caught:
        open_image(tmp_path / "s.tif")
    assert caught.value.file == tmp_path / "s.tif"


@pytest.mark.parametrize("name", ["s.jpg", "s.svs", "s.png", "s"])
def test_content_tells_what_it_is(name, tmp_path):
    KINDS["grey planes, tiles"](tmp_path / name)
    np.testing.assert_array_equal(open_image(tmp_path / name).read_region(0, 0, 90, 130), RGB)


def test_more_pixels_than_memory(tmp_path, monkeypatch):
    tiff_of(tmp_path / "s.tif", compression="zlib")
    monkeypatch.setattr(tiffs, "MAX_PIXELS", 1000)
    with pytest.raises(InputError) as caught:
        open_image(tmp_path / "s.tif")
    assert caught.value.value == "90 x 130 px"


def test_a_few_bytes_that_claim_gigapixels(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "s.bmp")
    content = bytearray((tmp_path / "s.bmp").read_bytes())
    content[18:26] = struct.pack("<II", 60_000, 60_000)
    (tmp_path / "s.bmp").write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_image(tmp_path / "s.bmp")
    assert caught.value.value == "60000 x 60000 px"


@pytest.mark.parametrize(("tag", "value"), [(322, 0), (277, 1), (259, 0), (284, 7), (262, 9999)])
def test_spoilt_tags(tag, value, tmp_path):
    path = tmp_path / "s.tif"
    tiff_of(path, scaled(65535), **TILED)
    with tifffile.TiffFile(path) as file:
        at = file.pages.first.tags[tag].valueoffset
    content = bytearray(path.read_bytes())
    content[at : at + 2] = struct.pack("<H", value)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_image(path).verify()
    assert caught.value.file == path


# Names, folders and extras.


@pytest.mark.parametrize(
    "name", ["S.btf", "S.ome.tif", "S.OME.TIFF", "S.Tiff", "S.TIF", "S.tf8", "S.jp2", "S.webp", "S.Svs"]
)
def test_names(name, tmp_path):
    for other in ("S.h5ad", "S.txt", "S2.tif", "S_mask.png", ".S.tif"):
        (tmp_path / other).touch()
    (tmp_path / name).touch()
    assert image_beside(tmp_path, ["S"]) == [tmp_path / name]
    assert is_image(tmp_path / name)
    assert not is_image(tmp_path / "S.txt")


def test_slide_beside_a_section(tiny_section, tmp_path):
    path = tiny_section(tmp_path, "A", "P1")
    (beside,) = (file for file in tmp_path.iterdir() if file.suffix != ".h5ad")
    pixels = np.asarray(Image.open(beside).convert("RGB"))
    adata = anndata.read_h5ad(path)
    for content in adata.uns.get("spatial", {}).values():
        content.get("metadata", {}).pop("source_image_path", None)
    adata.write_h5ad(path)
    beside.unlink()
    tifffile.imwrite(tmp_path / "A.ome.btf", pixels, photometric="rgb", bigtiff=True, **TILED)
    image = read_path(path, require_image=True).image
    assert isinstance(image, SlideImage)
    np.testing.assert_array_equal(image.read_region(0, 0, *pixels.shape[1::-1]), pixels)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("nested", [True, False])
def test_ome_zarr(version, nested, tmp_path):
    import zarr

    root = group = zarr.open_group(tmp_path / "s.ome.zarr", mode="w", zarr_format=version)
    wrapped = (lambda about: about) if version == 2 else (lambda about: {"ome": about})
    if nested:  # as bioformats2raw writes it
        root.attrs.update(wrapped({"bioformats2raw.layout": 3}))
        group = root.create_group("0")
    axes = [{"name": name, "unit": "micrometer"} if name in "yx" else {"name": name} for name in "tczyx"]
    parts = []
    for level in range(2):
        data = PLANES[None, :, None, :: 2**level, :: 2**level]
        group.create_array(str(level), shape=data.shape, chunks=(1, 1, 1, 64, 64), dtype="u1")[:] = data
        size = [1, 1, 1, 0.5 * 2**level, 0.5 * 2**level]
        parts.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": size}]})
    group.attrs.update(wrapped({"multiscales": [{"axes": axes, "datasets": parts}]}))
    assert is_image(tmp_path / "s.ome.zarr")
    source = open_image(tmp_path / "s.ome.zarr")
    source.verify()
    assert source.um_per_px == 0.5
    assert source.levels == [(90, 130), (45, 65)]
    np.testing.assert_array_equal(source.read_region(0, 0, 90, 130), RGB)


def element(group, number, kind, value):
    """One data element of DICOM in explicit VR, little endian; a sequence is a list of items."""
    if kind == "SQ":
        items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in value)
        return struct.pack("<HH2sHI", group, number, b"SQ", 0, len(items)) + items
    if kind in ("US", "UL"):
        value = struct.pack("<H" if kind == "US" else "<I", value)
    elif kind != "OB":
        value = value.encode() + (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    long = kind == "OB"
    return (
        struct.pack("<HH2s" + ("HI" if long else "H"), group, number, kind.encode(), *([0] if long else []), len(value))
        + value
    )


def dicom(path, pixels):
    """Write a whole slide of uncompressed tiles, as DICOM's supplement 145 lays it out."""
    height, width = pixels.shape[:2]
    down, across = -(-height // 64), -(-width // 64)
    canvas = np.full((down * 64, across * 64, 3), 255, np.uint8)
    canvas[:height, :width] = pixels
    frames = canvas.reshape(down, 64, across, 64, 3).swapaxes(1, 2).tobytes()
    slide, uid = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.826.0.1.3680043.8.498.1"
    meta = (
        element(2, 1, "OB", b"\0\1")
        + element(2, 2, "UI", slide)
        + element(2, 3, "UI", f"{uid}.1")
        + element(2, 16, "UI", "1.2.840.10008.1.2.1")
    )
    measures = element(0x18, 0x50, "DS", "0.001") + element(0x28, 0x30, "DS", "0.0005\\0.0005")
    shared = element(0x28, 0x9110, "SQ", [measures])
    content = [
        element(8, 8, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        element(8, 0x16, "UI", slide),
        element(8, 0x18, "UI", f"{uid}.1"),
        element(8, 0x60, "CS", "SM"),
        element(0x20, 0xD, "UI", f"{uid}.2"),
        element(0x20, 0xE, "UI", f"{uid}.3"),
        element(0x20, 0x9311, "CS", "TILED_FULL"),
        element(0x28, 2, "US", 3),
        element(0x28, 4, "CS", "RGB"),
        element(0x28, 6, "US", 0),
        element(0x28, 8, "IS", str(down * across)),
        element(0x28, 0x10, "US", 64),
        element(0x28, 0x11, "US", 64),
        element(0x28, 0x100, "US", 8),
        element(0x28, 0x101, "US", 8),
        element(0x28, 0x102, "US", 7),
        element(0x28, 0x103, "US", 0),
        element(0x48, 6, "UL", width),
        element(0x48, 7, "UL", height),
        element(0x48, 0x302, "UL", 1),
        element(0x48, 0x303, "UL", 1),
        element(0x5200, 0x9229, "SQ", [shared]),
        element(0x7FE0, 0x10, "OB", frames),
    ]
    path.write_bytes(bytes(128) + b"DICM" + element(2, 0, "UL", len(meta)) + meta + b"".join(content))


@pytest.mark.parametrize("given", ["file", "folder"])
def test_dicom(given, tmp_path):
    folder = tmp_path / "slide"
    folder.mkdir()
    dicom(folder / "level_0.dcm", RGB)
    path = folder if given == "folder" else folder / "level_0.dcm"
    assert is_image(path)
    source = open_image(path)
    source.verify()
    assert source.um_per_px == pytest.approx(0.5)
    np.testing.assert_array_equal(source.read_region(0, 0, 90, 130), RGB)


def test_czi_by_its_own_library(tmp_path, monkeypatch):
    class Reader:
        """What pylibCZIrw offers, on one picture whose corner lies at (-50, 30)."""

        pixel_types = {0: "Bgr24"}
        total_bounding_rectangle = (-50, 30, 90, 130)
        metadata = {
            "ImageDocument": {
                "Metadata": {"Scaling": {"Items": {"Distance": [{"@Id": axis, "Value": "5e-07"} for axis in "XY"]}}}
            }
        }

        def __init__(self, path):
            pass

        def read(self, *, roi, zoom, background_pixel):
            x, y, width, height = roi
            part = RGB[y - 30 : y - 30 + height, x + 50 : x + 50 + width, ::-1]
            return part if zoom == 1 else part[:: round(1 / zoom), :: round(1 / zoom)]

    (tmp_path / "s.czi").write_bytes(b"ZISRAWFILE" + bytes(600))
    monkeypatch.setitem(sys.modules, "pylibCZIrw", SimpleNamespace(czi=SimpleNamespace(CziReader=Reader)))
    source = open_image(tmp_path / "s.czi")
    source.verify()
    assert source.um_per_px == pytest.approx(0.5)
    np.testing.assert_array_equal(source.read_region(10, 20, 50, 60), RGB[20:80, 10:60])
    Reader.pixel_types = {0: "Gray16", 1: "Gray16"}
    with pytest.raises(InputError) as caught:
        open_image(tmp_path / "s.czi")
    assert caught.value.field == "channels"


def test_czi_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pylibCZIrw", None)
    (tmp_path / "s.czi").write_bytes(b"ZISRAWFILE" + bytes(600))
    with pytest.raises(InputError) as caught:
        open_image(tmp_path / "s.czi")
    assert caught.value.file == tmp_path / "s.czi"
