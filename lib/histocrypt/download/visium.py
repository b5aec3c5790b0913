"""Public Visium sections of 10x Genomics, as a folder in Space Ranger's own layout."""

from __future__ import annotations

import re
from pathlib import Path

from histocrypt.download.archive import unpack
from histocrypt.download.catalogue import VISIUM_VERSIONS, Source
from histocrypt.download.transfer import RemoteFile
from histocrypt.download.web import Web

NOT_THE_BLOCK = re.compile(r"^(Parent|Targeted)_|_(Immunology|Neuroscience|Pan_Cancer|GeneSignature)$|_Section_\d+$")


def block_of(name: str) -> str:
    """Return the tissue block of a section, as far as its name tells: without gene panel and section number."""
    return NOT_THE_BLOCK.sub("", name)


def names(source: Source, web: Web) -> list[str]:
    """Return the section names."""
    return list(source.names)


def files(source: Source, web: Web, name: str, *, small: bool) -> list[RemoteFile]:
    """Return counts, the archive of ``spatial/``, and the full-resolution image unless ``small``."""
    base = f"{source.hosts['samples']}/{VISIUM_VERSIONS[name]}/{name}/{name}"
    wanted = {"filtered_feature_bc_matrix.h5": "filtered_feature_bc_matrix.h5", "spatial.tar.gz": "spatial.tar.gz"}
    if not small:
        wanted["image.tif"] = "image.tif"
    return [
        RemoteFile(f"{base}_{there}", f"{name}/{here}", size=web.size(f"{base}_{there}"))
        for here, there in wanted.items()
    ]


def finish(source: Source, folder: Path, name: str) -> Path:
    """Unpack ``spatial/``."""
    unpack(folder / name / "spatial.tar.gz", folder / name / "spatial")
    return folder / name
