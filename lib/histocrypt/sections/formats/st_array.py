"""ST array folders: ``counts/**/<section>_<x>_<y>.npz`` and ``images/**/<section>_<x>_<y>.jpg``, one pair a spot."""

from __future__ import annotations

import csv
import json
import os
import re
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np

from histocrypt.errors import InputError, reading, unreadable
from histocrypt.files import regular
from histocrypt.sections.genes import KIND_COLUMNS
from histocrypt.sections.identity import id_text, patient_text, safe_id
from histocrypt.sections.image import TILE_NAME, ImageSource, PatchMosaic, is_image, open_image, tiles_in
from histocrypt.sections.resolution import ST_PITCH_UM
from histocrypt.sections.section import Format, Loaded, SectionFiles

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".npy", ".json")
PICKLES = (".pkl", ".pickle", ".p")
HEADERS = {"gene", "genes", "gene_id", "gene_ids", "gene_name", "gene_names", "ensembl", "ensembl_id", "id", "name"}
SYMBOL_TABLE = re.compile(r"ensembl.*\.(tsv|csv)$|symbol.*\.(tsv|csv)$", re.IGNORECASE)
MOST_FOLDERS = 2000
"""Looked into before a folder counts as something else: the parent of a mistyped path may be a whole disk."""


def _is_st_array(folder: Path) -> bool:
    """Return whether a folder holds spots as npz files."""
    for _, _, files in islice(os.walk(_counts_folder(folder)), MOST_FOLDERS):  # passes by what may not be read
        if any(name.endswith(".npz") and TILE_NAME.match(name.removesuffix(".npz")) for name in files):
            return True
    return False


def _sections_in(folder: Path) -> list[SectionFiles]:
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
        section = safe_id(f"{patient}_{name['section']}")
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
        raise InputError("section has no spot", file=own, expected=f"files {own.name}_<x>_<y>.npz")
    rows, pixels, index, patients, sections = [], [], [], Counter(), Counter()
    for path in spots:
        with _npz(path) as spot:
            count = _array(spot, "count", path).ravel()
            if rows and rows[0].shape[1] != len(count):
                raise InputError(
                    f"has {len(count)} counts, where {spots[0].name} has {rows[0].shape[1]}", file=path, field="count"
                )
            if not np.issubdtype(count.dtype, np.number):
                raise InputError("counts are not numbers", file=path, field="count", value=str(count.dtype))
            rows.append(sparse.csr_matrix(count[None]))
            pixels.append(_pair(spot, "pixel", path))
            index.append(_pair(spot, "index", path) if "index" in spot.files else _index_of(path))
            patients[_scalar(spot, "patient", path)] += 1
            if "section" in spot.files:
                sections[_scalar(spot, "section", path)] += 1
    for field, values in (("patient", patients), ("section", sections)):
        if len(values) > 1:
            raise InputError(
                f"spots of one section name {len(values)} {field}s",
                file=own.parent,
                field=field,
                value=sorted(values)[:5],
            )
    genes, gene_file = genes_for(files.path, rows[0].shape[1], counts=spots[0])
    grid = np.array(index)
    barcodes = [f"{x:g}x{y:g}" for x, y in grid]
    adata = anndata.AnnData(
        sparse.vstack(rows, format="csr"),
        obs=pd.DataFrame({"array_row": grid[:, 1], "array_col": grid[:, 0]}, index=pd.Index(barcodes, name="barcode")),
        var=pd.DataFrame(index=pd.Index(genes, name="gene_id")),
        obsm={"spatial": np.array(pixels, dtype=np.float64)},
    )
    kinds = _kinds(gene_file, len(genes))
    if kinds:
        adata.var["feature_types"] = kinds
    symbols, symbol_file = gene_symbols(files.path)
    if symbols:
        adata.var["symbol"] = [symbols.get(gene.split(".")[0], gene) for gene in genes]
    image, note = _image(files, own, spots, adata)
    return Loaded(
        adata,
        image,
        next(iter(patients)),
        [own.parent, gene_file, *([symbol_file] if symbol_file else []), *([image.path] if image else [])],
        um_per_px=image.um_per_px if image is not None else None,
        um_field=image.um_field if image else "",
        pitch_um=ST_PITCH_UM,
        technology="Spatial Transcriptomics",
        image_note=note,
        origins={
            "patient": "patient of the .npz files",
            "counts": "count of the .npz files",
            "genes": gene_file.name,
            "spots": "pixel of the .npz files",
        },
    )


