"""What a reader found becomes a `Section`, or one sentence that says why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from histocrypt.errors import InputError
from histocrypt.sections.counts import are_counts, check_counts, counted, places_of, rows_of
from histocrypt.sections.genes import GeneNames, expression_only, odd_names, read_by_id
from histocrypt.sections.identity import check_id, missing_patient, near_name, one_value, patient_text, safe_id
from histocrypt.sections.image import ScaledImage
from histocrypt.sections.picture import Witnesses, reduced_note
from histocrypt.sections.resolution import resolve
from histocrypt.sections.section import ORIGINS, Section
from histocrypt.sections.tables import tissue_marks

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

    from histocrypt.sections.image import ImageSource
    from histocrypt.sections.section import Loaded, SectionFiles


AROUND_X = (
    ("", ""),
    ("", "_pixel"),
    ("pixel_", ""),
    ("", "_coord"),
    ("coord_", ""),
    ("spatial_", ""),
    ("", "_centroid"),
)
"""What stands before and behind x and y in names of columns that hold places, perhaps in other units than pixels."""
PARTS = ("images", "scalefactors", "metadata")
"""What a library of ``uns["spatial"]`` consists of."""


def validated(
    files: SectionFiles,
    loaded: Loaded,
    *,
    require_image: bool = True,
    require_patient: bool = True,
    require_counts: bool = True,
) -> Section:
    """Check and clean what was loaded.

    Raises
    ------
    InputError
        For every defect that makes the section unusable; see the messages below. Spots without finite counts or
        coordinates, marked as off tissue, or outside the image are dropped and counted instead.
    """
    file, adata, image = loaded.files[0], loaded.adata, loaded.image
    check_id(files.id, file)
    if require_counts and isinstance(adata.uns.get("prediction"), Mapping):
        raise InputError(
            "is a prediction, but a measured section is needed",
            file=file,
            field="uns['prediction']",
            value=str(adata.uns["prediction"].get("title", "")) or None,
            fix="name the section that was predicted",
        )
    _keep_libraries(adata)
    notes, matrices = list(loaded.notes), [name for name in adata.obsm if name != "spatial"]
    own: dict[str, str] = {}
    uncounted = loaded.uncounted or (not (adata.n_vars and places_of(adata)) and (bool(matrices) or not require_counts))
    if not adata.n_obs or not (adata.n_vars or uncounted):
        raise InputError("section is empty", file=file, field="X", value=f"{adata.n_obs} spots x {adata.n_vars} genes")
    _refuse_repeats(adata.obs_names, file, "obs", "barcode")
    if not uncounted:
        adata, own = _with_counts(adata, file, notes)
        if not require_counts and not are_counts(adata.X):
            notes.append(f"{file}: X: holds values that are no counts; prediction needs none, and they are not read.")
            adata, own = _without_genes(adata), {}
        if require_counts:
            _refuse_repeats(adata.var_names, file, "var", "gene id")
    stated = patient_text(loaded.patient or "")
    patient = files.patient or stated
    if not patient and require_patient:
        raise missing_patient(adata, file, files.format)
    told = one_value(adata, "laboratory", file)
    laboratory = files.laboratory or told
    if files.laboratory and told and files.laboratory != told:
        notes.append(f"{file}: the laboratory is {laboratory!r} as given; the file says {told!r}.")
    if image is None and require_image:
        raise InputError(loaded.image_note or "image is missing", file=file, setting="image")
    if image is not None and image.orientation != 1 and "spatial" in adata.obsm:
        raise InputError(
            "the image has a rotation tag, and the coordinates may refer to it with or without rotation",
            file=image.path,
            field="orientation",
            value=image.orientation,
            fix="save it in the orientation of the coordinates, without that tag",
        )
    if uncounted:
        adata = _without_genes(adata)
        named = ", ".join(f"obsm:{name}" for name in matrices)
        learnt = f"what can be learnt is {named}" if matrices else "nothing can be learnt from it"
        notes.append(f"{file}: {files.id} has no counts; {learnt}.")
    if image is None and loaded.image_note:
        notes.append(f"{file}: {loaded.image_note}.")
    coords = _coordinates(adata, file)
    counts = adata.X
    keep = np.ones(adata.n_obs, dtype=bool)
    dropped: dict[str, int] = {}

    def drop(bad: np.ndarray, reason: str, field: str) -> None:
        bad = bad & keep
        if not bad.any():
            return
        first = adata.obs_names[bad.argmax()]
        if not (keep & ~bad).any():
            raise InputError(
                f"no spot is left: {reason} for all of {bad.sum()} spots",
                file=file,
                field=field,
                value=first,
                fix=_why_outside(image, coords) if reason.startswith("outside") else None,
            )
        keep[bad] = False
        dropped[reason] = int(bad.sum())
        notes.append(f"{file}: {field}: {bad.sum()} of {adata.n_obs} spots dropped: {reason} (first: {first}).")

    drop(~np.isfinite(coords).all(axis=1), "no finite coordinates", "obsm['spatial']")
    drop(_off_tissue(adata, file, notes), "marked as not on tissue", "obs['in_tissue']")
    drop(rows_of(counts, ~np.isfinite(counts.data)), "NaN or infinite counts", "X")
    check_counts(counts, keep, adata, file)
    if image is not None:
        inside = np.zeros(adata.n_obs, dtype=bool)
        inside[keep] = image.covers(coords[keep])
        _refuse_most_outside(image, coords[keep], inside[keep], adata.obs_names[keep], file)
        drop(~inside, f"outside the image of {image.width} x {image.height} px", "obsm['spatial']")

    adata.X = None  # so that the rows are copied once, from `counts`, and not twice
    if not keep.all():
        adata, counts, coords = adata[keep].copy(), counts[keep], coords[keep]
    counts.data = counts.data.astype(np.int32, copy=False)
    adata.X = counts
    adata.obsm["spatial"] = coords
    adata.obs["section"], adata.obs["patient"] = files.id, patient or ""
    if laboratory:
        adata.obs["laboratory"] = laboratory
    loaded.adata = adata
    um_per_px, source, how, differing = np.nan, "not looked for", "not looked for", []
    if not files.counts_only:
        um_per_px, source, how, differing = resolve(loaded, given=files.um_per_px, file=file)
    places = loaded.origins.get("spots") or "obsm['spatial']"
    laid = loaded.technology == "Xenium"
    odd = Witnesses(file, files.id, adata, image, loaded.pictures, places, laid=laid).check()
    notes += [f"{file}: {said}." for said in ([how] if source == "spot pitch" else []) + differing + odd]
    if isinstance(image, ScaledImage):
        notes.append(reduced_note(image, um_per_px))
    origins = {"resolution": how, **loaded.origins}
    if not origins.get("section"):
        origins["section"] = _made_safe(files)
    if image is not None and not origins.get("image"):
        origins["image"] = str(image.path)
    origins |= {name: words for name, words in own.items() if words}
    if adata.n_vars:
        origins["genes"] = f"{origins.get('genes') or 'var_names'} ({GeneNames.plain(adata.var_names).kind})"
    if files.patient and files.patient != stated:
        origins["patient"] = "as given"
        if stated:
            notes.append(f"{file}: the patient is {patient!r} as given; the file says {stated!r}.")
    return Section(
        files.id,
        patient or "",
        adata,
        image,
        um_per_px,
        source,
        list(loaded.files),
        dropped=dropped,
        notes=notes,
        origins={name: origins[name] for name in ORIGINS if origins.get(name)},
        bin_um=loaded.bin_um,
    )


def _keep_libraries(adata: AnnData) -> None:
    """Leave in ``uns["spatial"]`` the libraries that have named parts, as all that follows expects them."""
    spatial = adata.uns.get("spatial", {})
    libraries = spatial if isinstance(spatial, Mapping) else {}
    kept = {
        name: {part: held for part, held in content.items() if part not in PARTS or isinstance(held, Mapping)}
        for name, content in libraries.items()
        if isinstance(content, Mapping)
    }
    if "spatial" in adata.uns:
        adata.uns["spatial"] = kept


def _with_counts(adata: AnnData, file: Path, notes: list[str]) -> tuple[AnnData, dict[str, str]]:
    """Return a section whose ``X`` is its raw counts of genes, and where counts and names of genes were read."""
    adata, left_out = expression_only(adata, file)
    adata, place, said = counted(adata, file)
    if place == "raw.X":  # whose genes are others
        adata, left_out = expression_only(adata, file)
    renamed, odd = read_by_id(adata, file), odd_names(adata.var, file)
    notes += [*said, *(f"{file}: {words}." for words in (left_out, renamed, *odd) if words)]
    return adata, {"counts": place if place != "X" else "", "genes": renamed}


def _without_genes(adata: AnnData) -> AnnData:
    from scipy.sparse import csr_matrix

    bare = adata[:, []].copy()
    bare.X = csr_matrix(bare.shape, dtype=np.int32)
    return bare


def _made_safe(files: SectionFiles) -> str:
    """Return which file's, folder's or sample's name became a section's id, where the two are not written alike."""
    path = files.path.absolute()
    names = (files.part.rstrip("_.- "), path.name, path.stem, path.parent.name)
    name = next((name for name in names if name and safe_id(name) == files.id), files.id)
    return f"name {name!r}" if name != files.id else ""


def _refuse_repeats(names: pd.Index, file: Path, field: str, what: str) -> None:
    if names.is_unique:
        return
    repeated = names[names.duplicated(keep=False)]
    raise InputError(
        f"{what} occurs {int((names == repeated[0]).sum())} times; {repeated.nunique()} of them are not unique",
        file=file,
        field=f"{field}_names",
        value=str(repeated[0]),
        fix="make them unique, or "
        + (
            "write one file per slide if there are several" if field == "obs" else "store unique ids in var['gene_ids']"
        ),
    )


def _coordinates(adata: AnnData, file: Path) -> np.ndarray:
    where = {"file": file, "field": "obsm['spatial']"}
    if "spatial" not in adata.obsm:
        near = near_name("spatial", adata.obsm)
        named = f"obsm[{near!r}]" if near else _pair_in(adata)
        raise InputError(
            "spot coordinates are missing" + (f"; did you mean {named}?" if named else ""),
            **where,
            fix="store spot centres there, x and y in pixels",
        )
    try:
        coords = np.array(adata.obsm["spatial"], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"spot coordinates are not numbers ({error})", **where) from error
    if coords.shape[1:] != (2,):
        raise InputError(
            "spot coordinates have the wrong shape",
            **where,
            value=coords.shape,
            expected=f"({adata.n_obs}, 2): x and y",
            fix="write one file per slice" if coords.shape[1:] == (3,) else None,
        )
    return coords


def _pair_in(adata: AnnData) -> str:
    """Return the two columns of ``obs`` that may hold x and y; "" where none are called so."""
    by_lower = {str(name).lower(): name for name in adata.obs.columns}
    pairs = ((f"{before}x{after}", f"{before}y{after}") for before, after in AROUND_X)
    found = next((pair for pair in pairs if set(pair) <= set(by_lower)), ())
    return " and ".join(f"obs[{by_lower[name]!r}]" for name in found)


def _off_tissue(adata: AnnData, file: Path, notes: list[str]) -> np.ndarray:
    """Return which spots are marked as not on tissue; a mark that says neither is noted, and its spot stays."""
    if "in_tissue" not in adata.obs:
        return np.zeros(adata.n_obs, dtype=bool)
    marks = tissue_marks(adata.obs["in_tissue"])
    if (unknown := np.isnan(marks)).any():
        first = adata.obs["in_tissue"].iloc[int(unknown.argmax())]
        notes.append(
            f"{file}: obs['in_tissue'] says neither 1 nor 0 of {unknown.sum()} of {adata.n_obs} spots (first: "
            f"{first}): they were not dropped."
        )
    return marks == 0


def _refuse_most_outside(
    image: ImageSource, coords: np.ndarray, inside: np.ndarray, names: pd.Index, file: Path
) -> None:
    """Refuse a picture that misses most spots, but not all of them; patches may be of some spots only."""
    outside = int((~inside).sum())
    if image.side is not None or not 0.5 < outside / len(inside) < 1:
        return
    raise InputError(
        f"most spots, {outside} of {len(inside)}, lie outside the image of {image.width} x {image.height} px "
        f"({image.path.name})",
        file=file,
        field="obsm['spatial']",
        value=str(names[inside.argmin()]),
        fix=_why_outside(image, coords),
    )


def _why_outside(image: ImageSource, coords: np.ndarray) -> str:
    """Guess what went wrong when most spots lie outside the image."""
    finite = coords[np.isfinite(coords).all(axis=1)]
    if image.covers(finite[:, ::-1]).mean() > 0.5:
        return "x and y look swapped"
    if image.covers(np.abs(finite)).mean() > 0.5:
        return "a minus sign stands before x or y, as for plots: give them without, if they count from the upper left"
    reach = float((finite.max(axis=0) / (image.width, image.height)).max())
    if finite.min() >= 0 and reach > 1.5:
        return (
            f"the image looks reduced, since spots reach to {reach:.1f} times its size: give the full-resolution one, "
            "or beside the section the scale of this one (scalefactors: tissue_hires_scalef)"
        )
    return "give the coordinates in full-resolution pixels of this image"
