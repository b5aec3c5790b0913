"""Predictions, written as the files that others' programs open: which formats there are, and the one way to them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from histocrypt.errors import InputError, unknown_name
from histocrypt.files import ZARR, atomic_path, claim, partial_path, same_file

if TYPE_CHECKING:
    from histocrypt.export.content import Content, Format

FORMATS = ("geojson", "spatialdata", "squidpy", "csv", "ome-tiff", "loupe-csv", "anndata")
"""What ``--to`` takes: each a module of this package with its ``FORMAT``."""


def format_of(name: str) -> Format:
    """Return a format by its name.

    Raises
    ------
    InputError
        If there is none of that name, or the library that writes it is not installed.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS, field="--to")
    form = import_module(f"histocrypt.export.{name.replace('-', '_')}").FORMAT
    if form.library is not None:
        try:
            import_module(form.library)
        except ImportError as error:
            fix = "pip install 'histocrypt[export]'"
            problem = f"needs the package {form.library}, which is not installed or does not load ({error})"
            raise InputError(problem, field="--to", value=name, fix=fix) from error
    return form


def export(
    prediction: str | Path,
    output: str | Path,
    *,
    to: str,
    section: str | None = None,
    genes: Sequence[str] = (),
    layer: str | None = None,
    colour: str | None = None,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    overwrite: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Write one section of a prediction file in another format.

    Parameters
    ----------
    prediction
        Predictions (``.h5ad``), of ``histocrypt predict`` or of a run.
    output
        The file, or the store's folder; its name ends as the format's do.
    to
        Of `FORMATS`.
    section, genes, layer, colour, image, um_per_px
        As in `content.read_content`.
    overwrite
        Replace a file whoever made it, or a Zarr store; else only what says that this command made it.

    Returns
    -------
    One line that says what was written, and notes on what is missing or taken for granted.

    Raises
    ------
    InputError
        If the format is unknown or its library absent, something else lies at ``output``, or the prediction lacks what
        is asked for.
    """
    form, output = format_of(to), Path(output)
    if not output.name.endswith(form.suffix):
        raise InputError(
            f"is not a file name for {to}", file=output, field="--output", expected=f"one that ends in {form.suffix}"
        )
    if same_file(output, prediction):
        raise InputError("would overwrite an input", file=output, field="--output", fix="choose another name")
    store = form.suffix == ".zarr" and output.is_dir() and not output.is_symlink()
    if not (store and overwrite and any((output / name).is_file() for name in ZARR)):
        claim(output, inputs=(prediction, image), mine=form.mine, overwrite=overwrite)
    from histocrypt.export.content import read_content

    how = {"section": section, "genes": genes, "layer": layer, "colour": colour}
    content = read_content(prediction, **how, image=image, um_per_px=um_per_px)
    _check(content, form, prediction)
    if form.suffix == ".zarr":
        _write_folder(content, form, output)
    else:
        with atomic_path(output) as temporary:
            form.write(content, temporary)
    n, g = content.values.shape
    said = f"{output}: {n} spots x {g} genes of {content.section} by {content.model}, {content.transform}, as {to}"
    return said, content.notes


def _check(content: Content, form: Format, file: str | Path) -> None:
    if form.on_slide and not content.on_slide:
        problem = "its patches have no positions on a slide"
        raise InputError(problem, file=file, field="--to", fix="export it to csv, loupe-csv or anndata")
    if form.in_um and content.um_per_px is None:
        problem = "does not say how large a pixel is"
        raise InputError(problem, file=file, field="--um-per-px", fix="give micrometres per full-resolution pixel")


def _write_folder(content: Content, form: Format, output: Path) -> None:
    """Write a store beside its place and move it there whole; the one that it replaces goes last."""
    draft = partial_path(output)
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    try:
        form.write(content, draft)
        if not output.exists():
            os.replace(draft, output)
            return
        former = draft.with_name(f"{draft.stem}.former{draft.suffix}")
        os.replace(output, former)
        os.replace(draft, output)
        shutil.rmtree(former)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
