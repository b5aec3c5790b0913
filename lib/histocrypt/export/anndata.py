"""AnnData as any tool reads it: values, names, places; nothing in ``uns`` that only this project knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histocrypt.errors import InputError
from histocrypt.export.content import MADE, Content, Format
from histocrypt.hdf5 import open_h5

if TYPE_CHECKING:
    from anndata import AnnData

MAKER = "made"
"""Attribute of the file's root that says who made it: AnnData does not look there, and does not keep it."""


def write(content: Content, path: Path) -> None:
    """Write values as ``X``, symbols as names of genes, ``var["gene_ids"]``, ``obsm["spatial"]``."""
    write_marked(content.adata(), path)


def write_marked(adata: AnnData, path: Path) -> None:
    """Write an AnnData, and into the root of the file who made it."""
    import h5py

    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path, "a") as file:
        file.attrs[MAKER] = MADE


def is_marked(path: Path) -> bool:
    """Return whether a file is as `write_marked` left it; what a person has since written anew is not."""
    try:
        with open_h5(path) as file:
            return file.attrs.get(MAKER) == MADE
    except (InputError, OSError, RuntimeError):
        return False


FORMAT = Format(".h5ad", write, mine=is_marked)
