"""The HEST layouts: ``st/ wsis/ patches/ metadata/`` of HEST-1k, and a task of hest-bench with its splits."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histocrypt.errors import InputError
from histocrypt.files import read_json
from histocrypt.sections.formats.h5ad import (
    confined,
    library_metadata,
    library_of,
    open_for,
    place_coordinates,
    read_anndata,
)
from histocrypt.sections.genes import ABSENT, GeneNames, meant_by, why_apart
from histocrypt.sections.identity import id_text, one_value, patient_text, safe_id
from histocrypt.sections.image import ImageSource, ScaledImage, image_beside
from histocrypt.sections.libraries import own_slide
from histocrypt.sections.picture import Carried, carried_in
from histocrypt.sections.section import Format, Loaded, SectionFiles

if TYPE_CHECKING:
    from anndata import AnnData

GENE_LIST = re.compile(r"^var_(\d+)genes\.json$")
SPLIT = re.compile(r"^(train|test)_(\d+)\.csv$")


def _is_hest(path: Path) -> bool:
    """Return whether a path is a folder of HEST-1k, a task of hest-bench, or a section of either's ``st/``."""
    if path.is_file():
        beside = (path.parents[1] / name for name in ("wsis", "patches"))
        return path.suffix == ".h5ad" and path.parent.name == "st" and any(folder.is_dir() for folder in beside)
    return any((path / "st").glob("*.h5ad")) or is_hest_bench(path)


def is_hest_bench(folder: Path) -> bool:
    """Return whether a folder is a task of hest-bench."""
    return any(SPLIT.match(path.name) for path in (folder / "splits").glob("*.csv"))


def _sections_in(folder: Path) -> list[SectionFiles]:
    if folder.is_file():
        return [SectionFiles(safe_id(folder.stem), "hest", folder)] if folder.suffix == ".h5ad" else []
    if not is_hest_bench(folder):
        return [SectionFiles(safe_id(path.stem), "hest", path) for path in sorted((folder / "st").glob("*.h5ad"))]
    found: dict[str, SectionFiles] = {}
    for split in hest_splits(folder).values():
        for rows in split.values():
            for row in rows:
                files = SectionFiles(safe_id(row["sample_id"]), "hest", row["expr_path"], image=row["patches_path"])
                if found.setdefault(files.id, files) != files:
                    raise InputError(
                        "one sample has two expression or patches files in the splits",
                        file=folder / "splits",
                        field="sample_id",
                        value=files.id,
                    )
    return [found[name] for name in sorted(found)]


