"""Breaks small sections of every format in thousands of ways, reads each, and counts what became of it.

    python benchmarks/fuzz.py [--seconds 300] [--seed 0] [--only READER] [--keep FOLDER]

A sound section of each format is made, then changed: bytes of any file, cells of its tables, values of its JSON, data
sets of its HDF5 files (all by chance), and, each once, whole columns or facts in a way that tools and people do. Every
changed section is read by a process of its own, with a limit of time and memory. What is read is set beside what the
sound section holds:

    refused      one sentence
    as it was    ids, places, counts and resolution are the sound ones
    said         something differs, and a note says so
    SILENT       something differs that a reader could have known, and nobody says so
    unknowable   bytes changed inside numbers that the format does not protect: no reader can know
    TRACEBACK, HANG, MEMORY

It ends with exit code 1 where there is one of the four in capitals; ``--seed`` and ``--only`` make a find again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
from PIL import Image

from histocrypt.errors import InputError
from histocrypt.options import SectionSource
from histocrypt.sections.read import find_sections, read_section

sys.modules["tests"] = tests = ModuleType("tests")  # ours, wherever others of that name are installed
tests.__path__ = [str(Path(__file__).parents[1] / "tests")]
write_hackathon = import_module("tests.hackathon_file").write_hackathon
write_space_ranger = import_module("tests.space_ranger").write_space_ranger
write_tiny_section = import_module("tests.tiny_section").write_tiny_section
write_visium_hd = import_module("tests.visium_hd").write_visium_hd
write_xenium = import_module("tests.xenium").write_xenium

LIMIT_S, LIMIT_GIB = 20, 4
BAD = ("SILENT", "TRACEBACK", "HANG", "MEMORY")
ODD_CELLS = ("", "nan", "NA", "-1", "1e400", "abc", "=1+1", "7,5", "１２", "true", " 3 ", "0x10", "\x00", "9" * 40, '"')
ODD_JSON: tuple[Any, ...] = (None, "", "nan", -1, 0, 1e308, 1e-308, True, [], {}, "0.5", [1], float("nan"))

Read = dict[str, Any]
"""What matters of the sections of a path: by section its patient, resolution, and spots with place and counts."""


# Sound sections, one of each format and kind of image.


def h5ad(folder: Path) -> Path:
    """Write a section with a whole image."""
    return write_tiny_section(folder)


def space_ranger(folder: Path) -> Path:
    """Write a run of Space Ranger 2."""
    return write_space_ranger(folder / "run")


def space_ranger_1(folder: Path) -> Path:
    """Write a run of Space Ranger 1, its matrix as text, with reduced images alone."""
    return write_space_ranger(folder / "run", positions="v1", matrix="mtx.gz", image=False)


def hackathon(folder: Path) -> Path:
    """Write a hackathon file."""
    return write_hackathon(folder / "slides.h5", train=2, n_side=4)


def st_array(folder: Path) -> Path:
    """Write an ST array folder: a file of counts and a picture for each spot."""
    import anndata

    file = write_tiny_section(folder / "made")
    adata = anndata.read_h5ad(file)
    picture = Image.open(file.with_suffix(".png"))
    for name in ("counts", "images"):
        (folder / "st" / name / "BC1").mkdir(parents=True)
    rows = zip(adata.obs_names, adata.X.toarray(), adata.obsm["spatial"].astype(int), strict=True)
    for barcode, count, (x, y) in rows:
        stem = "A_" + barcode.replace("x", "_")
        np.savez(folder / f"st/counts/BC1/{stem}.npz", count=count, pixel=(x, y), patient=["BC1"])
        picture.crop((x - 20, y - 20, x + 20, y + 20)).save(folder / f"st/images/BC1/{stem}.jpg")
    (folder / "st" / "gene_list.txt").write_text("".join(f"{gene}\n" for gene in adata.var_names))
    shutil.rmtree(folder / "made")
    return folder / "st"


def hest(folder: Path) -> Path:
    """Write a section as HEST-1k has it, with patches."""
    import anndata

    file = write_tiny_section(folder / "made")
    with Image.open(file.with_suffix(".png")) as image:
        pixels = np.asarray(image)
    adata = anndata.read_h5ad(file)
    del adata.uns["spatial"], adata.uns["technology"], adata.obs["patient"], adata.obs["section"]
    for name in ("st", "patches", "metadata"):
        (folder / "hest" / name).mkdir(parents=True)
    adata.write_h5ad(folder / "hest/st/TENX1.h5ad")
    corners = adata.obsm["spatial"].astype(int) - 20
    with h5py.File(folder / "hest/patches/TENX1.h5", "w") as stored:
        stored["img"] = np.stack([pixels[y : y + 40, x : x + 40] for x, y in corners])
        stored["coords"], stored["barcode"] = corners, np.array([[name.encode()] for name in adata.obs_names])
    about = {"patient": "P1", "pixel_size_um_estimated": 4.01, "st_technology": "Spatial Transcriptomics"}
    (folder / "hest/metadata/TENX1.json").write_text(json.dumps(about))
    shutil.rmtree(folder / "made")
    return folder / "hest"


def tiff(folder: Path) -> Path:
    """Write a section whose picture is a tiled TIFF."""
    import tifffile

    file = write_tiny_section(folder)
    picture = file.with_suffix(".png")
    with Image.open(picture) as image:
        tifffile.imwrite(
            folder / "A.tif",
            np.asarray(image),
            tile=(128, 128),
            photometric="rgb",
            resolution=(2500, 2500),
            resolutionunit="CENTIMETER",
        )
    picture.unlink()
    return file


def visium_hd(folder: Path) -> Path:
    """Write a run of Visium HD, its bins of 16 um."""
    return write_visium_hd(folder / "hd", sides=(16,))


def xenium(folder: Path) -> Path:
    """Write a run of Xenium with its H&E picture and alignment."""
    return write_xenium(folder / "xenium", cells="csv")


def zarr(folder: Path) -> Path:
    """Write a section as a Zarr store."""
    import anndata

    file = write_tiny_section(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata.read_h5ad(file).write_zarr(folder / "A.zarr")
    file.unlink()
    return folder / "A.zarr"


READERS: dict[str, Callable[[Path], Path]] = {
    maker.__name__: maker
    for maker in (h5ad, zarr, tiff, hest, space_ranger, space_ranger_1, visium_hd, xenium, hackathon, st_array)
}


# Changes by chance. Each takes a file and says what it did; None: it does not fit this file.


def bytes_changed(file: Path, rng: np.random.Generator) -> str:
    """Change, cut, fill, repeat or swap bytes."""
    content = bytearray(file.read_bytes())
    how, size = rng.integers(5), max(1, len(content))
    start = int(rng.integers(size))
    length = int(min(size - start, rng.integers(1, 1 + min(size, 4096))))
    if how == 0:
        for place in rng.integers(size, size=int(rng.integers(1, 9))):
            content[place] ^= int(rng.integers(1, 256))
    elif how == 1:
        del content[start:]
    elif how == 2:
        content[start : start + length] = bytes(length)
    elif how == 3:
        content[start:start] = content[start : start + length]
    else:
        content += rng.bytes(length)
    file.write_bytes(bytes(content))
    return f"bytes {('changed', 'cut', 'zeroed', 'repeated', 'appended')[how]} at {start}"


def cell_changed(file: Path, rng: np.random.Generator) -> str | None:
    """Put something odd into one cell of a table, or lose, double or cut a line."""
    if file.suffix not in {".csv", ".tsv"}:
        return None
    lines, comma = file.read_text().split("\n"), "\t" if file.suffix == ".tsv" else ","
    line, how = int(rng.integers(max(1, len(lines) - 1))), rng.integers(4)
    if how == 0:
        cells, odd = lines[line].split(comma), str(rng.choice(ODD_CELLS))
        place = int(rng.integers(len(cells)))
        what = f"cell {place} of line {line} is {odd!r}, was {cells[place]!r}"
        cells[place] = odd
        lines[line] = comma.join(cells)
    elif how == 1:
        what, lines[line] = f"line {line} doubled", f"{lines[line]}\n{lines[line]}"
    elif how == 2:
        what = f"line {line} cut"
        lines[line] = lines[line][: len(lines[line]) // 2]
    else:
        what = f"line {line} lost"
        del lines[line]
    file.write_text("\n".join(lines))
    return what


def json_changed(file: Path, rng: np.random.Generator) -> str | None:
    """Put something odd in the place of one value, or lose it."""
    if file.suffix != ".json":
        return None
    content = json.loads(file.read_text())
    name, odd = str(rng.choice(list(content))), ODD_JSON[rng.integers(len(ODD_JSON))]
    if rng.integers(4):
        content[name] = odd
    else:
        del content[name]
        odd = "lost"
    file.write_text(json.dumps(content))
    return f"{name} is {odd!r}"


def dataset_changed(file: Path, rng: np.random.Generator) -> str | None:
    """Replace, cut, lose, retype or refill a data set or attribute of an HDF5 file."""
    if not h5py.is_hdf5(file):
        return None
    with h5py.File(file, "r+") as content:
        names: list[str] = []
        content.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name, how = str(rng.choice(names)), int(rng.integers(8))
        data, attributes = content[name][()], dict(content[name].attrs)
        what = f"{name} {('lost', 'cut', 'of text', 'of floats', 'NaN', 'negative', 'a group', 'bare')[how]}"
        del content[name]
        if how == 0:
            return what
        if how == 6:
            content.create_group(name)
            return what
        array = np.asarray(data)
        if how == 1 and array.ndim:
            array = array[:-1]
        elif how == 2:
            array = np.full(array.shape, b"text")
        elif array.dtype.kind in "iuf" and how in (3, 4, 5):
            array = array.astype(np.float64) + {3: 0.5, 4: 0, 5: 0}[how]
            if how == 4:
                array.flat[: 1 + array.size // 7] = np.nan
            elif how == 5:
                array = -array - 1
        elif how != 7:
            return None
        content[name] = array if array.dtype.kind != "O" else data
        if how != 7:
            content[name].attrs.update(attributes)
    return what


BY_CHANCE = (bytes_changed, cell_changed, json_changed, dataset_changed)


# What tools and people do: the whole of a column or a fact. Each says which readers it is for.


def _edited(edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a change of the folder's .h5ad by way of anndata."""

    def change(folder: Path) -> None:
        import anndata

        (file,) = folder.glob("*.h5ad")
        adata = anndata.read_h5ad(file)
        adata = edit(adata) or adata
        adata.write_h5ad(file)

    return change


