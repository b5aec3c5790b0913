"""AnnData as people keep it: ``.h5ad``, ``.h5ad.gz``, and Zarr stores of version 2 and 3, which are folders."""

from __future__ import annotations

import errno
import gzip
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from histocrypt.errors import InputError, unreadable
from histocrypt.files import regular
from histocrypt.hdf5 import open_h5
from histocrypt.sections.tables import BROKEN, is_gzip

if TYPE_CHECKING:
    from anndata import AnnData

ZARR_ERRORS = (OSError, ValueError, LookupError, TypeError)
"""What zarr raises on damaged stores."""
SUFFIXES = (".h5ad", ".h5ad.gz", ".zarr")
SWELLS, SLACK = 100, 2**30
"""A ``.gz`` may unpack to so many times its size and so many bytes more; counts do to 10 times, a bomb to 1,000."""
SPARE = 2**26
"""Bytes of the disk that are left to others."""
WHOLE = ("X/data", "X/indices", "raw/X/data", "raw/X/indices", "layers/counts/data", "layers/counts/indices")
"""Arrays that hold no stretch of zeros: where a chunk of them is absent, Zarr would read zeros."""


def h5_errors() -> tuple[type[Exception], ...]:
    """Return what h5py, Zarr's codecs and anndata raise on damaged files, and on those of a format they do not know."""
    from anndata._io.specs.registry import IORegistryError

    return (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError, IORegistryError, SystemError)


def is_anndata(path: Path) -> bool:
    """Return whether a path is an AnnData by its name; of a Zarr folder, by its groups."""
    if path.is_dir():
        kinds = ("zarr.json", ".zgroup", ".zattrs")
        return all(any((path / part / name).is_file() for name in kinds) for part in ("obs", "var"))
    return path.name.endswith((".h5ad", ".h5ad.gz")) and path.is_file()


def anndata_in(path: Path) -> list[Path]:
    """Return a path that is an AnnData, else those in the folder."""
    if is_anndata(path):
        return [path]
    found = sorted(path.glob("[!.]*")) if path.is_dir() else []
    return [file for file in found if file.name.endswith(SUFFIXES) and is_anndata(file)]


def stem_of(path: Path) -> str:
    """Return the name of an AnnData without its suffix."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


@contextmanager
def opened_store(path: Path) -> Iterator[Mapping[str, Any]]:
    """Open an AnnData as the groups and arrays that it consists of."""
    if path.is_dir():
        import zarr

        yield zarr.open_group(path, mode="r")
        return
    with unpacked(path) as plain, open_h5(plain) as file:
        yield file


def read_names(path: Path) -> AnnData:
    """Read what tells sections apart: ``obs``, places, and of ``uns`` the names; counts and pictures are left alone.

    It is read by anndata itself, as `read_store` does, whatever version wrote it.
    """
    from anndata import AnnData
    from anndata._io.h5ad import read_dataframe
    from anndata.compat import _clean_uns
    from anndata.io import read_elem

    with opened_store(path) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is old or not unique
        uns = store["uns"] if "uns" in store else {}
        old = not _is_group(store["obs"])  # before version 0.7 a table, whose words stand in uns
        wanted = [name for name in uns if name in ("section", "patient") or (old and name.endswith("_categories"))]
        obs = read_dataframe(store["obs"]) if old else read_elem(store["obs"])
        adata = AnnData(obs=obs, uns={name: read_elem(uns[name]) for name in wanted})
        if old:
            _clean_uns(adata)
        if "spatial" in uns and _is_group(uns["spatial"]):
            libraries = {name: uns["spatial"][name] for name in uns["spatial"] if _is_group(uns["spatial"][name])}
            adata.uns["spatial"] = {
                name: {"scalefactors": read_elem(content["scalefactors"])} if "scalefactors" in content else {}
                for name, content in libraries.items()
            }
        if "obsm" in store and _is_group(store["obsm"]) and "spatial" in store["obsm"]:
            adata.obsm["spatial"] = read_elem(store["obsm"]["spatial"])
    return adata


def _is_group(node: object) -> bool:
    return not hasattr(node, "dtype")


def read_store(path: Path, *, what: str) -> AnnData:
    """Read an AnnData.

    Parameters
    ----------
    what
        What is said where it cannot be opened, a clause.

    Raises
    ------
    InputError
        If it is not there, leads elsewhere or lacks a part of its counts, or a ``.gz`` cannot be unpacked; what
        anndata raises else.
    """
    import anndata

    if path.is_dir():
        _check_whole(path)
        return anndata.read_zarr(path)
    with unpacked(regular(path, missing="section file is missing")) as plain:
        try:
            open_h5(plain, what=what, whole=True).close()
        except InputError as error:
            raise error if plain == path else error.of_file(path) from error
        return anndata.read_h5ad(plain)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield a file as it is, or for a time what gzip packed into it."""
    if path.suffix.lower() != ".gz" or not is_gzip(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="histocrypt-") as folder:
        plain = Path(folder) / path.stem
        try:
            with gzip.open(path, "rb") as packed, plain.open("wb") as file:
                _unpack(packed, file, path, room=shutil.disk_usage(folder).free)
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise _too_large(path, "than there is room for", Path(folder).parent) from error
            raise unreadable("cannot be unpacked", error, file=path) from error
        yield plain


def _unpack(packed: BinaryIO, file: BinaryIO, path: Path, *, room: int) -> None:
    """Unpack until the end, or until it is more than a section can be packed into or than the disk has room for."""
    most = SWELLS * path.stat().st_size + SLACK
    while piece := packed.read(2**20):
        size = file.tell() + len(piece)
        if size > most:
            raise _too_large(path, f"than {SWELLS} times its size", None)
        if size > room - SPARE:
            raise _too_large(path, "than there is room for", Path(file.name).parent.parent)
        file.write(piece)


def _too_large(path: Path, than: str, folder: Path | None) -> InputError:
    fix = f"free some space in {folder}, name another folder in TMPDIR, or unpack it with gunzip" if folder else None
    return InputError(
        f"unpacks to more {than}",
        file=path,
        value=f"{path.stat().st_size:,} bytes",
        fix=fix or "copy it again from its source, or unpack it with gunzip if you trust it",
    )


def _check_whole(path: Path) -> None:
    """Refuse a store whose copy broke off: an absent chunk of counts or coordinates is read as zeros by Zarr."""
    import zarr

    group = zarr.open_group(path, mode="r")
    for name in (*WHOLE, "obsm/spatial"):
        array = group.get(name)
        if isinstance(array, zarr.Array) and array.nchunks_initialized < array.nchunks:
            raise InputError(
                f"{array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks are missing",
                file=path,
                field=name,
                fix="copy the store again from its source, whole",
            )
