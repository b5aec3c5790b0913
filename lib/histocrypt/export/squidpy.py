"""AnnData with its picture, as ``squidpy.pl.spatial_scatter`` and ``scanpy.pl.spatial`` draw it.

``uns["spatial"][<section>]`` holds ``images``, ``scalefactors`` and ``metadata`` in the layout that Space Ranger's
outputs have in scanpy (https://squidpy.readthedocs.io/en/stable/, "Import spatial data in AnnData and Squidpy"):
places in ``obsm["spatial"]`` are full-resolution pixels, ``tissue_hires_scalef`` brings them into the picture.
"""

from __future__ import annotations

from pathlib import Path

from histocrypt.export.anndata import is_marked, write_marked
from histocrypt.export.content import Content, Format


def write(content: Content, path: Path) -> None:
    """Write the spots, the picture and its scale; without a picture, the size of a spot alone."""
    adata = content.adata()
    scales = {"spot_diameter_fullres": content.size_px}
    library = {"images": {}, "scalefactors": scales}
    if content.picture is not None:
        library["images"]["hires"] = content.picture
        scales["tissue_hires_scalef"] = content.scale
    if content.um_per_px is not None:
        library["metadata"] = {"pixel_size_um": content.um_per_px}
    adata.uns["spatial"] = {content.section: library}
    adata.uns["prediction_of"] = {"model": content.model, "transform": content.transform}
    write_marked(adata, path)


FORMAT = Format(".h5ad", write, mine=is_marked)