def _counts_folder(folder: Path) -> Path:
    return folder / "counts" if (folder / "counts").is_dir() else folder


def _image(files: SectionFiles, own: Path, spots: list[Path], adata: object) -> tuple[ImageSource | None, str]:
    """Return the tiles of the spots as a mosaic, or the slide of the section."""
    if files.counts_only:
        return None, ""
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
    named = sorted(files.path.rglob(f"*{own.name}_wsi.*"))
    slides = [path for path in named if own.parent.name in path.name and is_image(path)]
    if slides:
        return open_image(slides[0]), ""
    return None, f"images are missing: no {spots[0].stem}.jpg, .png or .tif is below {folder}"


def _npz(path: Path) -> np.lib.npyio.NpzFile:
    with reading("spot cannot be read", OSError, ValueError, EOFError, zipfile.BadZipFile, file=path):
        return np.load(regular(path), allow_pickle=False)


def _array(spot: np.lib.npyio.NpzFile, field: str, path: Path) -> np.ndarray:
    if field not in spot.files:
        raise InputError("field is missing", file=path, field=field, expected="count, pixel, index, patient, section")
    try:
        return spot[field]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                "is an object array, which only pickle could read, and pickle is never read",
                file=path,
                field=field,
                fix="save it again as numbers or as text",
            ) from error
        raise unreadable("field cannot be read", error, file=path, field=field) from error


def _scalar(spot: np.lib.npyio.NpzFile, field: str, path: Path) -> str:
    values = _array(spot, field, path).ravel()
    if len(values) != 1 or not id_text(values[0]):
        raise InputError("is not one name", file=path, field=field, value=values.tolist()[:5])
    return patient_text(id_text(values[0])) if field == "patient" else id_text(values[0])


def _pair(spot: np.lib.npyio.NpzFile, field: str, path: Path) -> np.ndarray:
    values = _array(spot, field, path).ravel()
    if len(values) != 2 or not np.issubdtype(values.dtype, np.number):
        raise InputError("is not a pair of numbers", file=path, field=field, value=values.tolist()[:5], expected="x, y")
    return values.astype(float)


def _index_of(path: Path) -> np.ndarray:
    name = TILE_NAME.match(path.stem)
    return np.array([float(name["x"]), float(name["y"])])


def genes_for(folder: Path, length: int, *, counts: Path) -> tuple[list[str], Path]:
    """Return the gene list that belongs to counts of this length, and its file.

    Looks below ``folder``, then beside it (in its parent and the parent's folders).

    Raises
    ------
    InputError
        If there is none, if none has the right length (both numbers are named), or if two different ones have.
    """
    candidates, pickles = _candidates(folder)
    if not candidates:
        fix = f"convert {pickles[0].name} to a text file: pickle is never read" if pickles else None
        raise InputError(
            "gene list is missing", file=folder, expected="a file such as genes.txt, one gene id per line", fix=fix
        )
    lists = {path: read_gene_list(path) for path in candidates}
    right = {path: genes for path, genes in lists.items() if len(genes) == length}
    if not right:
        path, genes = min(lists.items(), key=lambda item: abs(len(item[1]) - length))
        raise InputError(
            f"gene list has the wrong length: {len(genes)} genes for {length} counts per spot",
            file=path,
            value=len(genes),
            expected=f"{length} as in {counts}",
        )
    path, genes = next(iter(right.items()))
    for other, its_genes in right.items():
        if its_genes != genes:
            raise InputError(
                f"two gene lists of {length} genes differ, so neither can be trusted",
                file=path,
                value=other.name,
                fix="leave only the one that belongs to the counts",
            )
    if len(set(genes)) < len(genes):
        repeated = next(gene for gene in genes if genes.count(gene) > 1)
        raise InputError("gene list has a gene twice", file=path, value=repeated)
    return genes, path


