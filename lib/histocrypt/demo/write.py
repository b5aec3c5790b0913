"""The embedded demo tissue: simulated sections where the right answer, and every planted defect, is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

    from histocrypt.demo.counts import GeneModel, SpotCounts
    from histocrypt.demo.tissue import Tissue

PITCH, DISC, MARGIN = 100, 55, 150  # µm, and pixels: a pixel is 1 µm
REACH = 40  # radius in µm of what a spot's molecules come from: a little more than its disc
SHIFTS = {1: (70.0, -50.0), 4: (-60.0, 80.0)}  # section number from 0: how far its spots are given from the truth, µm
NAN_SECTIONS = (0, 3)
MADE = "made by histocrypt demo-tissue"  # what an image says of its maker
N_OFF, N_SICK = 3, 3  # spots off tissue; spots with NaN, and as many of low depth (fewer where the array is small)


def write_demo(
    folder: str | Path,
    *,
    n_sections: int = 6,
    spots_per_side: int = 14,
    n_genes: int = 240,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Path]:
    """Simulate sections of as many patients and write them as AnnData with whole images.

    Each section is ``S_<k>.h5ad`` of patient ``P_<k>`` with ``S_<k>.png`` (1 µm per pixel) and ``S_<k>_mask.png``, 255
    where tumour is. What is known of the truth is in the file: ``obs`` tumour, tumour_share, nuclear_density (nuclei
    per 1,000 µm²); ``obsm["region_share"]`` (columns in ``uns["demo"]["regions"]``); ``layers["image_signal"]``, the
    log(1 + counts per 10,000) expected from what the image shows alone (constant for the programme OFF);
    ``layers["rate"]``, the expected counts before the noise of counting; ``var`` programme and image_share;
    ``uns["laboratory"]``, the centre that stained the section (counts do not differ between centres);
    ``uns["demo"]["planted"]``, the planted defects (read them with `planted`). Truth refers to where the spots truly
    lie: in the shifted sections ``obsm["spatial"]`` is off by the planted shift.

    Parameters
    ----------
    folder
        Where to write; made where missing.
    n_sections
        Sections, each of another patient.
    spots_per_side
        Spots along the side of the square array, 100 µm apart; those under tissue are kept.
    n_genes
        Genes, at least 40.
    seed
        Same seed, same counts and pixels. A section's pixels depend on nothing but this, its number and the array.
    overwrite
        Replace files of these names that are no demo tissue.

    Returns
    -------
    The ``.h5ad`` files.

    Raises
    ------
    InputError
        If there are too few sections, spots or genes, or a file that is no demo tissue lies where one is written.
    """
    from PIL import Image, PngImagePlugin
    from tqdm.auto import tqdm

    from histocrypt.demo.counts import draw_genes, image_share
    from histocrypt.demo.tissue import TUMOUR, draw_tissue
    from histocrypt.errors import InputError
    from histocrypt.files import atomic_path, claim

    for name, value, least in (
        ("sections", n_sections, 1),
        ("spots_per_side", spots_per_side, 6),
        ("genes", n_genes, 40),
    ):
        if value < least:
            raise InputError(
                "is too small for the demo tissue", field=f"demo.{name}", value=value, expected=f"{least} or more"
            )

    folder, made = Path(folder), PngImagePlugin.PngInfo()
    made.add_text("Software", MADE)
    for k in range(1, n_sections + 1):
        for name in (f"S_{k}.h5ad", f"S_{k}.png", f"S_{k}_mask.png"):
            claim(folder / name, field="FOLDER", mine=is_demo_file, overwrite=overwrite)
    genes = draw_genes(n_genes, np.random.default_rng([seed, 10_000]))
    drawn = []
    for k in tqdm(range(n_sections), desc="demo tissue", unit="section", leave=False, disable=None):
        tissue = draw_tissue(spots_per_side * PITCH, MARGIN, index=k, rng=np.random.default_rng([seed, k]))
        for suffix, pixels in (
            ("", tissue.rgb),
            ("_mask", np.where(tissue.labels == TUMOUR, np.uint8(255), np.uint8(0))),
        ):
            with atomic_path(folder / f"S_{k + 1}{suffix}.png") as temporary:
                Image.fromarray(pixels).save(temporary, compress_level=1, pnginfo=made)
        drawn.append(_section(k, tissue, spots_per_side, genes, np.random.default_rng([seed, k, n_genes])))

    share = image_share([(counts.log_rate[on], counts.image_log_rate[on]) for _, counts, on in drawn])
    written = []
    for k, (adata, _, _) in enumerate(drawn):
        adata.var["image_share"] = share
        adata.uns["demo"]["seed"] = seed
        written.append(folder / f"S_{k + 1}.h5ad")
        with atomic_path(written[-1]) as temporary:
            adata.write_h5ad(temporary)
    return written


def demo_in(folder: Path, *, sections: int, spots_per_side: int, genes: int, seed: int) -> list[Path]:
    """Return the demo tissue's sections in ``folder``, written unless they are there with these settings.

    A folder made with other settings, or by another version of the simulator, is replaced. Parameters and errors are
    those of `write_demo`.
    """
    import shutil

    from histocrypt.files import partial_path, read_json, write_json

    stamp = folder / "demo_tissue.json"
    settings = {"sections": sections, "spots_per_side": spots_per_side, "genes": genes, "seed": seed}
    if not is_demo_in(folder, **settings):
        draft = partial_path(folder)
        shutil.rmtree(draft, ignore_errors=True)
        written = write_demo(draft, n_sections=sections, spots_per_side=spots_per_side, n_genes=genes, seed=seed)
        said = {"settings": {**settings, "simulator": _simulator()}, "sections": [path.name for path in written]}
        write_json(draft / stamp.name, said)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            draft.rename(folder)
        except OSError:  # another process wrote the same tissue meanwhile
            shutil.rmtree(draft, ignore_errors=True)
    return [folder / name for name in read_json(stamp)["sections"]]


def is_demo_in(folder: Path, **settings: int) -> bool:
    """Return whether ``folder`` holds demo tissue of the settings that `demo_in` takes, by this simulator."""
    from histocrypt.files import read_json

    stamp = folder / "demo_tissue.json"
    return stamp.exists() and read_json(stamp).get("settings") == {**settings, "simulator": _simulator()}


def is_demo_file(path: Path) -> bool:
    """Return whether a file says that it is a section, or an image, of the demo tissue."""
    from histocrypt.files import says
    from histocrypt.hdf5 import open_h5

    if path.suffix == ".png":
        return says(path, MADE)
    try:
        with open_h5(path) as file:
            return "uns/demo/planted" in file
    except (OSError, LookupError, ValueError, RuntimeError):
        return False


def _simulator() -> str:
    """Return what tells this version of the simulator's code from others."""
    import hashlib

    code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(code).hexdigest()[:16]


