"""SpatialData stores: a Zarr folder with ``tables/`` (AnnData), ``shapes/`` and ``images/`` (OME-NGFF).

A table names the shapes that it annotates (``uns["spatialdata_attrs"]``: region, region_key, instance_key). Shapes and
images each say by what transformation they come to a named coordinate system; a spot's place in an image is the one
followed by the inverse of the other. Layout of the scverse project, "Design document for SpatialData",
https://spatialdata.scverse.org/en/latest/design_doc.html; read by zarr, anndata and pyarrow.

Each pair of a table and a region is a section. ``STORE.zarr/tables/NAME`` or ``STORE.zarr/shapes/NAME`` names one of
several, and ``image:`` with ``STORE.zarr/images/NAME`` its image.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.errors import InputError, reading
from histocrypt.sections.formats.h5ad import read_anndata
from histocrypt.sections.identity import one_value, safe_id
from histocrypt.sections.image import ImageSource, open_image
from histocrypt.sections.pixels import UM
from histocrypt.sections.resolution import VISIUM_PITCH_UM
from histocrypt.sections.section import Format, Loaded, SectionFiles
from histocrypt.sections.stores import ZARR_ERRORS, h5_errors
from histocrypt.spatial import array_of, is_visium

BINS = re.compile(r"(?:^|_)square_(\d{3})um$")
KINDS = ("tables", "shapes")


def _store(path: Path) -> tuple[Path, str, str]:
    """Return the store, and the kind and name of the element that a path below it names."""
    for kind in KINDS:
        if path.parent.name == kind and path.is_dir():
            return path.parent.parent, kind, path.name
    return path, "", ""


def _recognises(path: Path) -> bool:
    store, *_ = _store(path)
    return _is_store(store) or any(map(_is_store, store.glob("[!.]*.zarr")))


def _is_store(path: Path) -> bool:
    described = any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))
    return described and (path / "tables").is_dir() and ((path / "shapes").is_dir() or (path / "images").is_dir())


def _sections_in(path: Path) -> list[SectionFiles]:
    """Return a section for each region that a table annotates; several on one image are an error that lists them."""
    store, kind, name = _store(path)
    if not _is_store(store):
        return [files for child in sorted(path.glob("[!.]*.zarr")) if _is_store(child) for files in _sections_in(child)]
    pairs = [
        (table, region)
        for table in sorted(child.name for child in (store / "tables").glob("[!.]*") if child.is_dir())
        for region in _regions(store, table)
    ]
    if kind:
        pairs = [pair for pair in pairs if pair[KINDS.index(kind)] == name]
    if not pairs:
        raise InputError("table annotates no shapes", file=path, field="uns['spatialdata_attrs']['region']")
    seen: dict[str, tuple[str, str]] = {}
    for pair in pairs:
        for image in _images_of(store, pair[1]):
            if seen.setdefault(image.name, pair) != pair:
                raise InputError(
                    "holds several tables or regions on one image, which are not several sections",
                    file=store,
                    value=[f"tables/{table} on shapes/{region}" for table, region in pairs],
                    fix=f"name one, e.g. {store.name}/{_telling(pairs)}",
                )
    stem = store.name.removesuffix(".zarr")
    return [
        SectionFiles(safe_id(stem if len(pairs) == 1 else region), "spatialdata", store, part=f"{table}/{region}")
        for table, region in pairs
    ]


def _telling(pairs: list[tuple[str, str]]) -> str:
    tables = [table for table, _ in pairs]
    return f"tables/{tables[0]}" if len(set(tables)) == len(tables) else f"shapes/{pairs[0][1]}"


def load_spatialdata(files: SectionFiles) -> Loaded:
    """Read one table, its region's centres, and the image of the finest pixels that both lie in."""
    store = files.path
    table, _, region = files.part.partition("/")
    adata = read_anndata(store / "tables" / table)
    about = adata.uns.get("spatialdata_attrs")
    where = {"file": store / "tables" / table, "field": "uns['spatialdata_attrs']"}
    keys = [about.get(name) for name in ("region_key", "instance_key")] if isinstance(about, Mapping) else []
    if len(keys) != 2 or not all(isinstance(key, str) and key in adata.obs for key in keys):
        raise InputError("does not say which shape each row is", value=keys, **where)
    adata = adata[(adata.obs[keys[0]].astype(str) == region).to_numpy()].copy()
    index, centres = _centres(store / "shapes" / region)
    rows = {str(name): number for number, name in enumerate(index)}
    found = np.array([rows.get(str(name), -1) for name in adata.obs[keys[1]]], dtype=np.int64)
    if (found < 0).any() or not len(found):
        missing = adata.obs[keys[1]].iloc[(found < 0).argmax()] if len(found) else None
        raise InputError(
            f"{int((found < 0).sum())} of {adata.n_obs} rows have no shape in shapes/{region}", value=missing, **where
        )
    images = _images_of(store, region)
    chosen = _chosen(files, images)
    image, um_per_px, um_field = None, None, ""
    to_pixels = np.eye(3)
    if chosen is not None:
        image, to_pixels = chosen.source, np.linalg.inv(chosen.to_system) @ chosen.from_shapes
        if chosen.in_um:
            um_per_px = float(np.sqrt(abs(np.linalg.det(chosen.to_system[:2, :2]))))
            um_field = f"images/{chosen.name}: transformation to {chosen.system} in um"
    points = centres[found]
    adata.obsm["spatial"] = points @ to_pixels[:2, :2].T + to_pixels[:2, 2]
    pitch, technology = _pitch(adata, region, table)
    return Loaded(
        adata,
        image,
        one_value(adata, "patient", store),
        [store / "tables" / table, store / "shapes" / region, *([image.path] if image is not None else [])],
        um_per_px=um_per_px,
        um_field=um_field,
        pitch_um=pitch,
        technology=technology,
        image_note="" if image is not None else f"image is missing: none shares a coordinate system with {region}",
        origins={
            "counts": f"tables/{table}: X",
            "spots": f"shapes/{region}, its transformation and the image's",
        },
    )


