"""Space Ranger's output: counts, spot positions and images of one Visium section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histocrypt.atomic import read_json
from histocrypt.errors import InputError
from histocrypt.sections.image import ImageSource, open_image
from histocrypt.sections.resolution import TOLERANCE, VISIUM_PITCH_UM, spot_pitch_px
from histocrypt.sections.scaled_image import ScaledImage
from histocrypt.sections.section import Loaded, SectionFiles
from histocrypt.sections.space_ranger_tables import (
    SCALE_FACTORS,
    SpaceRangerFolder,
    read_matrix,
    read_positions,
    space_ranger_folder,
)

if TYPE_CHECKING:
    import pandas as pd

SPOT_AREA_UM = 65.0
"""What ``spot_diameter_fullres`` spans by 10x Genomics' definition; the printed spot is `SPOT_UM` wide."""
SPOT_UM = 55.0
IMAGE_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".mrxs", ".jpg", ".jpeg", ".png")
SMALL_IMAGES = (("hires", "tissue_hires_image.png"), ("lowres", "tissue_lowres_image.png"))
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
HD = re.compile(r"^square_\d+um$")
SAME_SIZE = 0.01
"""Largest relative difference in size of two pictures of one slide: small images are rounded to whole pixels."""


def is_space_ranger(folder: Path) -> bool:
    """Return whether a folder, or its ``outs``, is Space Ranger's output."""
    return space_ranger_folder(folder) is not None or _is_hd(folder)


def space_ranger_sections(folder: Path) -> list[SectionFiles]:
    """Return the one section of a Space Ranger folder; its id is the folder's name (of ``outs``: the parent's)."""
    if _is_hd(folder):
        msg = "is Visium HD, whose bins are not supported"
        raise InputError(msg, file=folder, expected="Visium with spots of 55 um, 100 um apart")
    root = space_ranger_folder(folder).root
    name = root.absolute().parent.name if root.name == "outs" else root.absolute().name
    return [SectionFiles(UNSAFE.sub("-", name), "space_ranger", root)]


def space_ranger_inputs(files: SectionFiles) -> list[Path]:
    """Return the files that a section is read from, as far as names tell."""
    found = space_ranger_folder(files.path)
    if found is None:
        return [files.path]
    matrices = [
        path for matrix in found.matrices for path in ([matrix] if matrix.is_file() else sorted(matrix.glob("*")))
    ]
    small = [found.spatial / name for name in (SCALE_FACTORS, *(name for _, name in SMALL_IMAGES))]
    images = [files.image] if files.image else _siblings(found.root, files.id)
    return sorted({*matrices, *found.positions, *(path for path in (*small, *images) if path.is_file())})


def load_space_ranger(files: SectionFiles) -> Loaded:
    """Read counts, positions, scale factors and the best image at hand of one section."""
    found = space_ranger_folder(files.path)
    if found is None:
        msg = "is no Space Ranger output"
        raise InputError(msg, file=files.path, expected="spatial/ and filtered_feature_bc_matrix.h5")
    adata, read = read_matrix(found)
    positions, positions_path = read_positions(found)
    _join(adata, positions, positions_path)
    _check_lattice(adata, positions_path)
    factors, factors_path = _scale_factors(found)
    um_per_px, field = None, ""
    if "spot_diameter_fullres" in factors:
        um_per_px = SPOT_AREA_UM / factors["spot_diameter_fullres"]
        field = f"{factors_path.name}: spot_diameter_fullres ({SPOT_AREA_UM:g} um)"
    image, image_files, notes = _image(files, found, factors)
    adata.uns["spatial"] = {
        files.id: {
            "scalefactors": dict(factors),
            "metadata": {
                "spot_diameter_um": SPOT_UM,
                "inter_spot_um": VISIUM_PITCH_UM,
                "lattice": "hexagonal",
                "neighbours": 6,
            },
        }
    }
    loaded = Loaded(
        adata,
        image,
        None,
        [*read, positions_path, *([factors_path] if factors else []), *image_files],
        um_per_px=um_per_px,
        um_field=field,
        pitch_um=VISIUM_PITCH_UM,
        technology="Visium",
        image_note="" if image is not None else f"image is missing: none in {found.root} and none in spatial/",
        notes=notes,
    )
    if files.um_per_px is None:
        _check_pitch(loaded, factors_path)
    if isinstance(image, ScaledImage):
        known = files.um_per_px or um_per_px or VISIUM_PITCH_UM / (spot_pitch_px(loaded) or np.nan)
        loaded.notes.append(
            f"{image.path}: a reduced image of {known / image.scale:.1f} um per pixel stands for the full-resolution "
            f"one ({known:.2f} um per pixel): tiles hold no finer detail."
        )
    return loaded


