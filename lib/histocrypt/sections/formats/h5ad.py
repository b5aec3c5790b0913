"""AnnData (`.h5ad`, `.h5ad.gz`, `.zarr`) with a whole image, a patches file, or a folder of tiles beside it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.errors import InputError, reading, unknown_name
from histocrypt.sections.identity import id_text, one_value, safe_id
from histocrypt.sections.image import (
    IMAGE_SUFFIXES,
    ImageSource,
    PatchMosaic,
    ScaledImage,
    image_beside,
    is_image,
    open_image,
    tiles_in,
)
from histocrypt.sections.libraries import libraries_in, own_slide, slides_in
from histocrypt.sections.picture import Carried, alike, at_own_scale, carried_in
from histocrypt.sections.resolution import STATED, TOLERANCE, Fact, bin_size, stated_number
from histocrypt.sections.section import Format, Loaded, SectionFiles, own_files
from histocrypt.sections.stores import anndata_in, h5_errors, is_anndata, read_names, read_store, stem_of

if TYPE_CHECKING:
    from anndata import AnnData

NO_DONOR = ("pooled", "na", "unknown")
"""What CELLxGENE's schema writes into ``donor_id`` where there is no single donor, or none that is known."""
XY_COLUMNS = (("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"))
"""Columns that hold x and y, full-resolution pixels: x is the column."""
PLACES_ALIKE = 1.5
"""Pixels by which places may differ that are rounded or counted from 1."""
BESIDE = (*IMAGE_SUFFIXES, "_patches.h5")
"""What may lie beside a section file under its stem, in the order of preference."""


def _file_and_slide(path: Path) -> tuple[Path, str]:
    """Return the file and the slide that ``FILE.h5ad/slide1`` names; the slide is empty where none is named."""
    return (path.parent, path.name) if not path.exists() and is_anndata(path.parent) else (path, "")


def _recognises(path: Path) -> bool:
    return bool(anndata_in(_file_and_slide(path)[0]))


def _sections_in(path: Path) -> list[SectionFiles]:
    path, slide = _file_and_slide(path)
    found = [files for file in anndata_in(path) for files in _peeked(file)]
    if not slide:
        return found
    named = [files for files in found if slide in (files.part, files.id)]
    if not named:
        raise unknown_name("slide", slide, [files.part or files.id for files in found], file=path)
    return named


def _inputs(files: SectionFiles) -> list[Path]:
    """Return the files of a section; of a Zarr folder, every file in it, and of a slide, its own images."""
    own = image_beside(files.path.parent, _own_stems(files), BESIDE) if not files.image else []
    if files.path.suffix == ".h5ad":
        return sorted({*own_files(files), *own})
    within = [path for path in files.path.rglob("*") if path.is_file()] if files.path.is_dir() else [files.path]
    beside = [files.image] if files.image else image_beside(files.path.parent, [stem_of(files.path)])
    return sorted({*within, *own, *beside})


def _own_stems(files: SectionFiles) -> list[str]:
    """Return under which names the image of one of several slides may lie; none where the file is of one."""
    names = (files.part, files.id, f"{stem_of(files.path)}_{files.part}")
    return [*dict.fromkeys(names)] if files.part and "/" not in files.part else []


def _peeked(path: Path) -> list[SectionFiles]:
    """Return the sections of a file with the ids and patients that it names, without reading its counts."""
    try:
        adata = read_names(path)
        place_coordinates(adata)
        slides = slides_in(adata, path)
        parts = [("", adata)] if slides is None else [(n, adata[slides.labels == n].copy()) for n in slides.names]
        patients = [_patient(part, path)[0] for _, part in parts]
        known = one_value(adata, "section", path) if slides is None else ""
    except (InputError, *h5_errors()):  # said properly when the section is read
        return [SectionFiles(safe_id(stem_of(path)), "h5ad", path)]
    if slides is None:
        return [SectionFiles(safe_id(known or stem_of(path)), "h5ad", path, patient=patients[0])]
    return [
        SectionFiles(slides.section_id(name, stem_of(path)), "h5ad", path, patient=patient, part=name)
        for (name, _), patient in zip(parts, patients, strict=True)
    ]


def _patient(adata: AnnData, path: Path) -> tuple[str | None, str]:
    """Return who the section is of, and where that stands: ``patient``, else CELLxGENE's ``obs["donor_id"]``."""
    for name in ("patient", "donor_id"):
        value = one_value(adata, name, path)
        if value and not (name == "donor_id" and value.lower() in NO_DONOR):
            return value, next((f"{part}[{name!r}]" for part in ("obs", "uns") if name in getattr(adata, part)), "")
    return None, ""


