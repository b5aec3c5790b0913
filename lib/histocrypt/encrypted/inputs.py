"""The client's side of a prediction, in the clear: cut tiles, normalise them, check them against the public part."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histocrypt.encrypted.bundle import Client
from histocrypt.errors import InputError


@dataclass(frozen=True)
class Prepared:
    """A section ready to be encrypted."""

    section: str
    names: np.ndarray
    """(n,) ``"<section>:<barcode>"``."""
    coords: np.ndarray
    """(n, 2) x, y in full-resolution pixels."""
    patient: str
    values: np.ndarray
    """(n, channels, side, side) or (n, features) float32, as the network sees them."""
    about: dict[str, Any]
    """Resolution, unmeasured genes, spots without prediction: goes into the prediction file."""


def network_inputs(values: np.ndarray, sees: str, normalisation: dict[str, Any]) -> np.ndarray:
    """Return one section's tiles or features as the network sees them, float32.

    Parameters
    ----------
    values
        (n, side, side, 3) uint8 tiles, or (n, d) features, of all spots of one section.
    sees
        ``tiles`` or ``features``.
    normalisation
        ``by_section``: with this section's own mean and deviation; else with ``mean`` and ``sd`` of the training spots.
    """
    from histocrypt.models.fitted import standardise
    from histocrypt.training.network import PixelMoments

    mean, sd = (np.asarray(normalisation[name], dtype=np.float32) for name in ("mean", "sd"))
    if sees == "features":
        sections = np.zeros(len(values), dtype=int)
        return standardise(values, sections, mean, sd, by_section=normalisation["by_section"])
    import torch

    pixels = torch.from_numpy(np.array(values)).permute(0, 3, 1, 2)
    if normalisation["by_section"]:
        moments = PixelMoments()
        moments.add(pixels)
        mean, sd = moments.result()
    scaled = pixels.float().div_(255)
    return ((scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(sd)[:, None, None]).numpy()


def prepare(
    client: Client,
    section_path: str | Path,
    *,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    panel: str | Path | None = None,
    skip_out_of_range: bool = False,
) -> Prepared:
    """Prepare a section for encryption, or refuse it; nothing is encrypted and no key is needed.

    Parameters
    ----------
    client
        The public part of the compiled model.
    section_path
        A section in any readable format.
    image, um_per_px
        Where the section does not tell them.
    panel
        A list of gene ids, one a line, that the client expects to get, in this order.
    skip_out_of_range
        Leave out spots whose values are outside the calibrated range, instead of refusing the section.

    Raises
    ------
    InputError
        If the section cannot be read, its pixels are too coarse, the panel is another one, or a spot's values are
        outside the range that the model was calibrated for.
    """
    from histocrypt.sections.read import read_path
    from histocrypt.targets.panels import Panel, read_gene_list
    from histocrypt.training.apply import check_fit, prepare_section

    about = client.about
    offered = Panel.from_dict(about["panel"])
    if panel is not None:
        wanted = list(read_gene_list(panel))
        if wanted != list(offered.genes):
            other = next((pair for pair in zip(wanted, offered.genes, strict=False) if pair[0] != pair[1]), None)
            msg = "this model predicts another panel"
            raise InputError(
                msg, file=panel, field="panel", value=other[0] if other else f"{len(wanted)} genes",
                expected=f"{other[1] if other else len(offered)} (model: {len(offered)} genes)",
                fix="ask the model's owner for the panel you need",
            )  # fmt: skip
    section = read_path(section_path, image=image, um_per_px=um_per_px, for_prediction=True)
    missing = check_fit(about, section, offered)
    with tempfile.TemporaryDirectory(prefix="histocrypt-") as folder:
        spots, coords, report = prepare_section(about, section, Path(folder), tuple(about["outputs"]))
        sees = about["sees"]
        found = spots.features(about["input"]["encoder"]) if sees == "features" else np.array(spots.tiles)
        values = network_inputs(found, sees, about["normalisation"])
        names = spots.names
    keep = _in_range(values, client, names, section_path, skip=skip_out_of_range)
    dropped = {**report.dropped, **({"out of range": int((~keep).sum())} if not keep.all() else {})}
    if not keep.any():
        msg = "no spot is left"
        raise InputError(msg, file=section_path, value=dropped)
    return Prepared(
        section=section.id,
        names=names[keep],
        coords=coords[keep],
        patient=section.patient or "",
        values=values[keep],
        about={
            "um_per_px": float(section.um_per_px), "um_per_px_source": section.um_per_px_source,
            "unmeasured_genes": missing, "without_prediction": {str(key): int(n) for key, n in dropped.items()},
        },
    )  # fmt: skip


def _in_range(values: np.ndarray, client: Client, names: np.ndarray, file: Any, *, skip: bool) -> np.ndarray:
    low, high = client.about["input_range"]
    flat = values.reshape(len(values), -1)
    lowest, highest = flat.min(axis=1), flat.max(axis=1)
    keep = (lowest >= low) & (highest <= high) & np.isfinite(flat).all(axis=1)
    if not keep.all() and not skip:
        first = int(np.flatnonzero(~keep)[0])
        worst = lowest[first] if lowest[first] < low else highest[first]
        msg = f"{(~keep).sum()} of {len(keep)} spots are outside the range that the model was calibrated for"
        raise InputError(
            msg, file=file, field=str(names[first]), value=round(float(worst), 2), expected=f"{low:.2f} to {high:.2f}",
            fix="check the image's stain and focus there, or leave such spots out with --skip-out-of-range",
        )  # fmt: skip
    return keep