def _is_hd(folder: Path) -> bool:
    """Return whether a folder is of Visium HD: square bins of a few micrometres and no spots."""
    if HD.match(folder.absolute().name):
        return True
    return any((root / "binned_outputs").is_dir() for root in (folder, folder / "outs"))


def _join(adata: Any, positions: pd.DataFrame, path: Path) -> None:
    """Give every spot of the matrix its place, by barcode."""
    missing = adata.obs_names.difference(positions.index)
    if len(missing):
        suffixed = f"{missing[0]}-1" in positions.index or missing[0].removesuffix("-1") in positions.index
        msg = f"{len(missing)} of {adata.n_obs} spots of the count matrix have no position"
        hint = "barcodes end in -1 in one file only" if suffixed else "take both from one Space Ranger run"
        raise InputError(msg, file=path, field="barcode", value=str(missing[0]), fix=hint)
    own = positions.loc[adata.obs_names]
    adata.obs = own[["in_tissue", "array_row", "array_col"]].copy()
    adata.obs.index.name = "barcode"
    adata.obsm["spatial"] = own[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)  # x is the column


def _check_lattice(adata: Any, path: Path) -> None:
    """Refuse an array index that is not Visium's, where row and column are both even or both odd."""
    odd = (adata.obs["array_row"] + adata.obs["array_col"]) % 2 == 1
    if odd.any():
        msg = f"array is not the hexagonal one of Visium: row + column is odd for {int(odd.sum())} of {len(odd)} spots"
        raise InputError(msg, file=path, field="array_row, array_col", value=str(odd.idxmax()))


def _scale_factors(found: SpaceRangerFolder) -> tuple[dict[str, float], Path]:
    """Return the numbers of the scale factors' file, empty where there is none."""
    path = found.spatial / SCALE_FACTORS
    if not path.is_file():
        return {}, path
    content = read_json(path)
    if not isinstance(content, dict):
        msg = "holds no scale factors"
        raise InputError(msg, file=path, expected='{"spot_diameter_fullres": ..., "tissue_hires_scalef": ...}')
    if "bin_size_um" in content:
        msg = "is Visium HD, whose bins are not supported"
        raise InputError(msg, file=path, field="bin_size_um", value=content["bin_size_um"])
    factors = {}
    for name in ("spot_diameter_fullres", "fiducial_diameter_fullres", "tissue_hires_scalef", "tissue_lowres_scalef"):
        value = content.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
            msg = "scale factor is not a positive number"
            raise InputError(msg, file=path, field=name, value=value)
        factors[name] = float(value)
    return factors, path


def _check_pitch(loaded: Loaded, path: Path) -> None:
    """Refuse a spot diameter that contradicts the distance of neighbouring spots."""
    pitch_px = spot_pitch_px(loaded)
    if loaded.um_per_px is None or pitch_px is None:
        return
    estimate = VISIUM_PITCH_UM / pitch_px
    if abs(loaded.um_per_px / estimate - 1) > TOLERANCE:
        msg = (
            f"spot diameter makes {loaded.um_per_px:.4g} um/px, but neighbouring spots lie {pitch_px:.1f} px apart, "
            f"{VISIUM_PITCH_UM:g} um on a Visium slide, which makes {estimate:.4g} um/px"
        )
        raise InputError(msg, file=path, field="spot_diameter_fullres", fix="correct it, or give `um_per_px:`")