def _unsaid(adata: AnnData, told: str, path: Path) -> list[str]:
    """Return a note where a column that names the patient is empty for some spots."""
    name = next((name for name in ("patient", "donor_id") if told == f"obs[{name!r}]"), None)
    if name is None:
        return []
    column = adata.obs[name]
    empty = int(column.isin([value for value in column.unique() if not id_text(value)]).sum())
    return [f"{path}: {told} is empty for {empty} of {adata.n_obs} spots, taken as the others'."] if empty else []


def _other_places(adata: AnnData, spots: str, path: Path) -> list[str]:
    """Return a note where ``obs`` says other places than ``obsm["spatial"]``, which was taken."""
    import pandas as pd

    pair = next((pair for pair in XY_COLUMNS if set(pair) <= set(adata.obs)), None)
    if pair is None or not spots.startswith("obsm"):
        return []
    other = adata.obs[list(pair)].astype(object).apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    own = pd.DataFrame(adata.obsm["spatial"]).apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    if own.shape != other.shape or not (both := np.isfinite(own + other).all(axis=1)).any():
        return []
    away = np.abs(own - other)[both].max()
    if away <= PLACES_ALIKE:
        return []
    how = "x and y exchanged" if np.abs(own[:, ::-1] - other)[both].max() <= PLACES_ALIKE else f"by up to {away:.0f} px"
    return [f"{path}: obs[{pair[0]!r}], obs[{pair[1]!r}] say other places than {spots}, which was taken: {how}."]


def load_h5ad(files: SectionFiles) -> Loaded:
    """Read a section file and open its image."""
    adata = read_anndata(files.path)
    spots = place_coordinates(adata)
    adata, told_by, alone = own_slide(adata, files.part, files.id, files.path)
    metadata, field = library_metadata(adata, files.id)
    pictures, no_scale, path, note, notes = [], "", None, "", []
    if not files.counts_only:
        pictures, no_scale = carried_in(*library_of(adata, files.id), files.path)
        path, note, notes = _image_path(files, metadata, f"{field}['source_image_path']", alone=alone)
    named = metadata.get("source_image_path")
    promised = isinstance(named, str) and bool(named) and not _is_foreign(named)  # then a reduced one is no stand-in
    image = open_for(adata, path, metadata, pictures) if path is not None else None
    origin = str(path) if path is not None else ""
    if path is None and pictures and not promised:
        image, origin, note = pictures[0].image, pictures[0].where, ""
        if pictures[0].scale < 1:
            image = ScaledImage(image, pictures[0].scale)
    elif image is None and no_scale:
        note = f"{note}; {no_scale}"
    stated = [] if files.counts_only else stated_resolutions(adata, files, metadata)
    patient, told_patient = _patient(adata, files.path)
    notes += [*_unsaid(adata, told_patient, files.path), *_other_places(adata, spots, files.path)]
    return Loaded(
        adata,
        image,
        patient,
        [files.path, *([path] if path is not None else [])],
        um_per_px=stated[0].um_per_px if stated else None,
        um_field=stated[0].where if stated else "",
        stated=stated[1:],
        **({} if files.counts_only else array_facts(adata, files, metadata)),
        image_note=note,
        notes=notes,
        pictures=pictures,
        origins={
            "section": told_by or _named_by(files),
            "patient": told_patient,
            "counts": "X",
            "genes": "var_names",
            "spots": spots,
            "image": origin,
        },
    )


def stated_resolutions(adata: AnnData, files: SectionFiles, metadata: Mapping[str, Any]) -> list[Fact]:
    """Return the resolutions that a section file states, the most trusted first."""
    facts = []
    for name in STATED:
        where = f"{place_of(adata, files.id, name)}[{name!r}]"
        if (value := stated_number(metadata, name, where, files.path)) is not None:
            facts.append(Fact(value, where))
    where = "uns['resolution'] (nm, as of Stereo-seq)"
    if "bin_type" in adata.uns and (value := stated_number(adata.uns, "resolution", where, files.path)) is not None:
        facts.append(Fact(value / 1000, where))
    own, where = adata.uns.get("preprocessing"), "uns['preprocessing']['um_per_px']"
    if isinstance(own, Mapping) and (value := stated_number(own, "um_per_px", where, files.path)) is not None:
        facts.append(Fact(value, where))
    return facts


