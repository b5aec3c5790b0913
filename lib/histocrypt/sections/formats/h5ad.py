"""AnnData (`.h5ad`, `.h5ad.gz`, `.zarr`) with a whole image, a patches file, or a folder of tiles beside it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, unreadable
from histocrypt.sections.identity import one_value
from histocrypt.sections.image import (
    IMAGE_SUFFIXES,
    ImageSource,
    PatchMosaic,
    image_beside,
    is_image,
    open_image,
    tiles_in,
)
from histocrypt.sections.section import Format, Loaded, SectionFiles, own_files
from histocrypt.sections.stores import anndata_in, opened_store, read_store, stem_of

if TYPE_CHECKING:
    from anndata import AnnData

BESIDE = (*IMAGE_SUFFIXES, "_patches.h5")
"""What may lie beside a section file under its stem, in the order of preference."""


def h5_errors() -> tuple[type[Exception], ...]:
    """Return what h5py and anndata raise on damaged files, and on those of a format they do not know."""
    from anndata._io.specs.registry import IORegistryError

    return (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError, IORegistryError)


def _sections_in(path: Path) -> list[SectionFiles]:
    return [_peeked(file) for file in anndata_in(path)]


def _inputs(files: SectionFiles) -> list[Path]:
    """Return the files of a section; of a Zarr folder, every file in it."""
    if files.path.suffix == ".h5ad":
        return own_files(files)
    within = [path for path in files.path.rglob("*") if path.is_file()] if files.path.is_dir() else [files.path]
    return sorted(
        {*within, *([files.image] if files.image else image_beside(files.path.parent, [stem_of(files.path)]))}
    )


def _peeked(path: Path) -> SectionFiles:
    """Return a section with the id and patient that its file names, without reading its counts."""
    from anndata.io import read_elem

    known = {}
    try:
        with opened_store(path) as file:
            for name in ("section", "patient"):
                values = {str(value) for value in read_elem(file["obs"][name])} if name in file["obs"] else set()
                if not values and "uns" in file and name in file["uns"]:
                    values = {str(read_elem(file["uns"][name]))}
                if len(values - {"nan", "None", ""}) == 1:
                    known[name] = next(iter(values - {"nan", "None", ""}))
    except h5_errors():  # said properly when the section is read
        known = {}
    return SectionFiles(known.get("section", stem_of(path)), "h5ad", path, patient=known.get("patient"))


def load_h5ad(files: SectionFiles) -> Loaded:
    """Read a section file and open its image."""
    adata = read_anndata(files.path)
    place_coordinates(adata)
    metadata, field = library_metadata(adata, files.id)
    path, note = _image_path(files, metadata, f"{field}['source_image_path']")
    image = open_for(adata, path, metadata) if path is not None else None
    um_per_px, um_field = None, ""
    stated = [(metadata, name, f"{field}[{name!r}]") for name in ("pixel_size_um", "microns_per_pixel")]
    own = adata.uns.get("preprocessing")
    if isinstance(own, Mapping):
        stated.append((own, "um_per_px", "uns['preprocessing']['um_per_px']"))
    for content, name, where in stated:
        if um_per_px is None and _is_number(content.get(name)):
            um_per_px, um_field = float(content[name]), where
    if image is not None and um_per_px is None and image.um_per_px:
        um_per_px, um_field = image.um_per_px, image.um_field
    pitch = metadata.get("inter_spot_um")
    return Loaded(
        adata,
        image,
        one_value(adata, "patient", files.path),
        [files.path, *([path] if path is not None else [])],
        um_per_px=um_per_px,
        um_field=um_field,
        pitch_um=float(pitch) if _is_number(pitch) else None,
        technology=str(adata.uns.get("technology") or ""),
        image_note=note,
        origins={
            "counts": "X",
            "genes": "var_names",
            "spots": "obsm['spatial']",
            "image": str(path) if path is not None else "",
        },
    )


def read_anndata(path: Path) -> AnnData:
    """Read an ``.h5ad`` or a store of `stores`; a missing, truncated or foreign file is an `InputError`."""
    what = "section cannot be read as .zarr" if path.is_dir() else "section cannot be read as .h5ad"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. names that are not unique: said properly by the validation
            return read_store(path, what=what)
    except h5_errors() as error:
        if isinstance(error, InputError):
            raise
        raise unreadable(what, error, file=path) from error


def library_metadata(adata: AnnData, section: str) -> tuple[dict[str, Any], str]:
    """Return ``uns["spatial"][library]["metadata"]`` with the scale factors, and how errors call the place."""
    libraries = adata.uns.get("spatial")
    if not isinstance(libraries, Mapping) or not libraries:
        return {}, "uns['spatial']"
    library = section if section in libraries else next(iter(libraries))
    content = libraries[library] if isinstance(libraries[library], Mapping) else {}
    metadata: dict[str, Any] = {}
    for part in ("scalefactors", "metadata"):
        if isinstance(content.get(part), Mapping):
            metadata.update(content[part])
    return metadata, f"uns['spatial'][{library!r}]['metadata']"


def place_coordinates(adata: AnnData) -> None:
    """Take the spot centres from ``obs`` where ``obsm["spatial"]`` is absent, as in Visium's and HEST's tables."""
    columns = ["pxl_col_in_fullres", "pxl_row_in_fullres"]  # x is the column
    if "spatial" not in adata.obsm and set(columns) <= set(adata.obs):
        adata.obsm["spatial"] = adata.obs[columns].to_numpy(dtype=float)


def open_for(adata: AnnData, path: Path, metadata: Mapping[str, Any]) -> ImageSource | None:
    """Open the image of a section and check that it is the one that the coordinates refer to."""
    size = None
    if _is_number(metadata.get("fullres_width")) and _is_number(metadata.get("fullres_height")):
        size = (int(metadata["fullres_width"]), int(metadata["fullres_height"]))
    if path.is_dir() and not is_image(path):
        if "spatial" not in adata.obsm:  # said properly by the validation
            return None
        return _tile_folder(adata, path, size)
    if path.suffix.lower() in {".h5", ".hdf5"}:
        return open_patches(adata, path, size)
    image = open_image(path)
    if size is not None and max(abs(image.width / size[0] - 1), abs(image.height / size[1] - 1)) > 0.01:
        raise InputError(
            "image is not the one that the coordinates refer to",
            file=path,
            value=f"{image.width} x {image.height} px",
            expected=f"{size[0]} x {size[1]} px",
            fix="give the full-resolution image",
        )
    return image


def open_patches(adata: AnnData, path: Path, size: tuple[int, int] | None = None) -> PatchMosaic:
    """Open a patches file; how much a patch covers follows from spot centres and top-left corners, joined by barcode.

    HEST patches are resampled, so their own pixels do not tell how much of the slide they cover.
    """
    mosaic = PatchMosaic.from_h5(path, size=size)
    if mosaic.barcodes is None or "spatial" not in adata.obsm:
        return mosaic
    rows = adata.obs_names.get_indexer(mosaic.barcodes)
    if not (rows >= 0).any():
        raise InputError(
            "no patch belongs to a spot of the section",
            file=path,
            field="barcode",
            value=str(mosaic.barcodes[0]),
            expected=f"e.g. {adata.obs_names[0]!r}",
        )
    try:
        centres = np.asarray(adata.obsm["spatial"], dtype=float)[rows[rows >= 0]]
        half = np.nanmedian(centres - mosaic.coords[rows >= 0], axis=0)
    except (TypeError, ValueError):  # said properly by the validation
        return mosaic
    covered = 2 * half.mean()
    if abs(half[0] - half[1]) <= 0.1 * abs(covered) and covered > 0 and abs(covered / mosaic.side - 1) > 0.02:
        return PatchMosaic.from_h5(path, size=size, side=round(covered))
    return mosaic


def confined(folder: Path, name: str, *, file: Path, field: str) -> Path:
    """Return a path that a file names relative to ``folder``; one that leaves the folder is refused."""
    path = Path(os.path.normpath(folder.absolute() / name))
    if not path.is_relative_to(os.path.normpath(folder.absolute())):
        raise InputError(
            "path leads out of the section's folder",
            file=file,
            field=field,
            value=name,
            expected="a path relative to the section file",
            setting="image",
        )
    return folder / name if not Path(name).is_absolute() else path


def _image_path(files: SectionFiles, metadata: Mapping[str, Any], field: str) -> tuple[Path | None, str]:
    """Return the image of a section file, or None and why."""
    if files.image is not None:
        if not files.image.exists():
            raise InputError("image as given is missing", file=files.path, field="image", value=str(files.image))
        return files.image, ""
    folder, stem, named = files.path.parent, stem_of(files.path), metadata.get("source_image_path")
    why = f"{field} is not set, and neither {stem}.tif, .svs, .jpg, .png, ... nor {stem}_patches.h5 is here"
    beside = image_beside(folder, [stem], BESIDE)
    if isinstance(named, str) and named:
        why = f"{field} names {named!r}, which is not in {folder}"
        beside.insert(0, confined(folder, named, file=files.path, field=field))
    path = next((path for path in beside if path.exists()), None)
    return path, "" if path is not None else f"image is missing: {why}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _tile_folder(adata: AnnData, folder: Path, size: tuple[int, int] | None) -> PatchMosaic:
    """Join tiles ``<section>_<x>_<y>`` to spots: x, y are the array index, the barcode ``<x>x<y>``, or pixels."""
    tiles = tiles_in(folder)
    if not tiles:
        raise InputError(
            "folder holds no tile", file=folder, expected="files named <section>_<x>_<y>.tif, .jpg or .png"
        )
    names, centres = adata.obs_names, np.asarray(adata.obsm["spatial"], dtype=float)
    by_name = {tuple(map(int, name.split("x"))): name for name in names if re.fullmatch(r"\d+x\d+", name)}
    by_array = {}
    if {"array_row", "array_col"} <= set(adata.obs):
        index = adata.obs[["array_col", "array_row"]].to_numpy()
        by_array = {(int(x), int(y)): name for name, (x, y) in zip(names, index, strict=True)}
    finite = np.isfinite(centres).all(axis=1)
    by_pixel = {(round(x), round(y)): name for name, (x, y) in zip(names[finite], centres[finite], strict=True)}
    joins = (
        {spots[x, y]: file for file, (_, x, y) in tiles.items() if (x, y) in spots}
        for spots in (by_name, by_array, by_pixel)
    )
    joined = max(joins, key=len)
    if not joined:
        raise InputError(
            "no tile belongs to a spot: neither array index, barcode nor pixel agrees",
            file=folder,
            value=next(iter(tiles)).name,
            expected=f"e.g. a tile for spot {names[0]}",
        )
    return PatchMosaic.from_tiles(folder, joined, dict(zip(names, centres, strict=True)), size=size)


FORMAT = Format(
    layout="*.h5ad (or .h5ad.gz, or a .zarr folder of AnnData)",
    recognises=lambda path: bool(anndata_in(path)),
    sections_in=_sections_in,
    read=load_h5ad,
    inputs=_inputs,
)