def hest_splits(folder: str | Path) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Read the splits of a hest-bench task.

    Returns
    -------
    Fold number -> ``train`` and ``test`` -> rows with ``sample_id`` and the absolute ``patches_path`` and
    ``expr_path``.

    Raises
    ------
    InputError
        If a column or a half is missing, a path leaves the task's folder, or a sample is trained on and tested.
    """
    folder = Path(folder)
    splits: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted((folder / "splits").glob("*.csv")):
        name = SPLIT.match(path.name)
        if name is None:
            continue
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"split cannot be read ({error})", file=path) from error
        if not rows:
            raise InputError("split has no row", file=path)
        for row in rows:
            for column in ("sample_id", "patches_path", "expr_path"):
                if not row.get(column):
                    raise InputError(
                        "column is missing or empty",
                        file=path,
                        field=column,
                        expected="sample_id, patches_path, expr_path",
                    )
            for column in ("patches_path", "expr_path"):
                row[column] = confined(folder, row[column], file=path, field=column)
        splits.setdefault(int(name[2]), {})[name[1]] = rows
    for number, split in splits.items():
        for half in ("train", "test"):
            if half not in split:
                raise InputError(f"split {number} has no {half} half", file=folder / "splits" / f"{half}_{number}.csv")
        both = {row["sample_id"] for row in split["train"]} & {row["sample_id"] for row in split["test"]}
        if both:
            raise InputError(
                "sample is trained on and tested in one split",
                file=folder / "splits" / f"test_{number}.csv",
                field="sample_id",
                value=sorted(both)[0],
            )
    return dict(sorted(splits.items()))


def hest_gene_list(folder: str | Path) -> list[str] | None:
    """Read ``var_<n>genes.json`` of a hest-bench task: ``{"genes": [...]}``; None where there is none.

    Raises
    ------
    InputError
        If it is no such list, if a gene is named twice, or if its length is not the ``n`` of its name.
    """
    for path in sorted(Path(folder).glob("var_*genes.json")):
        name = GENE_LIST.match(path.name)
        content = read_json(path)
        genes = content.get("genes") if isinstance(content, dict) else None
        if not isinstance(genes, list) or not all(isinstance(gene, str) for gene in genes):
            raise InputError("is not a gene list", file=path, field="genes", expected='{"genes": ["...", ...]}')
        if name and len(genes) != int(name[1]):
            raise InputError(
                f"gene list has the wrong length: {len(genes)} genes, and its name says {name[1]}",
                file=path,
                field="genes",
                value=len(genes),
            )
        if len(set(genes)) < len(genes):
            msg = "gene list has a gene twice"
            repeated = next(gene for gene in genes if genes.count(gene) > 1)
            raise InputError(msg, file=path, field="genes", value=repeated)
        return genes
    return None


def load_hest(files: SectionFiles) -> Loaded:
    """Read a HEST section: its slide where that is there, else its patches."""
    adata = read_anndata(files.path)
    spots = place_coordinates(adata)
    adata, _, _ = own_slide(adata, "", files.id, files.path)
    root = _root(files.path)
    metadata, field = library_metadata(adata, files.id)
    about_path = root / "metadata" / f"{files.path.stem}.json"
    about = read_json(about_path) if about_path.exists() else {}
    about = {name: value for name, value in about.items() if value == value} if isinstance(about, dict) else {}  # NaN
    image, note, pictures = None, "", []
    if not files.counts_only:
        pictures, _ = carried_in(*library_of(adata, files.id), files.path)
        image, note = _image(files, root, adata, metadata, pictures)
    if image is None and pictures:
        image, note = ScaledImage(pictures[0].image, pictures[0].scale), ""
    um_per_px, um_field = None, ""
    for source, where in ((about, str(about_path)), (metadata, field)):
        for name in ("pixel_size_um_estimated", "pixel_size_um", "pixel_size_um_embedded", "microns_per_pixel"):
            if um_per_px is None and isinstance(source.get(name), (int, float)) and source[name] == source[name]:
                um_per_px, um_field = float(source[name]), f"{where}: {name}"
    genes = hest_gene_list(root)
    if genes is not None:
        own = GeneNames.of(adata.var)
        missing = [gene for gene, at in zip(genes, meant_by(genes, own), strict=True) if at == ABSENT]
        if missing:
            said, remedy = why_apart(GeneNames.of(genes), "the list", own, "the section")
            fix = f"{said}: {remedy}" if 2 * len(missing) > len(genes) else None
            raise InputError(
                f"lacks {len(missing)} of {len(genes)} genes of the task's gene list",
                file=files.path,
                field="var_names",
                value=sorted(missing)[0],
                fix=fix,
            )
        adata.uns["gene_list"] = genes
    pitch = about.get("inter_spot_dist", metadata.get("inter_spot_um"))
    own_patient = one_value(adata, "patient", files.path)
    about_patient = id_text(about.get("patient"))
    notes = [f"{root}: gene list of {len(genes)} genes kept in uns['gene_list']."] if genes is not None else []
    if own_patient and about_patient and patient_text(about_patient) != own_patient:
        notes.append(
            f"{about_path}: patient is {about_patient!r}; {own_patient!r} was taken, as the section's file says."
        )
    told = ("obs" if "patient" in adata.obs else "uns") + "['patient']" if own_patient else f"{about_path}: patient"
    return Loaded(
        adata,
        image,
        own_patient or about_patient or None,
        [files.path, *([image.path] if image is not None else []), *([about_path] if about else [])],
        um_per_px=um_per_px,
        um_field=um_field,
        pitch_um=float(pitch) if isinstance(pitch, (int, float)) and pitch > 0 else None,
        technology=str(about.get("st_technology") or adata.uns.get("technology") or ""),
        image_note=note,
        pictures=pictures,
        notes=notes,
        origins={
            "patient": told if own_patient or about_patient else "",
            "counts": "X",
            "spots": spots,
        },
    )


def _root(path: Path) -> Path:
    """Return the folder that holds ``st/`` or ``splits/``."""
    for folder in path.parents:
        if is_hest_bench(folder) or (path.parent.name == "st" and folder == path.parent.parent):
            return folder
    return path.parent


def _image(
    files: SectionFiles, root: Path, adata: AnnData, metadata: dict[str, Any], pictures: list[Carried]
) -> tuple[ImageSource | None, str]:
    if files.image is not None:
        if not files.image.exists():
            raise InputError("image or patches file is missing", file=files.image)
        return open_for(adata, files.image, {}, pictures), ""
    name = files.path.stem  # and not the id, which a study may give
    slides = sorted(image_beside(root / "wsis", [name]), key=lambda path: path.suffix.lower() not in {".tif", ".tiff"})
    for path in (*slides, root / "patches" / f"{name}.h5"):
        if path.exists():
            return open_for(adata, path, metadata if path in slides else {}, pictures), ""
    return None, f"image is missing: neither wsis/{name}.tif nor patches/{name}.h5 is in {root}"


FORMAT = Format(
    layout="the HEST layout (st/*.h5ad or splits/*.csv)",
    recognises=_is_hest,
    sections_in=_sections_in,
    read=load_hest,
)