def planted(adata: AnnData) -> dict[str, Any]:
    """Return the planted defects of a demo section as plain Python: what HDF5 turned into arrays are lists again.

    ``shift_um`` is how far the given positions lie from the true ones (x, y); ``off_tissue``, ``nan`` and ``low_depth``
    list barcodes.
    """
    stored = adata.uns["demo"]["planted"]
    out: dict[str, Any] = {"shift_um": [float(v) for v in stored["shift_um"]]}
    return out | {name: [str(v) for v in stored[name]] for name in ("off_tissue", "nan", "low_depth")}


def _section(
    k: int, tissue: Tissue, per_side: int, genes: GeneModel, rng: np.random.Generator
) -> tuple[AnnData, SpotCounts, np.ndarray]:
    """Lay the array over the tissue, draw counts, plant defects; return the section, its counts, those on tissue."""
    import pandas as pd
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from histocrypt.demo.counts import N_FIELDS, draw_counts
    from histocrypt.demo.tissue import BACKGROUND, COARSE, REGIONS, TUMOUR, smooth_field

    side = len(tissue.labels)
    row, column = (axis.ravel() for axis in np.mgrid[:per_side, :per_side])
    where = np.stack([column, row], axis=1) * float(PITCH) + (MARGIN + PITCH / 2)
    share = _share_under(tissue.labels, where, DISC / 2, len(REGIONS))
    bare = np.nonzero(_share_under(tissue.labels, where, DISC, len(REGIONS))[:, BACKGROUND] == 1)[0]
    far = np.hypot(*(where[bare] - side / 2).T).argsort()[::-1][: 3 * N_OFF]
    stray = np.sort(rng.permutation(bare[far])[:N_OFF])
    listed = np.union1d(np.nonzero(share[:, BACKGROUND] < 0.5)[0], stray)
    where, share, row, column = where[listed], share[listed], row[listed], column[listed]
    barcodes = np.array([f"{c}x{r}" for c, r in zip(column, row, strict=True)])
    off = np.isin(listed, stray)
    n, on = len(listed), np.nonzero(~off)[0]

    drivers, density = _drivers(tissue, where)
    drivers[off] = drivers[on].mean(0)  # what has diffused over the glass is the section's mean
    fields = np.stack([smooth_field(side, 260, rng) for _ in range(N_FIELDS)])
    fields = fields[:, (where[:, 1] // COARSE).astype(int), (where[:, 0] // COARSE).astype(int)].T
    fields = (fields - fields[on].mean(0)) / fields[on].std(0)
    few = min(N_SICK, max(1, len(on) // 12))
    sick = rng.permutation(on)[: 2 * few]
    low, nan = np.sort(sick[:few]), np.sort(sick[few:] if k in NAN_SECTIONS else sick[:0])
    depth = np.full(n, np.nan)
    depth[off], depth[low] = rng.uniform(350, 700, off.sum()), rng.uniform(25, 70, few)
    counts = draw_counts(genes, drivers, fields, drivers[:, 5], rng, depth=depth)

    measured = counts.counts.copy()
    for spot in nan:
        measured[spot, rng.permutation(len(genes.ids))[: max(1, len(genes.ids) // 10)]] = np.nan
    shift = SHIFTS.get(k, (0.0, 0.0))
    section, patient = f"S_{k + 1}", f"P_{k + 1}"
    obs = pd.DataFrame(
        {
            "array_row": row,
            "array_col": column,
            "in_tissue": np.ones(n, int),
            "section": section,
            "patient": patient,
            "tumour": share[:, TUMOUR] >= 0.5,
            "tumour_share": share[:, TUMOUR],
            "nuclear_density": density,
        },
        index=pd.Index(barcodes, name="barcode"),
    )
    var = pd.DataFrame(
        {"symbol": genes.symbols, "programme": genes.programme}, index=pd.Index(genes.ids, name="gene_id")
    )
    layers = {"image_signal": counts.image_signal, "rate": counts.rate.astype(np.float32)}
    adata = AnnData(csr_matrix(measured), obs=obs, var=var, layers=layers)
    adata.obsm["spatial"] = where + np.asarray(shift)
    adata.obsm["region_share"] = share.astype(np.float32)
    adata.uns = {
        "section": section,
        "patient": patient,
        "laboratory": tissue.centre,
        "dataset": "demo tissue",
        "technology": f"demo lattice, {DISC} um spots, {PITCH} um pitch",
        "spatial": {section: _spatial(tissue.rgb, f"{section}.png")},
        "demo": {
            "regions": list(REGIONS),
            "centre": tissue.centre,
            "stain": tissue.stain,
            "stain_intensity": tissue.intensity,
            "mask_path": f"{section}_mask.png",
            "planted": {
                "shift_um": np.asarray(shift),
                "off_tissue": barcodes[off].astype(object),
                "nan": barcodes[nan].astype(object),
                "low_depth": barcodes[low].astype(object),
            },
        },
    }
    return adata, counts, on


def _share_under(labels: np.ndarray, where: np.ndarray, radius: float, n_labels: int) -> np.ndarray:
    """Share of each label under discs of ``radius`` px at ``where`` (n, 2), (n, n_labels)."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.hypot(x, y) <= radius
    column, row = np.rint(where).astype(int).T
    under = labels[row[:, None] + y[disc], column[:, None] + x[disc]]
    return np.stack([(under == label).mean(1) for label in range(n_labels)], axis=1)


def _drivers(tissue: Tissue, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what drives expression at ``where``: (n, 8) as in DRIVERS, and nuclei per 1,000 µm² (n,).

    The constants are the same for every section, so that a look means the same expression in every patient.
    """
    from scipy.spatial import cKDTree

    from histocrypt.demo.tissue import BACKGROUND, REGIONS

    share = _share_under(tissue.labels, where, REACH, len(REGIONS))
    regions = share[:, :BACKGROUND] / np.maximum(share[:, :BACKGROUND].sum(1, keepdims=True), 1e-9)
    near = cKDTree(tissue.nuclei.xy).query_ball_point(where, REACH)
    area = np.pi * tissue.nuclei.long * tissue.nuclei.short
    crowd = np.array([len(spots) for spots in near]) * 1000 / (np.pi * REACH**2)
    size = np.array([area[spots].mean() if spots else 30.0 for spots in near])
    column, row = np.rint(where).astype(int).T
    density = np.clip((crowd - 5.0) / 2.5, -2, 2)
    swollen = np.clip((np.log(size) - np.log(45.0)) / 0.45, -2.5, 2.5)
    return np.column_stack([regions, density, swollen, np.clip(tissue.grade[row, column], -2.5, 2.5)]), crowd


def _spatial(rgb: np.ndarray, image: str) -> dict[str, Any]:
    """Return the scanpy/squidpy entry of ``uns["spatial"]``."""
    from PIL import Image

    height, width = rgb.shape[:2]
    scale = min(1.0, 512 / max(height, width))
    small = Image.fromarray(rgb).resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    return {
        "images": {"hires": np.asarray(small)},
        "scalefactors": {
            "tissue_hires_scalef": scale,
            "spot_diameter_fullres": float(DISC),
            "fiducial_diameter_fullres": float(DISC),
        },
        "metadata": {
            "source_image_path": image,
            "pixel_size_um": 1.0,
            "inter_spot_um": float(PITCH),
            "spot_diameter_um": float(DISC),
            "fullres_width": width,
            "fullres_height": height,
        },
    }