def array_facts(adata: AnnData, files: SectionFiles, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a section file states of its array, as fields of `Loaded`: pitch, technology and spot diameter."""
    facts: dict[str, Any] = {"technology": str(adata.uns.get("technology") or metadata.get("technology") or "")}
    if not facts["technology"]:
        facts["technology"] = str(metadata.get("chemistry_description") or "")
    for name in ("inter_spot_um", "bin_size_um"):
        where = f"{place_of(adata, files.id, name)}[{name!r}]"
        pitch = stated_number(metadata, name, where, files.path)
        if pitch is not None and "pitch_um" not in facts:
            if not pitch > 0:
                raise InputError("distance of spots is not above 0", file=files.path, field=where, value=pitch)
            facts |= {"pitch_um": pitch, "pitch_why": f"by {where}"}
    side = bin_size(adata.obs_names)
    if side is not None:
        facts["technology"] = facts["technology"] or "Visium HD"
        if abs(facts.get("pitch_um", side) / side - 1) > TOLERANCE:
            raise InputError(
                f"bins of {side:g} um by their names, and {facts['pitch_um']:g} um {facts['pitch_why']}",
                file=files.path,
                field="obs_names",
                value=str(adata.obs_names[0]),
                fix="correct the wrong one",
            )
        facts |= {"pitch_um": side, "pitch_why": "by the names of the bins"}
    where = f"{place_of(adata, files.id, 'spot_diameter_um')}['spot_diameter_um']"
    stated_number(metadata, "spot_diameter_um", where, files.path)
    where = f"{place_of(adata, files.id, 'spot_diameter_fullres')}['spot_diameter_fullres']"
    diameter = stated_number(metadata, "spot_diameter_fullres", where, files.path)
    return facts | {"spot_diameter_px": diameter, "spot_field": where}


def _named_by(files: SectionFiles) -> str:
    """Return that a section's id is its file's name, where the two are not written alike."""
    stem = stem_of(files.path)
    return f"file name {stem!r}" if files.id != stem and files.id == safe_id(stem) else ""


def read_anndata(path: Path) -> AnnData:
    """Read an ``.h5ad`` or a store of `stores`; a missing, truncated or foreign file is an `InputError`."""
    what = "section cannot be read as .zarr" if path.is_dir() else "section cannot be read as .h5ad"
    with reading(what, *h5_errors(), file=path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # e.g. names that are not unique: said properly by the validation
        return read_store(path, what=what)


def library_of(adata: AnnData, section: str) -> tuple[Mapping[str, Any], str]:
    """Return the library of ``uns["spatial"]`` that is the section's, empty where there is none, and its place."""
    names = libraries_in(adata)
    if not names:
        return {}, "uns['spatial']"
    library = section if section in names else names[0]
    return adata.uns["spatial"][library], f"uns['spatial'][{library!r}]"


def library_metadata(adata: AnnData, section: str) -> tuple[dict[str, Any], str]:
    """Return ``uns["spatial"][library]["metadata"]`` with the scale factors, and how errors call the place."""
    content, place = library_of(adata, section)
    metadata: dict[str, Any] = {}
    for part in ("scalefactors", "metadata"):
        if isinstance(content.get(part), Mapping):
            metadata.update(content[part])
    return metadata, f"{place}['metadata']" if content else place


def place_of(adata: AnnData, section: str, name: str) -> str:
    """Return where in the section's library a name stands, as errors call it: metadata, else the scale factors."""
    content, place = library_of(adata, section)
    own = content.get("metadata")
    part = "metadata" if isinstance(own, Mapping) and name in own else "scalefactors"
    return f"{place}[{part!r}]"


def place_coordinates(adata: AnnData) -> str:
    """Put the spot centres into ``obsm["spatial"]``, x and y, from wherever they are written; return where that is.

    Where ``obsm["spatial"]`` is absent, columns of ``obs`` are taken: those of Visium's and HEST's tables, and those of
    Seurat. Columns of a table are known by their names, not by their order. A third column that is the same for all
    spots is left out.
    """
    import pandas as pd
    from scipy.sparse import issparse

    own = "spatial" in adata.obsm
    values, where = (adata.obsm["spatial"], "obsm['spatial']") if own else (adata.obs, "obs")
    if isinstance(values, pd.DataFrame):
        by_lower = {str(column).lower(): column for column in values.columns}
        pairs = (*XY_COLUMNS, ("x", "y")) if own else XY_COLUMNS
        pair = next((pair for pair in pairs if set(pair) <= set(by_lower)), None)
        if not own and pair is None:  # said properly by the validation
            return ""
        columns = [by_lower[part] for part in pair] if pair else list(values.columns)
        values = values[columns].astype(object).to_numpy()
        where = ", ".join(f"{where}[{column!r}]" for column in columns) if pair else where
    values = values.toarray() if issparse(values) else np.asarray(values)
    if values.shape[1:] == (3,) and len(pd.unique(values[:, 2])) == 1:
        values, where = values[:, :2], f"{where}, the first two of three columns"
    adata.obsm["spatial"] = values
    return where


def open_for(
    adata: AnnData, path: Path, metadata: Mapping[str, Any], pictures: Sequence[Carried] = ()
) -> ImageSource | None:
    """Open the image of a section and check that it is the one that the coordinates refer to.

    A reduced picture, known by its size or its name and scale factor, is read at its own scale.
    """
    size = None
    if _is_number(metadata.get("fullres_width")) and _is_number(metadata.get("fullres_height")):
        size = (int(metadata["fullres_width"]), int(metadata["fullres_height"]))
    if path.is_dir() and not is_image(path):
        if "spatial" not in adata.obsm:  # said properly by the validation
            return None
        return _tile_folder(adata, path, size)
    if path.suffix.lower() in {".h5", ".hdf5"}:
        return open_patches(adata, path, size)
    image = at_own_scale(open_image(path), pictures, metadata, adata.obsm.get("spatial"))
    if size is not None and not alike((image.width, image.height), size):
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
    if mosaic.barcodes is None or "spatial" not in adata.obsm or not adata.obs_names.is_unique:
        return mosaic  # the latter two are said properly by the validation
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
            "path leads outside the section's folder",
            file=file,
            field=field,
            value=name,
            expected="a path relative to the section file",
            setting="image",
        )
    return folder / name if not Path(name).is_absolute() else path