def _places(matrix: Any) -> Callable[[Path], None]:
    """Return a change of all places: x, y times a 2 x 2 matrix, about the middle of the picture."""

    def edit(adata: Any) -> None:
        places = adata.obsm["spatial"]
        middle = (places.max(axis=0) + places.min(axis=0)) / 2
        adata.obsm["spatial"] = (places - middle) @ np.array(matrix, dtype=float) + middle

    return _edited(edit)


def _table(pattern: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a change of a table below the folder by way of pandas."""

    def change(folder: Path) -> None:
        import pandas as pd

        (file,) = folder.rglob(pattern)
        separator = "\t" if file.suffix == ".tsv" else ","
        edit(pd.read_csv(file, sep=separator)).to_csv(file, sep=separator, index=False)

    return change


def _factors(**values: Any) -> Callable[[Path], None]:
    """Return a change of Space Ranger's scale factors: a function of the value, or another one."""

    def change(folder: Path) -> None:
        (file,) = folder.rglob("scalefactors_json.json")
        content = json.loads(file.read_text())
        for name, value in values.items():
            content[name] = value(content[name]) if callable(value) else value
        file.write_text(json.dumps(content))

    return change


def _alignment(edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a change of Xenium's alignment matrix."""

    def change(folder: Path) -> None:
        (file,) = folder.rglob("*alignment.csv")
        np.savetxt(file, edit(np.loadtxt(file, delimiter=",")), delimiter=",")

    return change


def _metadata(**values: Any) -> Callable[[Path], None]:
    def edit(adata: Any) -> None:
        adata.uns["spatial"]["A"]["metadata"].update(values)

    return _edited(edit)


def _picture(turn: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a change of the folder's picture."""

    def change(folder: Path) -> None:
        (file,) = folder.rglob("*.png") if not list(folder.rglob("image.tif")) else folder.rglob("image.tif")
        with Image.open(file) as image:
            turned = turn(image.copy())
        turned.save(file)

    return change


def _swap(one: str, two: str) -> Callable[[Any], Any]:
    return lambda table: table.rename(columns={one: two, two: one})


def _set(adata: Any, **columns: Any) -> None:
    for name, values in columns.items():
        adata.obs[name] = values


def _scaled_counts(factor: float) -> Callable[[Path], None]:
    def edit(adata: Any) -> None:
        adata.X = adata.X * np.float32(factor)

    return _edited(edit)


def _logged(adata: Any) -> None:
    adata.X = adata.X.log1p()


def _layered(adata: Any) -> None:
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()


def _raw(adata: Any) -> None:
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()


def _antibodies(adata: Any) -> None:
    adata.var["feature_types"] = ["Gene Expression"] * 25 + ["Antibody Capture"] * 5


def _two_patients(adata: Any) -> None:
    _set(adata, patient=["P1"] * 18 + ["P2"] * 18)


def _two_libraries(adata: Any) -> None:
    _set(adata, library_id=["A"] * 18 + ["B"] * 18)
    adata.uns["spatial"]["B"] = adata.uns["spatial"]["A"]


def _twice(adata: Any) -> None:
    adata.obs_names = ["same"] * adata.n_obs


PLACES = "tissue_positions.csv"
BY_PEOPLE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "x and y swapped": ("h5ad", _places([[0, 1], [1, 0]])),
    "places mirrored": ("h5ad", _places([[-1, 0], [0, 1]])),
    "places turned by 90": ("h5ad", _places([[0, 1], [-1, 0]])),
    "places halved": ("h5ad", _places([[0.5, 0], [0, 0.5]])),
    "places in micrometres": ("h5ad", _places([[4, 0], [0, 4]])),
    "places far outside": ("h5ad", _edited(lambda a: a.obsm.update(spatial=a.obsm["spatial"] + 10_000))),
    "places of text": ("h5ad", _edited(lambda a: a.obsm.update(spatial=a.obsm["spatial"].astype(str).astype("S")))),
    "resolution doubled": ("h5ad", _metadata(pixel_size_um=8.0)),
    "resolution in nanometres": ("h5ad", _metadata(pixel_size_um=4000.0)),
    "resolution negative": ("h5ad", _metadata(pixel_size_um=-4.0)),
    "resolution of text": ("h5ad", _metadata(pixel_size_um="4 um")),
    "size of another picture": ("h5ad", _metadata(fullres_width=999, fullres_height=999)),
    "counts halved": ("h5ad", _scaled_counts(0.5)),
    "counts negative": ("h5ad", _scaled_counts(-1)),
    "counts logarithmic": ("h5ad", _edited(_logged)),
    "counts in a layer": ("h5ad", _edited(_layered)),
    "counts in raw": ("h5ad", _edited(_raw)),
    "antibodies among genes": ("h5ad", _edited(_antibodies)),
    "two patients": ("h5ad", _edited(_two_patients)),
    "two libraries": ("h5ad", _edited(_two_libraries)),
    "one barcode for all": ("h5ad", _edited(_twice)),
    "rows in another order": ("h5ad", _edited(lambda a: a[::-1].copy())),
    "genes in another order": ("h5ad", _edited(lambda a: a[:, ::-1].copy())),
    "picture halved": ("h5ad", _picture(lambda image: image.resize((image.width // 2, image.height // 2)))),
    "picture grey": ("h5ad", _picture(lambda image: image.convert("L"))),
    "picture of one colour": ("h5ad", _picture(lambda image: image.point(lambda _: 240))),
    "genes named twice": ("h5ad", _edited(lambda a: setattr(a, "var_names", ["G"] * a.n_vars))),
    "counts of ones": ("h5ad", _edited(lambda a: a.X.data.fill(1))),
    "counts scaled": ("h5ad", _edited(lambda a: setattr(a, "X", a.X.toarray() - a.X.mean()))),
    "picture inverted": ("h5ad", _picture(lambda image: image.point(lambda value: 255 - value))),
    "bins of another size": ("visium_hd", _factors(bin_size_um=8.0)),
    "resolution of HD doubled": ("visium_hd", _factors(microns_per_pixel=1.0)),
    "resolution of HD lost": ("visium_hd", _factors(microns_per_pixel=None)),
    "cells in millimetres": (
        "xenium",
        _table("cells.csv", lambda t: t.assign(x_centroid=t["x_centroid"] / 1000, y_centroid=t["y_centroid"] / 1000)),
    ),
    "cells in pixels": (
        "xenium",
        _table(
            "cells.csv", lambda t: t.assign(x_centroid=t["x_centroid"] / 0.2125, y_centroid=t["y_centroid"] / 0.2125)
        ),
    ),
    "cells x and y swapped": ("xenium", _table("cells.csv", _swap("x_centroid", "y_centroid"))),
    "cells without a name": ("xenium", _table("cells.csv", lambda t: t.assign(cell_id=""))),
    "alignment the other way": ("xenium", _alignment(np.linalg.inv)),
    "alignment transposed": ("xenium", _alignment(np.transpose)),
    "alignment of nothing": ("xenium", _alignment(np.zeros_like)),
    "pixel columns swapped": ("space_ranger", _table(PLACES, _swap("pxl_row_in_fullres", "pxl_col_in_fullres"))),
    "array columns swapped": ("space_ranger", _table(PLACES, _swap("array_row", "array_col"))),
    "in_tissue turned round": ("space_ranger", _table(PLACES, lambda t: t.assign(in_tissue=1 - t["in_tissue"]))),
    "barcodes without -1": ("space_ranger", _table(PLACES, lambda t: t.assign(barcode=t["barcode"].str[:-2]))),
    "barcodes of a neighbour": ("space_ranger", _table(PLACES, lambda t: t.assign(barcode=np.roll(t["barcode"], 1)))),
    "lines in another order": ("space_ranger", _table(PLACES, lambda t: t.sample(frac=1, random_state=0))),
    "places of the reduced image": (
        "space_ranger",
        _table(
            PLACES,
            lambda t: t.assign(
                pxl_row_in_fullres=t["pxl_row_in_fullres"] / 2, pxl_col_in_fullres=t["pxl_col_in_fullres"] / 2
            ),
        ),
    ),
    "spot diameter doubled": ("space_ranger", _factors(spot_diameter_fullres=lambda value: 2 * value)),
    "scale factors of another run": ("space_ranger", _factors(tissue_hires_scalef=0.1)),
    "scale factors of the reduced image": (
        "space_ranger_1",
        _factors(tissue_hires_scalef=1.0, tissue_lowres_scalef=0.5),
    ),
    "full image is the reduced one": (
        "space_ranger",
        _picture(lambda image: image.resize((image.width // 2, image.height // 2))),
    ),
    "full image turned": ("space_ranger", _picture(lambda image: image.transpose(3))),
}


# Reading, and judging.


def read_all(path: Path) -> Read:
    """Read every section of a path, a tile of each included."""
    sections: Read = {"notes": [], "sections": {}}
    for files in find_sections(SectionSource(path=str(path))):
        section = read_section(files, require_patient=False)
        x, y = np.rint(section.coords[0]).astype(int)
        section.picture().read_region(int(x) - 20, int(y) - 20, 40, 40)
        totals = np.asarray(section.adata.X.sum(axis=1)).ravel().astype(float)
        for name in set(section.adata.obsm) - {"spatial"}:  # what stands in the place of counts
            totals += np.asarray(section.adata.obsm[name], dtype=float).round(9) @ np.arange(
                1, 1 + section.adata.obsm[name].shape[1]
            )
        spots = zip(section.adata.obs_names, section.coords.round(3).tolist(), totals.tolist(), strict=True)
        sections["notes"] += [note.replace(str(path.parent), "") for note in section.notes]
        sections["sections"][section.id] = {
            "patient": section.patient,
            "um_per_px": round(section.um_per_px, 6),
            "picture": section.picture().content_hash(),
            "genes": sorted(map(str, section.genes)),
            "spots": {str(name): [place, total] for name, place, total in spots},
        }
    return sections


def attempt(path: Path, answer: Any) -> None:
    """Read a path in a process of its own and send back what became of it."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_GIB * 2**30,) * 2)
    warnings.simplefilter("ignore")
    sys.stderr = sys.stdout = Path("/dev/null").open("w")
    try:
        result = ("read", read_all(path))
    except InputError as error:
        result = ("refused", str(error))
    except MemoryError:
        result = ("MEMORY", f"more than {LIMIT_GIB} GiB")
    except BaseException:  # noqa: BLE001  that is what is looked for
        result = ("TRACEBACK", traceback.format_exc())
    answer.send(result)
    answer.close()


def outcome(path: Path, context: Any) -> tuple[str, Any]:
    """Return what became of reading a path, within the limits."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(path, theirs))
    process.start()
    theirs.close()
    result = ("HANG", f"after {LIMIT_S} s")
    if ours.poll(LIMIT_S):
        try:
            result = ours.recv()
        except EOFError:
            result = ("TRACEBACK", "the process died")
    process.kill()
    process.join()
    return result


def judged(result: tuple[str, Any], sound: Read, *, knowable: bool) -> tuple[str, str]:
    """Return the name of what became of a changed section, and why."""
    kind, read = result
    if kind != "read":
        return kind, read
    if read["sections"] == sound["sections"]:
        return "as it was", ""
    new = [note for note in read["notes"] if note not in sound["notes"]]
    where = [
        f"{section}: {key}"
        for section in {*read["sections"], *sound["sections"]}
        for key in ("patient", "um_per_px", "picture", "genes", "spots")
        if read["sections"].get(section, {}).get(key) != sound["sections"].get(section, {}).get(key)
    ]
    if new:
        return "said", new[0]
    return ("SILENT" if knowable else "unknowable"), ", ".join(sorted(where))


def main() -> None:
    """Run until the time is over, and print the counts and every find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READERS)
    parser.add_argument("--keep", type=Path, help="folder to which the files of every find are copied")
    asked = parser.parse_args()
    print(f"seed {asked.seed}, {asked.seconds:g} s")
    context, counts, finds = multiprocessing.get_context("fork"), Counter(), []
    with tempfile.TemporaryDirectory() as home:
        sounds = {}
        for name in [asked.only] if asked.only else READERS:
            (Path(home) / "sound" / name).mkdir(parents=True)
            path = READERS[name](Path(home) / "sound" / name)
            kind, read = outcome(path, context)
            if kind != "read":
                sys.exit(f"the sound section of {name} cannot be read: {read}")
            sounds[name] = (path.relative_to(Path(home) / "sound" / name), read)

        def one(reader: str, what: str, change: Callable[[Path], str | None], *, knowable: bool) -> None:
            folder = Path(home) / "changed"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(Path(home) / "sound" / reader, folder)
            told = change(folder)
            if told is None:
                return
            named, sound = sounds[reader]
            became, why = judged(outcome(folder / named, context), sound, knowable=knowable)
            counts[(reader, became)] += 1
            if became in BAD:
                finds.append((reader, f"{what}{told}", became, why))
                if asked.keep:
                    shutil.copytree(folder, asked.keep / f"{len(finds):03d}_{reader}_{became}")
            elif what:
                print(f"  {reader}: {what}: {became}" + (f": {why}" if why else ""))

        for what, (reader, change) in BY_PEOPLE.items():
            if reader in sounds:
                one(reader, what, lambda folder, change=change: change(folder) or "", knowable=True)
        began, number = time.monotonic(), 0
        while time.monotonic() - began < asked.seconds:
            rng = np.random.default_rng([asked.seed, number])
            number += 1
            reader = list(sounds)[number % len(sounds)]

            def change(folder: Path, rng: np.random.Generator = rng) -> str | None:
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                file = files[rng.integers(len(files))]
                told = BY_CHANCE[rng.integers(len(BY_CHANCE))](file, rng)
                return told and f"{file.name}: {told}"

            one(reader, "", change, knowable=False)
    kinds = ["refused", "as it was", "said", "unknowable", *BAD]
    print(f"\n{'':<16}" + "".join(f"{kind:>12}" for kind in kinds))
    for name in sounds:
        print(f"{name:<16}" + "".join(f"{counts[name, kind]:>12}" for kind in kinds))
    print(f"{sum(counts.values())} changed sections")
    for reader, what, became, why in finds:
        print(f"\n{became}: {reader}: {what}\n{why}")
    sys.exit(1 if finds else 0)


if __name__ == "__main__":
    main()
