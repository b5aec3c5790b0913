"""What may be uploaded, told by its first bytes alone: what a client calls a file says nothing here.

Only kinds that are one file are taken. What refers to other files by name (MIRAX, VMS, OME-TIFF of several files) finds
none: an upload lies alone in a folder of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.sections.image import MAX_PATCH_PIXELS, open_image
from histocrypt.sections.tiff import MAGIC

HEAD = 132
"""Bytes by which a kind is told."""
MOST_TILES = 200_000
LONGEST_HEADER = 1 << 20
"""Bytes of the JSON at the start of tiles, which holds the names of a few arrays."""
TILES = "tiles"
"""The array of a safetensors file that holds tiles."""
SLIDES = "JPEG, PNG, WebP, JPEG 2000, TIFF (SVS, NDPI, SCN, OME-TIFF and the like), CZI or DICOM"


def slide_suffix(head: bytes) -> str | None:
    """Return the ending of the kind of image that a file is by its first `HEAD` bytes; None: none that is taken."""
    starts = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"ZISRAWFILE", ".czi"))
    starts += ((b"\0\0\0\x0cjP  \r\n\x87\n", ".jp2"), (b"\xff\x4f\xff\x51", ".j2k"))
    starts += tuple((magic, ".tif") for magic in MAGIC)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    if head[128:132] == b"DICM":
        return ".dcm"
    return next((suffix for magic, suffix in starts if head.startswith(magic)), None)


def tiles_suffix(head: bytes) -> str | None:
    """Return ``.safetensors`` where a file begins as these do; else None."""
    size = int.from_bytes(head[:8], "little")
    return ".safetensors" if 2 <= size <= LONGEST_HEADER and head[8:9] == b"{" else None


def check_slide(path: Path, *, megapixels: float) -> None:
    """Refuse a slide that has more pixels than a server takes, before one of them is decoded.

    Raises
    ------
    InputError
        If it cannot be opened, or is larger.
    """
    image = open_image(path)
    found = image.width * image.height / 1e6
    if found > megapixels:
        shown, expected = f"{image.width} x {image.height} px", f"at most {megapixels:,.0f} million pixels"
        raise InputError(
            "has more pixels than this server takes", file=path, field="pixels", value=shown, expected=expected
        )


def tiles_to_patches(path: Path, folder: Path, name: str, *, megapixels: float) -> list[str]:
    """Write tiles as a folder of patches that `pipeline.predict.predict_section` takes, one at a time.

    Parameters
    ----------
    path
        A safetensors file with ``tiles``, (n, side, side, 3) uint8, RGB.
    folder
        To be made.
    name
        Of all of them.
    megapixels
        Millions of pixels, of all tiles together, that are taken.

    Returns
    -------
    list of str
        (n,) what each tile is called as a spot, in the order of the array. They lie on a square: where on a slide is
        not known.

    Raises
    ------
    InputError
        If the file is damaged, or holds other arrays or more pixels.
    """
    from PIL import Image
    from safetensors import SafetensorError, safe_open

    here = {"file": path, "field": TILES}
    expected = f"one array {TILES!r}, (n, side, side, 3) uint8, RGB"
    with (
        reading("tiles cannot be read as safetensors", SafetensorError, OSError, ValueError, **here),
        safe_open(path, framework="numpy") as file,
    ):
        names = sorted(file.keys())
        if names != [TILES]:
            raise InputError(
                "holds other arrays", file=path, field=TILES, value=", ".join(names)[:100], expected=expected
            )
        tiles = file.get_slice(TILES)
        shape, kind = list(tiles.get_shape()), tiles.get_dtype()
        square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3 and min(shape) > 0
        if kind != "U8" or not square:
            raise InputError("holds no tiles", **here, value=f"{shape} {kind}", expected=expected)
        count, side = shape[0], shape[1]
        most = min(MOST_TILES, int(megapixels * 1e6 / side**2))
        if side**2 > MAX_PATCH_PIXELS or count > most:
            shown = f"{count} tiles of {side} x {side} px"
            raise InputError(
                "are more than this server takes", file=path, field=TILES, value=shown, expected=f"at most {most}"
            )
        folder.mkdir()
        columns, spots = int(np.ceil(np.sqrt(count))), []
        for number in range(count):
            spots.append(f"{number % columns}_{number // columns}")
            Image.fromarray(tiles[number : number + 1][0]).save(folder / f"{name}_{spots[-1]}.png", compress_level=1)
    return spots


def words_of_upload(head: bytes) -> str:
    """Return what a refused upload looks like, as far as its first bytes tell; empty where they don't."""
    if head.startswith(b"--"):
        return "it is a form; send the file itself as the body (curl --data-binary @FILE)"
    if head.lstrip()[:1] in (b"{", b"<"):
        return "it is text"
    return ""