def _image(
    files: SectionFiles, found: SpaceRangerFolder, factors: dict[str, float]
) -> tuple[ImageSource | None, list[Path], list[str]]:
    """Return the full-resolution image where there is one, else a reduced one, with its scale factor."""
    full = _sibling(found.root, files.id) if files.image is None else None
    small = _small_images(found, factors, needed=files.image is None and full is None)
    full_size = small[0][2] if small else None
    given = files.image
    if given is not None and not given.exists():
        msg = "image as given is missing"
        raise InputError(msg, file=found.root, field="image", value=str(given))
    if given is not None:
        for path, scale, _ in small:
            if path.samefile(given):
                return ScaledImage(open_image(path), scale), [path], []
    path = given or full
    if path is not None:
        image = open_image(path)
        if full_size is not None and not _alike((image.width, image.height), full_size):
            msg = "image is not the one that the coordinates refer to"
            raise InputError(
                msg, file=path, value=f"{image.width} x {image.height} px",
                expected=f"about {full_size[0]:.0f} x {full_size[1]:.0f} px by {small[0][0].name} and its scale factor",
                fix="give the image that Space Ranger was run on as `image:`",
            )  # fmt: skip
        return image, [path], []
    if small:
        path, scale, _ = small[0]
        return ScaledImage(open_image(path), scale), [path], []
    return None, [], []


def _small_images(
    found: SpaceRangerFolder, factors: dict[str, float], *, needed: bool
) -> list[tuple[Path, float, tuple[float, float]]]:
    """Return reduced images: file, scale, and the full-resolution size that both imply; these must agree."""
    small = []
    for name, file in SMALL_IMAGES:
        path, scale = found.spatial / file, factors.get(f"tissue_{name}_scalef")
        if not path.is_file():
            continue
        if scale is None:
            if needed and not small:
                msg = f"scale factor of {file} is missing, so that its pixels cannot be joined to spots"
                raise InputError(msg, file=found.spatial / SCALE_FACTORS, field=f"tissue_{name}_scalef")
            continue
        if scale > 1:
            msg = "scale factor enlarges"
            raise InputError(msg, file=found.spatial / SCALE_FACTORS, field=f"tissue_{name}_scalef", value=scale,
                             expected="at most 1")  # fmt: skip
        image = open_image(path)
        small.append((path, scale, (image.width / scale, image.height / scale)))
    if len(small) == 2 and not _alike(small[0][2], small[1][2]):
        one, two = small
        msg = (
            f"image has another size than its scale factor says: it makes a slide of {one[2][0]:.0f} x {one[2][1]:.0f} "
            f"px, where {two[0].name} makes {two[2][0]:.0f} x {two[2][1]:.0f} px"
        )
        raise InputError(msg, file=one[0], fix="take spatial/ whole from one Space Ranger run")
    return small


def _alike(one: tuple[float, float], two: tuple[float, float]) -> bool:
    return all(abs(a / b - 1) <= SAME_SIZE for a, b in zip(one, two, strict=True))


def _siblings(root: Path, section: str) -> list[Path]:
    """Return the images that lie in the folder, and beside an ``outs`` under its section's name."""
    found = [path for path in sorted(root.glob("[!.]*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if root.name == "outs" and section:
        beside = [root.parent / f"{stem}{suffix}" for stem in ("image", section) for suffix in IMAGE_SUFFIXES]
        found += [path for path in beside if path.is_file()]
    return found


def _sibling(root: Path, section: str) -> Path | None:
    """Return the one image that can only be the full-resolution one; two candidates are an error."""
    found = _siblings(root, section)
    if len(found) > 1:
        msg = "folder holds several images that may be the full-resolution one"
        raise InputError(msg, file=root, value=[path.name for path in found], fix="name one as `image:` in the study")
    return found[0] if found else None