def _image_path(
    files: SectionFiles, metadata: Mapping[str, Any], field: str, *, alone: bool
) -> tuple[Path | None, str, list[str]]:
    """Return the image of a section file, or None and why; and notes. One of several slides needs one of its own."""
    if files.image is not None:
        if not files.image.exists():
            raise InputError("the given image does not exist", file=files.path, field="image", value=str(files.image))
        return files.image, "", []
    folder, stem, named = files.path.parent, stem_of(files.path), metadata.get("source_image_path")
    stems = [*_own_stems(files), *([stem] if alone else [])] or [files.id]
    why = f"{field} is not set, and neither {stems[0]}.tif, .svs, .jpg, .png, ... nor {stems[0]}_patches.h5 is here"
    if not alone:
        why += f"; the slides of {files.path.name} cannot share one: an entry {files.path.name}/{files.part} names this"
    beside = image_beside(folder, stems, BESIDE)
    own, notes = None, []
    if isinstance(named, str) and named:
        why = f"{field} names {named!r}, which is not in {folder}"
        own, notes = _named_image(files.path, named, field)
    there = [path for path in [*([own] if own else []), *beside] if path.exists()]
    path = next(iter(there), None)
    pictures = {other.name for other in there[1:] if is_image(other)} - {path.name if path else ""}
    if pictures and is_image(path):
        notes = [
            *notes,
            f"{files.path}: {path.name} was taken as the image, not {', '.join(sorted(pictures))} beside it.",
        ]
    return path, "" if path is not None else f"image is missing: {why}", notes


def _is_foreign(named: str) -> bool:
    """Return whether a path is absolute, on this system or on another."""
    return PurePosixPath(named).is_absolute() or PureWindowsPath(named).is_absolute()


def _named_image(section: Path, named: str, field: str) -> tuple[Path, list[str]]:
    """Return the picture that a section file names: where it says, or of that name beside the section file.

    An absolute path is mostly of the machine that wrote the file.
    """
    folder, windows = section.parent, PureWindowsPath(named)
    if windows.is_absolute() or ("\\" in named and not (folder / named).exists()):
        name, plain = windows.name, windows.as_posix()
    else:
        name, plain = PurePosixPath(named).name, named
    beside = folder / name
    if not windows.is_absolute():
        try:
            path = confined(folder, plain, file=section, field=field)
            if path.exists() or not beside.exists():
                return path, []
        except InputError:
            gone = _is_foreign(named) and not Path(named).exists()
            if not beside.exists() and not gone:
                raise
    return beside, [
        f"{section}: {field} names {named!r}, and {name} beside the section file was taken."
    ] * beside.exists()


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
    recognises=_recognises,
    sections_in=_sections_in,
    read=load_h5ad,
    inputs=_inputs,
)