def _pitch(adata: Any, region: str, table: str) -> tuple[float | None, str]:
    """Return the distance of neighbours in um, and the technology, where names or array tell them."""
    for name in (region, table):
        if bins := BINS.search(name):
            return float(bins[1]), "Visium HD"
    grid = array_of(adata)
    return (VISIUM_PITCH_UM, "Visium") if grid is not None and len(grid) > 8 and is_visium(grid) else (None, "other")


@dataclass
class _Placed:
    """An image that lies in a coordinate system of the shapes."""

    name: str
    path: Path
    system: str
    to_system: np.ndarray
    """From its pixels, (3, 3)."""
    from_shapes: np.ndarray
    """From the shapes to the same coordinate system, (3, 3)."""
    in_um: bool
    source: ImageSource | None = None

    @property
    def size(self) -> float:
        """Side of a pixel, in the unit of the shapes."""
        return float(np.sqrt(abs(np.linalg.det(self.to_system[:2, :2]) / np.linalg.det(self.from_shapes[:2, :2]))))


def _chosen(files: SectionFiles, images: list[_Placed]) -> _Placed | None:
    """Return the image as given, or the one of the finest pixels; several of one size are an error that lists them."""
    if files.counts_only:
        return None
    if files.image is not None:
        given = [image for image in images if image.path.resolve() == files.image.resolve()]
        if not given:
            raise InputError(
                "the given image is not in the store of the shapes",
                file=files.path,
                field="image",
                value=str(files.image),
                expected=" or ".join(str(image.path) for image in images) or "an image in images/",
            )
        given[0].source = open_image(given[0].path)
        return given[0]
    readable, refused = [], []
    for image in sorted(images, key=lambda image: image.size):
        try:
            image.source = open_image(image.path)
            readable.append(image)
        except InputError as error:  # e.g. fluorescence of four channels
            refused.append(error)
    if not readable:
        if refused:
            raise refused[0]
        return None
    alike = [image for image in readable if image.size < 1.01 * readable[0].size]
    if len(alike) > 1:
        raise InputError(
            "the store has several images of the same resolution",
            file=files.path,
            value=[image.name for image in alike],
            fix=f"name one as `image:`, e.g. {alike[0].path}",
        )
    return readable[0]


# What the store says of its elements.


def _attributes(path: Path) -> dict[str, Any]:
    import zarr

    with reading("is not a readable element of SpatialData", *ZARR_ERRORS, file=path):
        return dict(zarr.open_group(path, mode="r").attrs)


def _regions(store: Path, table: str) -> list[str]:
    """Return the shapes that a table annotates; regions of labels have no centres and are left out."""
    import zarr
    from anndata.io import read_elem

    path = store / "tables" / table
    with reading("is not a readable table of SpatialData", *h5_errors(), file=path):
        uns = zarr.open_group(path, mode="r")["uns"]
        region = read_elem(uns["spatialdata_attrs"])["region"] if "spatialdata_attrs" in uns else []
    names = [str(name) for name in np.ravel(region)]
    shapes = [name for name in names if (store / "shapes" / name).is_dir()]
    if names and not shapes:
        raise InputError(
            "region that the table annotates is not in shapes/",
            file=path,
            field="uns['spatialdata_attrs']['region']",
            value=names[:5],
            expected="circles or polygons, whose centres are the spots",
        )
    return shapes


def _images_of(store: Path, region: str) -> list[_Placed]:
    """Return the images that share a coordinate system with a region, each in the first that they share."""
    shapes = _transformations(_attributes(store / "shapes" / region).get("coordinateTransformations"), store / region)
    placed = []
    for path in sorted((store / "images").glob("[!.]*")) if (store / "images").is_dir() else ():
        if not path.is_dir():
            continue
        about = _attributes(path)
        multiscales = about.get("ome", about).get("multiscales")
        stated = multiscales[0].get("coordinateTransformations") if multiscales else None
        own = _transformations(stated, path)
        system = next((name for name in own if name in shapes), None)
        if system is not None:
            matrix, in_um = own[system]
            placed.append(_Placed(path.name, path, system, matrix, shapes[system][0], in_um or shapes[system][1]))
    return placed


