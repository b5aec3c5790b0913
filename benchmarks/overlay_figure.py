"""Draw an exported GeoJSON over its slide as QuPath shows it: `python benchmarks/overlay_figure.py A.geojson SLIDE`.

    histocrypt predict SLIDE --um-per-px UM --spacing 100 -o A.h5ad
    histocrypt export A.h5ad -o A.geojson --to geojson
    python benchmarks/overlay_figure.py A.geojson SLIDE --um-per-px UM -o FIGURE.png [--zoom 1500]

Nothing but the GeoJSON and the slide is read: polygons, their own colours and their classes are what QuPath reads. The
square that is drawn large is the one whose values differ most, of those that are full of tissue.

`docs/qupath_overlay.png` is HER2ST_B4 by ``fusion_ridge/fold_HER2ST_B_BT10737`` of `studies/breast_unseen.yaml`, which
is trained on other patients, and hence drawn with ``--words ", a patient never seen"``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

OPACITY, ZOOMED = 0.45, 0.3
"""Of the polygons over the whole slide, and close by, where lines are drawn, too."""
COLOURS = 256
"""Of the picture, so that its file stays small."""


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray, dict[str, list[int]], dict]:
    """Return (k, 2) outlines of polygons, (n, 3) colours, colours of classes by name, and what else the file says."""
    told = json.loads(path.read_text(encoding="utf-8"))
    own = [one["properties"] for one in told["features"]]
    classes = {one["classification"]["name"]: one["classification"]["color"] for one in own}
    outlines = [np.array(one["geometry"]["coordinates"][0]) for one in told["features"]]
    return outlines, np.array([one["color"] for one in own]), dict(sorted(classes.items())), told["histocrypt"]


def corner(outlines: list[np.ndarray], colours: np.ndarray, side: float) -> np.ndarray:
    """Return the upper left corner of the square of that side, in pixels, in which colours differ most."""
    centres = np.array([outline[:-1].mean(axis=0) for outline in outlines])
    inside = [((centres >= low) & (centres < low + side)).all(axis=1) for low in centres]
    least = 0.9 * max(one.sum() for one in inside)
    return centres[int(np.argmax([colours[one].std(axis=0).sum() if one.sum() >= least else -1 for one in inside]))]


def main() -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch, Rectangle
    from PIL import Image

    from histocrypt.evaluation import maps
    from histocrypt.evaluation.figures import INK, canvas, save, style
    from histocrypt.sections.image import open_image

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("geojson", type=Path)
    parser.add_argument("slide")
    parser.add_argument("--um-per-px", type=float, required=True)
    parser.add_argument("--zoom", type=float, default=1000, help="side of the square that is drawn large, um")
    parser.add_argument("--words", default="", help="after the section's name")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    outlines, colours, classes, told = read(given.geojson)
    image, scale = open_image(given.slide).thumbnail(2400)
    side = given.zoom / given.um_per_px
    low = corner(outlines, colours, side)
    around = [np.concatenate(outlines).min(axis=0), np.concatenate(outlines).max(axis=0)]
    height = float(around[1][1] - around[0][1]) / float(around[1][0] - around[0][0])
    with style():
        figure, axes = canvas(1, 3, figsize=(10, 10 / 3 * min(height, 1) + 0.5), width_ratios=(1, 1, min(height, 1)))
        views = [(around, 0.0), (around, OPACITY), ([low, low + side], ZOOMED)]
        for one, (view, opacity) in zip(axes, views, strict=True):
            first, last = view
            cut = image[int(first[1] * scale) : int(last[1] * scale), int(first[0] * scale) : int(last[0] * scale)]
            one.imshow(cut, extent=(first[0], last[0], last[1], first[1]), interpolation="bilinear")
            if opacity:
                faces, lines = (np.column_stack([colours / 255, np.full(len(colours), a)]) for a in (opacity, 1))
                lines = lines if view[0] is low else "none"
                drawn = one.add_collection(PolyCollection(outlines, facecolors=faces, edgecolors=lines, linewidths=1))
                drawn.set_clip_path(Rectangle(first, *(last - first), transform=one.transData))
            last = last + (0, 0.1 * (last - first)[1])  # room for the scale bar
            maps.frame(one, first, last)
            maps.scale_bar(one, first, last, given.um_per_px)
        axes[1].add_patch(Rectangle(low, side, side, fill=False, edgecolor=INK, linewidth=1.2))
        axes[0].set_title(f"{told['section']}{given.words}", fontsize=10)
        axes[1].set_title(f"{told['coloured_by']}, predicted: detections", fontsize=10)
        axes[2].set_title("close by", fontsize=10)
        handles = [Patch(color=np.array(colour) / 255, label=name) for name, colour in classes.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    save(figure, given.output)
    small = Image.open(given.output).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=COLOURS)
    small.save(given.output, optimize=True)
    print(f"{given.output}: {len(outlines)} detections of {told['section']}, {told['coloured_by']} by {told['model']}")


if __name__ == "__main__":
    main()
