"""ST array folders: ``counts/**/<section>_<x>_<y>.npz`` and ``images/**/<section>_<x>_<y>.jpg``, one pair a spot."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.gene_lists import gene_symbols, genes_for
from histocrypt.sections.image import ImageSource, open_image
from histocrypt.sections.patches import TILE_NAME, PatchMosaic, tiles_in
from histocrypt.sections.resolution import ST_PITCH_UM
from histocrypt.sections.section import Loaded, SectionFiles

UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def is_st_array(folder: Path) -> bool:
    """Return whether a folder holds spots as npz files."""
    return any(TILE_NAME.match(path.stem) for path in _counts_folder(folder).rglob("*.npz"))


def st_array_sections(folder: Path) -> list[SectionFiles]:
    """Return the sections below ``counts/``: one for each folder and name prefix.

    Section names such as C1 recur in every patient, so the id is ``<patient>_<section>``.
    """
    found: dict[str, SectionFiles] = {}
    counts = _counts_folder(folder)
    for path in sorted(counts.rglob("*.npz")):
        name = TILE_NAME.match(path.stem)
        if name is None:
            continue
        part = (path.parent.relative_to(counts) / name["section"]).as_posix()
        if part in found:
            continue
        try:
            with _npz(path) as spot:
                patient = _scalar(spot, "patient", path)
        except InputError:  # said properly when the section is read
            patient = path.parent.name
        section = UNSAFE.sub("-", f"{patient}_{name['section']}")
        found[part] = SectionFiles(section, "st_array", folder, patient=patient, part=part)
    return list(found.values())


def load_st_array(files: SectionFiles) -> Loaded:
    """Read the spots of one section and join them to the gene list and to their images."""
    import anndata
    import pandas as pd
    from scipy import sparse

    counts_folder = _counts_folder(files.path)
    own = counts_folder / files.part
    spots = [
        path
        for path in sorted(own.parent.glob("*.npz"))
        if (name := TILE_NAME.match(path.stem)) and name["section"] == own.name
    ]
    if not spots:
        msg = "section has no spot"
        raise InputError(msg, file=own, expected=f"files {own.name}_<x>_<y>.npz")
    rows, pixels, index, patients, sections = [], [], [], Counter(), Counter()
    for path in spots:
        with _npz(path) as spot:
            count = _array(spot, "count", path).ravel()
            if rows and rows[0].shape[1] != len(count):
                msg = f"has {len(count)} counts, where {spots[0].name} has {rows[0].shape[1]}"
                raise InputError(msg, file=path, field="count")
            if not np.issubdtype(count.dtype, np.number):
                msg = "counts are not numbers"
                raise InputError(msg, file=path, field="count", value=str(count.dtype))
            rows.append(sparse.csr_matrix(count[None]))
            pixels.append(_pair(spot, "pixel", path))
            index.append(_pair(spot, "index", path) if "index" in spot.files else _index_of(path))
            patients[_scalar(spot, "patient", path)] += 1
            if "section" in spot.files:
                sections[_scalar(spot, "section", path)] += 1
    for field, values in (("patient", patients), ("section", sections)):
        if len(values) > 1:
            msg = f"spots of one section name {len(values)} {field}s"
            raise InputError(msg, file=own.parent, field=field, value=sorted(values)[:5])
    genes, gene_file = genes_for(files.path, rows[0].shape[1], counts=spots[0])
    grid = np.array(index)
    barcodes = [f"{x:g}x{y:g}" for x, y in grid]
    adata = anndata.AnnData(
        sparse.vstack(rows, format="csr"),
        obs=pd.DataFrame({"array_row": grid[:, 1], "array_col": grid[:, 0]}, index=pd.Index(barcodes, name="barcode")),
        var=pd.DataFrame(index=pd.Index(genes, name="gene_id")),
        obsm={"spatial": np.array(pixels, dtype=np.float64)},
    )
    symbols, symbol_file = gene_symbols(files.path)
    if symbols:
        adata.var["symbol"] = [symbols.get(gene.split(".")[0], gene) for gene in genes]
    image, note = _image(files, own, spots, adata)
    return Loaded(
        adata,
        image,
        next(iter(patients)),
        [own.parent, gene_file, *([symbol_file] if symbol_file else []), *([image.path] if image else [])],
        um_per_px=getattr(image, "um_per_px", None),
        um_field=f"resolution of {image.path.name}" if image else "",
        pitch_um=ST_PITCH_UM,
        technology="Spatial Transcriptomics",
        image_note=note,
    )


def _counts_folder(folder: Path) -> Path:
    return folder / "counts" if (folder / "counts").is_dir() else folder


def _image(files: SectionFiles, own: Path, spots: list[Path], adata: object) -> tuple[ImageSource | None, str]:
    """Return the tiles of the spots as a mosaic, or the slide of the section."""
    if files.image is not None and not files.image.is_dir():
        return open_image(files.image), ""
    folder = files.image or (files.path / "images" if (files.path / "images").is_dir() else files.path)
    barcode_of = dict(zip((path.stem for path in spots), adata.obs_names, strict=True))
    candidates = [path for path in tiles_in(folder) if path.stem in barcode_of]
    if len({path.stem for path in candidates}) < len(candidates):  # another patient has a section of this name
        candidates = [path for path in candidates if path.parent.name == own.parent.name]
    tiles = {barcode_of[path.stem]: path for path in candidates}
    if tiles:
        centres = dict(zip(adata.obs_names, adata.obsm["spatial"], strict=True))
        finite = {barcode: tile for barcode, tile in tiles.items() if np.isfinite(centres[barcode]).all()}
        return PatchMosaic.from_tiles(folder, finite, centres), ""
    slides = [path for path in sorted(files.path.rglob(f"*{own.name}_wsi.*")) if own.parent.name in path.name]
    if slides:
        return open_image(slides[0]), ""
    return None, f"images are missing: no {spots[0].stem}.jpg, .png or .tif is below {folder}"


def _npz(path: Path) -> np.lib.npyio.NpzFile:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        msg = f"spot cannot be read, it may be truncated ({error})"
        raise InputError(msg, file=path) from error


def _array(spot: np.lib.npyio.NpzFile, field: str, path: Path) -> np.ndarray:
    if field not in spot.files:
        msg = "field is missing"
        raise InputError(msg, file=path, field=field, expected="count, pixel, index, patient, section")
    try:
        return spot[field]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        if "allow_pickle" in str(error):
            msg = "is an object array, which only pickle could read, and pickle is never read"
            raise InputError(msg, file=path, field=field, fix="save it again as numbers or as text") from error
        msg = f"field cannot be read, it may be truncated ({error})"
        raise InputError(msg, file=path, field=field) from error


def _scalar(spot: np.lib.npyio.NpzFile, field: str, path: Path) -> str:
    values = _array(spot, field, path).ravel()
    if len(values) != 1 or not str(values[0]):
        msg = "is not one name"
        raise InputError(msg, file=path, field=field, value=values.tolist()[:5])
    value = values[0]
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _pair(spot: np.lib.npyio.NpzFile, field: str, path: Path) -> np.ndarray:
    values = _array(spot, field, path).ravel()
    if len(values) != 2 or not np.issubdtype(values.dtype, np.number):
        msg = "is not a pair of numbers"
        raise InputError(msg, file=path, field=field, value=values.tolist()[:5], expected="x, y")
    return values.astype(float)


def _index_of(path: Path) -> np.ndarray:
    name = TILE_NAME.match(path.stem)
    return np.array([float(name["x"]), float(name["y"])])
