"""Embeddings that were made elsewhere, in the folder layout of the published Stem, read as they are.

```
st/<id>.h5ad                                       spots, in the order of the embeddings
processed_data/1spot_<enc>_ebd/<id>_<enc>.pt       (N, d) tensor
processed_data/1spot_<enc>_ebd_aug/<id>_<enc>_aug.pt   (N, 7, d) tensor, the turned and mirrored tiles
processed_data/all_slide_lst.txt                   ids, one a line
processed_data/selected_gene_list.txt              genes, one a line: give it as `panel.file`
```

The files name no spots. Rows are taken in the order of the spots of ``st/<id>.h5ad``, or, without it, of the section
itself, and only where the numbers agree; that they are joined by order is said each time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from histocrypt import paths
from histocrypt.errors import InputError

PREPARED = "prepared:"
"""``prepared:<folder processed_data>#<encoder>``; a folder that starts with ``data:`` lies below HISTOCRYPT_DATA."""

SLIDES = "all_slide_lst.txt"


def prepared_features(name: str, *, names: np.ndarray, views: int = 1) -> np.ndarray:
    """Return prepared embeddings of one section, (n, views, d) float32.

    Parameters
    ----------
    name
        See `PREPARED`.
    names
        (n,) ``"<section>:<barcode>"`` of the spots wanted; some of the section's spots may be missing among them.
    views
        1 to 8; above 1 the file of turned and mirrored tiles is read, too.

    Raises
    ------
    InputError
        If a file is missing or holds no such tensor, the slide list does not name the section, numbers of rows and
        spots differ, or a spot is not in ``st/<id>.h5ad``.
    """
    folder, _, encoder = name.removeprefix(PREPARED).partition("#")
    if not folder or not encoder:
        raise InputError(
            "does not say where prepared embeddings are",
            field="encoder",
            value=name,
            expected="prepared:<folder processed_data>#<encoder>",
        )
    below = folder.removeprefix("data:")
    root = (paths.data() if below != folder else Path()) / Path(below).expanduser()
    section = str(names[0]).partition(":")[0]
    _check_slide(root / SLIDES, section)
    file = root / f"1spot_{encoder}_ebd" / f"{section}_{encoder}.pt"
    found = _tensor(file, 2)[:, None]
    if views > 1:
        turned_file = root / f"1spot_{encoder}_ebd_aug" / f"{section}_{encoder}_aug.pt"
        turned = _tensor(turned_file, 3)
        if turned.shape[::2] != found.shape[::2] or turned.shape[1] < views - 1:
            raise InputError(
                f"holds {turned.shape}, which does not go with {found[:, 0].shape} of {file.name}", file=turned_file
            )
        found = np.concatenate([found, turned[:, : views - 1]], axis=1)
    spots = root.parent / "st" / f"{section}.h5ad"
    return found[_rows(names, section, len(found), file, spots)]


def _rows(names: np.ndarray, section: str, n: int, file: Path, spots: Path) -> np.ndarray:
    """Return the row of each spot; by order, after the numbers are checked."""
    wanted = [str(name).removeprefix(f"{section}:") for name in names]
    if spots.is_file():
        import anndata

        order, whose = (
            anndata.read_h5ad(spots, backed="r").obs_names.astype(str).tolist(),
            f"{spots.parent.name}/{spots.name}",
        )
    else:
        order, whose = wanted, "the cleaned section"
    if len(order) != n:
        raise InputError(
            f"has {n} rows, and {whose} has {len(order)} spots; without names they cannot be joined",
            file=file,
            fix=f"put the section that they were made from at {spots}",
        )
    place = {barcode: row for row, barcode in enumerate(order)}
    missing = [barcode for barcode in wanted if barcode not in place]
    if missing:
        raise InputError(f"{len(missing)} spots are not in {whose}, e.g. {missing[0]}", file=file)
    note = f"note: {file.name} names no spots; its {n} rows are taken in the order of {whose}, whose number agrees"
    print(note, file=sys.stderr)
    return np.array([place[barcode] for barcode in wanted])


def _tensor(file: Path, dimensions: int) -> np.ndarray:
    import torch

    if not file.is_file():
        raise InputError("prepared embeddings are missing", file=file)
    try:
        tensor = torch.load(file, map_location="cpu", weights_only=True)  # data only: nothing in the file is run
    except Exception as error:  # an unpickler has many ways to fail; to the user they mean one thing
        raise InputError(f"is not a tensor file ({' '.join(str(error).split())[:120]})", file=file) from error
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != dimensions:
        what = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise InputError(
            "does not hold embeddings",
            file=file,
            value=what,
            expected=f"a tensor of {dimensions} dimensions, spots first",
        )
    values = tensor.float().numpy()
    if not np.isfinite(values).all():
        raise InputError("holds embeddings that are not finite", file=file)
    return values


def _check_slide(file: Path, section: str) -> None:
    if not file.is_file():
        return
    slides = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if section not in slides:
        raise InputError(
            f"does not name section {section}",
            file=file,
            expected=", ".join(slides[:5]) + ("" if len(slides) < 6 else ", ..."),
        )