def _transformations(stated: Any, path: Path) -> dict[str, tuple[np.ndarray, bool]]:
    """Return coordinate system -> affine map of x, y to it, (3, 3), and whether its unit is the um."""
    found = {}
    for transformation in stated or []:
        output = transformation.get("output")
        if not isinstance(output, Mapping):
            continue  # the scale of a level
        axes = [axis for axis in output.get("axes", []) if axis.get("name") in ("x", "y")]
        in_um = bool(axes) and all(UM.get(str(axis.get("unit")).lower()) == 1 for axis in axes)
        found[str(output.get("name"))] = (_matrix(transformation, path), in_um)
    return found


def _matrix(transformation: Mapping[str, Any], path: Path) -> np.ndarray:
    """Return one transformation as a map of x, y, (3, 3)."""
    kind = transformation.get("type")
    names = {}
    for end in ("input", "output"):
        axes = transformation[end].get("axes", []) if isinstance(transformation.get(end), Mapping) else []
        names[end] = [str(axis["name"]) for axis in axes] or ["x", "y"]
    result = np.eye(3)
    try:
        if kind == "sequence":
            for step in transformation["transformations"]:
                result = _matrix(step, path) @ result
        elif kind in ("scale", "translation"):
            values = dict(zip(names["input"], transformation[kind], strict=True))
            for place, axis in enumerate("xy"):
                result[(place, place) if kind == "scale" else (place, 2)] = values[axis]
        elif kind == "affine":
            rows = np.asarray(transformation["affine"], dtype=float)
            columns = [*names["input"], ""]
            for place, axis in enumerate("xy"):
                row = dict(zip(columns, rows[names["output"].index(axis)], strict=True))
                result[place] = row["x"], row["y"], row[""]
        elif kind == "mapAxis":
            source = transformation["mapAxis"]
            for place, axis in enumerate("xy"):
                result[place] = [source.get(axis, axis) == "x", source.get(axis, axis) == "y", 0]
        elif kind != "identity":
            raise ValueError(kind)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(
            "transformation is not understood",
            file=path,
            field="coordinateTransformations",
            value=kind,
            expected="identity, scale, translation, affine, mapAxis, or a sequence of these",
        ) from error
    if not np.isfinite(result).all() or abs(np.linalg.det(result)) < 1e-12:
        raise InputError("transformation cannot be undone", file=path, field="coordinateTransformations", value=kind)
    return result


def _centres(path: Path) -> tuple[list[Any], np.ndarray]:
    """Return names and centres of shapes: of circles as stored, of polygons the mean of their corners' box."""
    parquet = path / "shapes.parquet"
    with reading("shapes cannot be read", *ZARR_ERRORS, file=path):
        if parquet.is_file():
            import pyarrow.parquet as pq

            table = pq.read_table(parquet)
            about = table.schema.pandas_metadata or {}
            column = next((name for name in about.get("index_columns", []) if isinstance(name, str)), None)
            index = table[column].to_pylist() if column in table.column_names else list(range(table.num_rows))
            return index, np.array([_centre(shape) for shape in table["geometry"].to_pylist()], dtype=np.float64)
        import zarr

        group = zarr.open_group(path, mode="r")
        return group["Index"][:].tolist(), np.asarray(group["coords"][:], dtype=np.float64).reshape(-1, 2)


def _centre(shape: bytes) -> tuple[float, float]:
    """Return the centre of a point or a polygon in well-known binary (OGC 06-103r4)."""
    order = "<" if shape[0] == 1 else ">"
    (kind,) = np.frombuffer(shape, f"{order}u4", 1, 1)
    if kind == 1:
        x, y = np.frombuffer(shape, f"{order}f8", 2, 5)
        return float(x), float(y)
    if kind == 3:
        (corners,) = np.frombuffer(shape, f"{order}u4", 1, 9)  # of the outer ring
        ring = np.frombuffer(shape, f"{order}f8", 2 * int(corners), 13).reshape(-1, 2)
        return tuple(((ring.min(axis=0) + ring.max(axis=0)) / 2).tolist())
    raise ValueError(f"geometry of kind {kind}")


def _inputs(files: SectionFiles) -> list[Path]:
    table, _, region = files.part.partition("/")
    within = (files.path / "tables" / table, files.path / "shapes" / region, files.path / "images")
    return sorted(path for folder in within for path in folder.rglob("*") if path.is_file())


FORMAT = Format(
    layout="a SpatialData store (.zarr with tables/, shapes/ and images/)",
    recognises=_recognises,
    sections_in=_sections_in,
    read=load_spatialdata,
    inputs=_inputs,
)