def read_gene_list(path: Path) -> list[str]:
    """Read gene ids: one a line, the gene column of a table, a JSON list or ``{"genes": [...]}``, or a text array."""
    try:
        regular(path)
        if path.suffix == ".npy":
            genes = [str(gene) for gene in np.load(path, allow_pickle=False).ravel()]
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            genes = content.get("genes") if isinstance(content, dict) else content
        else:
            genes = _column(path)
    except InputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        why = "it is an object array, and pickle is never read" if "allow_pickle" in str(error) else str(error)
        raise InputError(f"gene list cannot be read ({why})", file=path) from error
    if not isinstance(genes, list) or not all(isinstance(gene, str) and gene for gene in genes):
        raise InputError("is not a list of gene ids", file=path)
    return genes


def _kinds(path: Path, length: int) -> list[str]:
    """Return what each feature of a gene list is, where the list is a table with a column that says so."""
    if path.suffix in {".npy", ".json"}:
        return []
    header, *body = _rows(path)
    column = next((place for place, cell in enumerate(header) if cell.lower() in KIND_COLUMNS), None)
    if column is None or len(body) != length:
        return []
    return [row[column] if len(row) > column else "" for row in body]


def gene_symbols(folder: Path) -> tuple[dict[str, str], Path | None]:
    """Return Ensembl id -> symbol from a table such as ``ensembl.tsv`` in the folder or beside it, if any."""
    for path in _beside(folder):
        if SYMBOL_TABLE.search(path.name):
            rows = [row for row in _rows(path) if len(row) > 1 and row[0].startswith("ENS") and row[1]]
            pairs = {row[0].split(".")[0]: row[1] for row in rows}
            if pairs:
                return pairs, path
    return {}, None


def _candidates(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that may be gene lists, nearest first, and those that only pickle could read."""
    found = [path for path in _beside(folder) if "gene" in path.name.lower() and not SYMBOL_TABLE.search(path.name)]
    lists = [path for path in found if path.suffix.lower() in LIST_SUFFIXES and "mean" not in path.name.lower()]
    inside = [path for path in lists if path.is_relative_to(folder)]
    return inside or lists, [path for path in found if path.suffix.lower() in PICKLES]


def _beside(folder: Path) -> list[Path]:
    """Return the small files in a folder and its subfolders, then in its parent and the parent's subfolders."""
    folder = folder.absolute()
    inside = (path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in {"counts", "images"})
    places = (folder, *inside, folder.parent, *sorted(folder.parent.glob("*stats*")))
    files = (path for place in places for path in sorted(place.glob("*")) if path.is_file())
    return list(dict.fromkeys(files))


def _rows(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8-sig")
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]


def _column(path: Path) -> list[str]:
    """Return the gene column of a table: the one whose header says so, else the first that is not a row number."""
    rows = _rows(path)
    if not rows:
        return []
    header = [cell.lower() for cell in rows[0]]
    named = [position for position, cell in enumerate(header) if cell in HEADERS]
    body = rows[1:] if named or header[0] in {"", "0"} else rows
    position = named[0] if named else 0
    if not named and body and len(body[0]) > 1 and all(row[0].isdigit() for row in body):
        position = 1
    return [row[position] for row in body if len(row) > position]


FORMAT = Format(
    layout="counts/**/<section>_<x>_<y>.npz",
    recognises=_is_st_array,
    sections_in=_sections_in,
    read=load_st_array,
)
